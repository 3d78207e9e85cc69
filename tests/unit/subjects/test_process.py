"""The protocol with a child, on children of a few lines that import next to nothing."""

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from subjects import process
from subjects.process import NotStarted, SubjectDied, SubjectProcess

# What every well-behaved child does; {} stands for what it does with a question.
CHILD = """
import faulthandler, json, os, signal, subprocess, sys, time
faulthandler.register(signal.SIGUSR1)
answers = os.fdopen(int(os.environ["PAGEDBENCH_ANSWERS"]), "w", buffering=1)
def say(answer): answers.write(json.dumps(answer) + "\\n")
say({{}})
say({{"pid": os.getpid()}})
for line in sys.stdin:
    question = json.loads(line)
    number = question.pop("question_number")
    {}
    say({{"heard": question, "question_number": number}})
"""


def child(does: str = "pass", **options) -> SubjectProcess:
    return program(CHILD.format(does), **options)


def program(source: str, **options) -> SubjectProcess:
    return SubjectProcess([sys.executable, "-u", "-c", source], **options)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pid: int) -> None:
    give_up = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < give_up:
        time.sleep(0.01)
    assert not is_alive(pid)


def test_one_child_introduces_itself_and_answers_every_question():
    with child() as subject:
        pid = subject.introduce()["pid"]
        assert [subject.ask({"n": n}) for n in range(3)] == [{"heard": {"n": n}} for n in range(3)]
        assert subject.introduce()["pid"] == pid
    assert not is_alive(pid)


def test_nothing_is_started_before_it_is_needed(monkeypatch):
    def refused(*_: object, **__: object) -> None:
        raise OSError("started a child")

    monkeypatch.setattr(process.subprocess, "Popen", refused)
    with child():
        pass
    with child() as subject, pytest.raises(NotStarted, match="started a child"):
        subject.introduce()


def test_the_environment_is_added_to_this_ones(monkeypatch):
    monkeypatch.setenv("OURS", "1")
    says = 'question = [os.environ["OURS"], os.environ["ITS"]]'
    with child(says, environment={"ITS": "2"}) as subject:
        assert subject.ask({}) == {"heard": ["1", "2"]}


def test_what_a_subject_prints_is_no_answer():
    with child("""print('{"heard": "a lie"}'); sys.stderr.write("noise" * 50_000)""") as subject:
        assert subject.ask({"n": 1}) == {"heard": {"n": 1}}
        assert subject.ask({"n": 2}) == {"heard": {"n": 2}}


@pytest.mark.parametrize(
    ("does", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "was killed by signal 40"),
        ("os._exit(0)", "ended with code 0"),
        ("sys.exit(3)", "ended with code 3"),
    ],
)
def test_a_child_that_dies_says_how_and_the_next_question_starts_another(does, how):
    with child(f'print("about to"); {does}') as subject:
        first = subject.introduce()["pid"]
        with pytest.raises(SubjectDied) as death:
            subject.ask({})
        assert death.value.how == f"{how}: about to"
        assert not death.value.timed_out
        assert subject.introduce()["pid"] != first


def test_a_child_that_died_between_two_questions_is_noticed():
    with child() as subject:
        pid = subject.introduce()["pid"]
        os.kill(pid, 9)
        wait_until_gone(pid)
        with pytest.raises(SubjectDied, match="was killed by SIGKILL"):
            subject.ask({})
        assert subject.ask({"n": 1}) == {"heard": {"n": 1}}


def test_last_words_are_about_the_last_question_only():
    with child('print("question", question["n"]); question["n"] == 2 and os._exit(1)') as subject:
        subject.ask({"n": 0})
        subject.ask({"n": 1})
        with pytest.raises(SubjectDied, match=r"^ended with code 1: question 2$"):
            subject.ask({"n": 2})


def test_of_many_last_words_the_last_are_kept():
    with child('print("first" + 9000 * "x" + "last"); os._exit(1)') as subject:
        with pytest.raises(SubjectDied) as death:
            subject.ask({})
        words = death.value.how.removeprefix("ended with code 1: ")
        assert words == "x" * (process.STDERR_TAIL - 4) + "last"


def test_the_list_of_extension_modules_does_not_push_the_traceback_out():
    does = 'print("Extension modules: " + "numpy, " * 999); print("here"); os._exit(1)'
    with child(does) as subject, pytest.raises(SubjectDied, match=r"^ended with code 1: here$"):
        subject.ask({})


def test_a_child_that_hangs_is_ended_and_says_where_it_was():
    with child("time.sleep(3600)", time_limit_s=0.2) as subject:
        pid = subject.introduce()["pid"]
        with pytest.raises(SubjectDied) as death:
            subject.ask({})
        assert death.value.timed_out
        assert death.value.how.startswith("gave no answer within 0.2 s: ")
        assert 'File "<string>", line' in death.value.how
        assert not is_alive(pid)


def test_starting_has_a_limit_of_its_own():
    slow = "import time; time.sleep(0.5)" + CHILD.format("pass")
    with program(slow, time_limit_s=0.1) as subject:
        assert subject.ask({"n": 1}) == {"heard": {"n": 1}}


