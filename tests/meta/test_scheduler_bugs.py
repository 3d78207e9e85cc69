"""Wrong servers, each of which the checks of tests/property/test_scheduler.py must reject.

A bug is a line of the source changed into another, listed in scheduler_bugs.toml. The modules are
loaded anew with it, beside the right ones, so nothing has to be undone.
"""

import sys
from typing import Any

import pytest
from hypothesis import given

from helpers.mutants import Mutant
from helpers.planted import bugs_beside, changed_module, until_found
from helpers.serving import (
    AGREEMENT,
    BEHIND_THE_HEAD,
    FOUND_AGAIN,
    NOT_THE_OLDEST,
    TABLES,
    Servers,
    check_agreement,
    check_tables,
)

# In order of import: what comes later is loaded with what came before.
MODULES = (
    "paged.arrivals",
    "paged.group",
    "paged.scheduler",
    "paged.keyed_blocks",
    "paged.counted",
    "paged.counting",
)
# The rarest that is drawn takes 185.
MAX_EXAMPLES = 400

# Streams that show what a draw comes to once in hundreds.
KNOWN = {
    "behind the head": BEHIND_THE_HEAD,
    "not the oldest": NOT_THE_OLDEST,
    "found again": FOUND_AGAIN,
}


BUGS = bugs_beside(__file__)


def planted(mutant: Mutant | None, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """Load the servers anew, with the bug."""
    loaded = {}
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, sys.modules[name])  # so that it comes back
        loaded[name] = changed_module(name, mutant, called=name)
    return Servers(
        serve=loaded["paged.scheduler"].serve,
        serve_by_counts=loaded["paged.counting"].serve_by_counts,
    )


@pytest.mark.parametrize("name", BUGS)
def test_the_check_rejects(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant, fields = BUGS[name]
    assert mutant.file in MODULES
    servers = planted(mutant, monkeypatch)
    tables = fields.get("tables", True)

    @until_found(MAX_EXAMPLES)
    @given(**(TABLES if tables else AGREEMENT))
    def search(**drawn: Any) -> None:
        (check_tables if tables else check_agreement)(servers, **drawn)

    def hunt() -> None:
        if known := fields.get("known"):
            check_agreement(servers, **KNOWN[known])
        search()

    with pytest.raises(Exception) as caught:  # noqa: PT011 - by an assertion, or by the identity
        hunt()
    assert not isinstance(caught.value, TypeError | NameError), "the bug does not even run"


def test_the_right_servers_pass_when_loaded_in_the_same_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers = planted(None, monkeypatch)

    @until_found(60)
    @given(**TABLES)
    def search(**drawn: Any) -> None:
        check_tables(servers, **drawn)

    search()
