"""docs/questions.md: what its commands print is what stands there, and what its answers quote."""

import re

import pytest

from scripts.answer_questions import PAGE, answered

SECTIONS = {
    section.partition("\n")[0]: section
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
}
FIGURE = re.compile(r"\d+(?:[.,]\d+)*")


def test_every_question_has_a_command_and_an_answer() -> None:
    assert len(SECTIONS) >= 12
    for question, section in SECTIONS.items():
        assert question.endswith("?")
        assert section.count("$ pagedbench waste ") == 1
        assert len(section.rpartition("```\n")[2].split()) > 10


@pytest.mark.parametrize("question", SECTIONS)
def test_a_command_prints_what_the_page_shows_and_the_answer_quotes_it(question: str) -> None:
    section = SECTIONS[question]
    assert answered(section) == section, "run python -m scripts.answer_questions"
    shown, _, answer = section.rpartition("```\n")
    for figure in FIGURE.findall(re.sub(r"`[^`]*`", "", answer)):
        assert re.search(rf"(?<![\d.,]){re.escape(figure)}(?!\d)", shown), figure