def test_a_child_that_does_not_come_to_its_subject_says_nothing_about_it(monkeypatch):
    with (
        program("import no_such_module") as subject,
        pytest.raises(NotStarted, match=r"code 1: Traceback(.|\n)*no_such_module"),
    ):
        subject.introduce()
    with (
        SubjectProcess(["/no/such/python"]) as subject,
        pytest.raises(NotStarted, match=r"/no/such/python: .*No such file"),
    ):
        subject.ask({})
    monkeypatch.setattr(process, "START_LIMIT_S", 0.2)
    with program("import time; time.sleep(3600)") as subject, pytest.raises(NotStarted):
        subject.ask({})


def test_what_fails_after_the_first_line_is_the_subjects():
    source = CHILD.partition('say({{"pid"')[0].format() + 'print("importing"); sys.exit(7)'
    with program(source) as subject, pytest.raises(SubjectDied, match=r"code 7: importing$"):
        subject.introduce()


def test_kill_ends_the_wait_of_another_thread_and_every_later_start():
    subject = child("time.sleep(3600)")
    pid = subject.introduce()["pid"]
    deaths: list[SubjectDied] = []

    def wait() -> None:
        for _ in range(2):
            try:
                subject.ask({})
            except SubjectDied as death:
                deaths.append(death)

    waiting = threading.Thread(target=wait)
    waiting.start()
    subject.kill()
    waiting.join(30)
    assert [death.how for death in deaths] == ["was killed by SIGKILL", "was ended"]
    assert not is_alive(pid)
    subject.close()


def test_what_a_child_started_ends_with_it():
    starts = 'question = subprocess.Popen(["sleep", "3600"]).pid'
    with child(starts) as subject:
        grandchild = subject.ask({})["heard"]
        assert is_alive(grandchild)
    wait_until_gone(grandchild)  # killed at once, but reaped by somebody else


def test_a_dead_child_is_noticed_although_its_own_child_holds_the_pipe_open():
    forks = "os.fork() or time.sleep(3600); os._exit(5)"
    with child(forks, time_limit_s=20.0) as subject, pytest.raises(SubjectDied, match="code 5"):
        subject.ask({})


def test_a_child_that_closes_its_answers_and_lives_on_is_ended(monkeypatch):
    monkeypatch.setattr(process, "ENDING_S", 0.1)
    with child("answers.close(); time.sleep(3600)") as subject:
        pid = subject.introduce()["pid"]
        with pytest.raises(SubjectDied, match="closed its answers and lived on"):
            subject.ask({})
        assert not is_alive(pid)


@pytest.mark.parametrize(
    ("does", "how"),
    [
        ('answers.write("garbage\\n")', "it wrote 'garbage' where answers go, which is no JSON"),
        ('os.write(answers.fileno(), b"\\xff\\xfe\\n")', "which is no JSON"),
        ('answers.write("[" * 100_000 + "\\n")', "which is no JSON"),
        ("say([1, 2])", "it wrote '[1, 2]' where answers go, which is no JSON object"),
        ('answers.write("half of ")', "it wrote 'half of {"),
        ("say({'status': 'passed'})", "which is the answer to no question"),
        ("say({'question_number': 0})", "which is the answer to no question"),
    ],
)
def test_what_a_subject_says_on_the_pipe_is_no_answer_and_is_quoted(does, how):
    with child(does) as subject:
        first = subject.introduce()["pid"]
        with pytest.raises(SubjectDied) as death:
            subject.ask({"n": 1})
        assert death.value.how.startswith("broke the protocol: it wrote ")
        assert how in death.value.how
        assert not is_alive(first)
        assert subject.introduce()["pid"] != first


def test_an_answer_ahead_of_its_question_is_not_taken_for_the_next_one():
    ahead = 'question["n"] == 1 and say({"heard": "lies", "question_number": number})'
    with child(ahead) as subject:
        assert subject.ask({"n": 1}) == {"heard": "lies"}  # nobody can tell
        with pytest.raises(SubjectDied, match="the answer to no question"):
            subject.ask({"n": 2})


def test_an_answer_without_an_end_is_cut_short(monkeypatch):
    monkeypatch.setattr(process, "MAX_ANSWER", 100_000)
    with (
        child('[answers.write("x" * 1000) for _ in range(1000)]') as subject,
        pytest.raises(SubjectDied, match="longer than any answer"),
    ):
        subject.ask({})


def test_nobody_answers_in_a_dead_childs_place():
    heir = "os.fork() and os._exit(0); time.sleep(0.5)"
    with child(heir) as subject, pytest.raises(SubjectDied, match="ended with code 0"):
        subject.ask({})


def test_an_introduction_that_is_none_is_the_subjects():
    source = CHILD.partition('say({{"pid"')[0].format() + 'answers.write("me\\n"); time.sleep(9)'
    with program(source) as subject, pytest.raises(SubjectDied, match="'me' where answers go"):
        subject.introduce()


def test_a_child_that_dies_right_after_its_first_line_has_come_to_its_subject(monkeypatch):
    # As the parent sees it on a busy machine: the line is there, and the child is gone.
    code = "import os; os.write(int(os.environ['PAGEDBENCH_ANSWERS']), b'{}\\n'); os._exit(7)"
    subject = SubjectProcess([sys.executable, "-c", code], time_limit_s=5.0)
    select = process.select.select

    def late(*given):
        subject._child.wait()
        return select(*given)

    monkeypatch.setattr(process.select, "select", late)
    with subject, pytest.raises(SubjectDied, match="ended with code 7"):
        subject.introduce()
