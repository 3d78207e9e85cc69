"""One line of the study of wrong allocators."""

import pytest

from studies.allocator_bugs import main


@pytest.mark.parametrize(
    ("programs", "said", "code"),
    [("9", "block_twice_in_the_free_list 1 1\n1 found by all 2 seeds\n", 0), ("1", "- -", 1)],
)
def test_a_bug_has_the_program_that_finds_it(programs, said, code, capsys) -> None:
    bug = "block_twice_in_the_free_list" if code == 0 else "copy_is_never_asked_for"
    assert main([bug, "--seeds", "2", "--programs", programs]) == code
    assert said in capsys.readouterr().out
