"""The frame of every command: what goes wrong inside decides the exit code, and is said once."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from bench.command.console import SafeConsole
from bench.command.progress import Bar, Lines
from bench.command.session import Session, check_file, session
from bench.command.signals import descendants
from bench.command.words import one_line, percent, plural, printable, seconds
from helpers.places import ROOT
from reference.errors import BadInput

HOSTILE = "name\x1b[31m\x9b2J\r\x07\u202egnp\n::error::planted\n  ::warning::too ##[group]x"


class Record(BaseModel):
    answer: int = 42


def run(body, *, about="the kernel"):
    """Run `body` as the only command."""
    app = typer.Typer()

    @app.command()
    def command() -> None:
        with session(about=about) as it:
            body(it)

    return CliRunner().invoke(app, [])


def raises(error):
    def body(it: Session) -> None:
        raise error

    return body


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (BadInput("--slots 0: give 1 or more"), 2, "error: --slots 0: give 1 or more\n"),
        (KeyboardInterrupt(), 130, "aborted\n"),
        (OSError(28, "No space left on device", "x.json"), 4, "error: x.json cannot be written: "),
        (ValueError("a bug"), 4, "the harness itself failed; this says nothing about the kernel:"),
        (MemoryError(), 4, "the harness itself failed; this says nothing about the kernel:"),
        (FileNotFoundError(2, "No such file", "ours"), 4, "the harness itself failed; "),
        (typer.Exit(5), 5, ""),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_goes_wrong_decides_the_exit_code_and_is_said(error, code, said):
    result = run(raises(error))
    assert result.exit_code == code
    assert result.stderr.startswith(said)
    assert ("Traceback" in result.stderr) == said.startswith("the harness itself failed")
    assert result.stdout == ""


def test_what_fails_of_a_signal_is_no_usage_error():
    def body(it: Session) -> None:
        with it.work(quiet=True):
            os.kill(os.getpid(), signal.SIGTERM)
            raise BadInput("a1b2c3: git died")

    assert run(body).exit_code == 130


def test_an_error_outside_every_command_exits_4():
    code = "from unittest import mock; import bench.cli; "
    code += "mock.patch('bench.commands.app.app', side_effect=RuntimeError('planted')).start(); "
    ended = python(code + "bench.cli.main()")
    assert ended.returncode == 4
    assert "the harness itself failed" in ended.stderr


# Outputs


def test_a_report_is_written_and_shown(tmp_path):
    file = tmp_path / "record.json"
    result = run(lambda it: it.report(Record(), file, lambda: it.out.say("forty-two")))
    assert (result.exit_code, result.stdout) == (0, "forty-two\n")
    assert file.read_text() == '{\n  "answer": 42\n}\n'


def test_where_one_report_cannot_be_written_the_others_are_and_the_code_says_so(tmp_path):
    def body(it: Session) -> None:
        it.write("--markdown", Path("/dev/full"), lambda: "lost")
        it.deliver("standard output", lambda: 1 / 0)
        it.write("--junit", tmp_path / "kept.xml", lambda: "kept")
        it.report(Record(), tmp_path / "gone" / "record.json", lambda: it.out.say("shown"))
        it.end(1)

    result = run(body)
    assert result.exit_code == 4
    assert result.stdout == "shown\n"
    assert (tmp_path / "kept.xml").read_text() == "kept"
    assert "error: --markdown /dev/full cannot be written: No space left" in result.stderr
    assert "error: --json " in result.stderr
    assert "Traceback" in result.stderr, "of the bug alone"
    assert "ZeroDivisionError" in result.stderr
    assert "OSError" not in result.stderr


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("gone/record.json", "the folder gone does not exist; make it"),
        (".", "that is a folder; name a file in it"),
        ("x" * 300, "name too long"),
        ("a\0b/record.json", "does not exist"),
        ("closed/record.json", "no permission to write there; choose another file"),
    ],
)
def test_a_file_that_cannot_be_written_is_refused_before_the_work(
    file, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: "closed" not in str(path))
    with pytest.raises(BadInput, match=f"(?i)--json .*{message}"):
        check_file("--json", Path(file))


PRINTS = """
import sys; sys.path.insert(0, {root!r})
from unittest import mock
import typer, bench.cli, bench.commands.app
from bench.command.session import session
app = typer.Typer()
@app.command()
def command():
    with session(about="it") as it:
        for number in range(5000):
            it.out.say(f"line {{number}}")
        it.end(1)
