"""One catalogue of wrong allocators: small changes to ours, each of which has to be found.

Most of those that fuzzing hunts are modelled on bugs that were really shipped: `seen` names where
one of the kind was reported, and `by` the checks that may give it away; where a block has the wrong
owners, chance decides which of them is first. Others give one wrong answer, and come with a program
by hand that asks for it.
"""

from helpers.wrong_allocators import sharing, keys, room, answers  # isort: skip - the order of the catalogue
from helpers.wrong_allocators.catalogue import BUGS, Bug

__all__ = ["BUGS", "Bug", "answers", "keys", "room", "sharing"]