bench.commands.app.app = app
bench.cli.main()
"""


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [("true", 1, ""), ("", 4, "standard output cannot be written: ")],
)
def test_a_reader_that_leaves_changes_no_exit_code_and_a_full_disk_does(output, code, said):
    source = PRINTS.format(root=str(ROOT))
    pipe = f"| {output}" if output else "> /dev/full"
    command = f'{sys.executable} -c "$SOURCE" {pipe}; exit ${{PIPESTATUS[0]}}'
    ended = subprocess.run(
        ["bash", "-c", command],
        env={**os.environ, "SOURCE": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == code, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


# Text of subjects


def shown(*renderables, **how) -> str:
    console = SafeConsole()
    with console.capture() as captured:
        console.print(*renderables, **how)
    return captured.get()


def test_printable_text_does_nothing_and_keeps_its_length():
    for text in ("plain", "größer, 中文, 🙂", "two\nlines\tand a tab", ""):
        assert printable(text) == text
    said = printable(HOSTILE + "\ud800\xa0")
    assert len(said) == len(HOSTILE) + 2
    assert all(each.isprintable() or each == "\n" for each in said)
    assert "name␛[31m" in said


def a_table(text: str) -> Table:
    table = Table(text.replace("\n", " "))
    table.add_row(Text(text))
    table.caption = Text(text)
    return table


@pytest.mark.parametrize(
    "make",
    [
        lambda text: text,
        lambda text: Text(text, style="red"),
        lambda text: Panel(Text(text), title=Text(text)),
        lambda text: Text("before ").append(text, style="bold"),
        a_table,
    ],
)
def test_no_renderable_carries_an_escape_through(make):
    said = shown(make(HOSTILE), markup=False, highlight=False)
    assert "gnp" in said
    assert not set(said) & set("\x1b\x9b\r\x07\u202e")


def test_no_line_of_a_subject_is_a_workflow_command(capfd):
    console = SafeConsole(stderr=True)
    console.say(HOSTILE)
    console.say("a.py::test")
    console.print(Text("x" * console.width + "::error::wrapped"))
    said = capfd.readouterr().err
    assert not re.search(r"(?m)^\s*::", said)
    assert "##[" not in said
    assert ": :error::planted" in said
    assert "a.py::test" in said, "within a line it is no command"


def test_words():
    assert plural(1, "launch", "launches") == "1 launch"
    assert plural(1200, "problem") == "1,200 problems"
    assert percent(1.049) == "+4.9 %"
    assert [seconds(value) for value in (float("nan"), 0.0, 3e-6, 12.34)] == [
        "-",
        "0 ns",
        "3 us",
        "12.3 s",
    ]
    assert one_line("a\nb\x1bc", limit=4) == "a..."


# Progress


def test_progress_in_a_log_is_a_plain_line_for_each_step_also_one_that_is_cut_short(capfd):
    with Lines(SafeConsole(stderr=True)) as lines:
        lines.begin("cross-checking [red]a[/red]_name_that_is_long.py:attend", 2000)
        lanes = [threading.Thread(target=lines.advance, args=(500,)) for _ in range(3)]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        assert capfd.readouterr().err == ""
        lines.begin("timing decode", 11)
    assert re.sub(r"\d+ s", "N s", capfd.readouterr().err).splitlines() == [
        "cross-checking [red]a[/red]_name_that_is_long.py:attend: 1,500 of 2,000 in N s",
        "timing decode: 0 of 11 in N s",
    ]


def test_a_long_step_says_now_and_then_how_far_it_is(capfd):
    with Lines(SafeConsole(stderr=True), every_s=0.05) as lines:
        lines.begin("starting")
        lines.tell("7 programs")
        said = ""
        deadline = time.monotonic() + 60
        while "7 programs" not in said and time.monotonic() < deadline:
            time.sleep(0.02)
            said += capfd.readouterr().err
    assert "7 programs\n" in said


def test_progress_on_a_terminal_shows_names_as_they_are():
    output = StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with Bar(console) as bar:
        bar.begin("cross-checking odd[/red].py:100:attend", 4)
        bar.advance(3)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.getvalue())
    assert "cross-checking odd[/red].py:100:attend" in plain
    assert "3/4" in plain


# Signals


def python(code: str) -> subprocess.CompletedProcess:
    start = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_the_work_and_what_was_found_is_shown(number):
    def body(it: Session) -> None:
        with it.work(quiet=True):
            os.kill(os.getpid(), number)
            assert it.stop.wait(60)
        it.out.say("found")
        it.end(130)

    before = signal.getsignal(number)
    result = run(body)
    assert (result.exit_code, result.stdout) == (130, "found\n")
    assert signal.getsignal(number) is before


def test_work_that_looks_at_nothing_is_interrupted():
    def body(it: Session) -> None:
        try:
            with it.work(quiet=True, raising=True):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
        except KeyboardInterrupt:
            it.out.say("found")

    assert run(body).stdout == "found\n"


def test_an_echo_of_the_first_signal_cuts_nothing_short(monkeypatch):
    monkeypatch.setattr("bench.command.session.SETTLING_S", 60.0)

    def body(it: Session) -> None:
        with it.work(quiet=True):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
        it.out.say("found")

    assert run(body).stdout == "found\n"


def test_a_second_signal_ends_the_process_and_all_that_it_started():
    ended = python(
        "import os, signal, subprocess, time\n"
        "import bench.command.session\n"
        "bench.command.session.SETTLING_S = 0.05\n"
        "from bench.command.session import Session\n"
        "sleeper = 'import time; time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', sleeper], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "with Session('it').work(quiet=True):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(0.1)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(600)\n"
    )
    assert ended.returncode == 130
    assert "Traceback" not in ended.stderr
    assert "aborted" in ended.stderr
    deadline = time.monotonic() + 60
    while (alive := is_alive(int(ended.stdout))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive


def is_alive(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_descendants_are_found_two_generations_deep():
    before = set(descendants())  # a nursery, where a test of `check` ran in this process
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"])
    try:
        deadline = time.monotonic() + 60
        while len(found := set(descendants()) - before) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert child.pid in found
        assert len(found) == 2
    finally:
        for process in found:
            os.kill(process, signal.SIGKILL)
        child.wait()
