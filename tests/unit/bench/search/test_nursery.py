"""Children that are forked: started, told apart and ended like those of `subprocess.Popen`."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.search.nursery import DESCRIPTOR, Nursery
from subjects.process import SubjectDied, SubjectProcess

SAYS = (
    "import json, os, sys\n"
    "answers = os.fdopen(int(os.environ['PAGEDBENCH_ANSWERS']), 'w', buffering=1)\n"
    "def say(**said): answers.write(json.dumps(said) + '\\n')\n"
    "say()\n"
    "say(arguments=sys.argv[1:], folder=os.getcwd(), pid=os.getpid(), group=os.getpgrp(),\n"
    "    mine=os.environ.get('MINE'), imported='tomllib' in sys.modules)\n"
)
ANSWERS = "for line in sys.stdin: say(question_number=json.loads(line)['question_number'])\n"


@pytest.fixture
def nursery() -> Iterator[Nursery]:
    nursery = Nursery.started("subjects.environments", os.environ)
    yield nursery
    nursery.close()


def child(nursery: Nursery, does: str, *arguments: str, **options: object) -> SubjectProcess:
    command = [sys.executable, "-u", "-P", "-c", SAYS + does, *arguments]
    return SubjectProcess(command, popen=nursery.popen, **options)


def test_a_child_has_its_arguments_environment_and_folder(nursery, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINE", "1")
    with child(nursery, ANSWERS, "a", "b") as one, child(nursery, ANSWERS) as other:
        said = one.introduce()
        assert said["arguments"] == ["a", "b"]
        assert said["mine"] == "1"
        assert Path(said["folder"]) == tmp_path
        assert said["group"] == said["pid"] != other.introduce()["group"]
        assert one.ask({}) == {} == other.ask({})


@pytest.mark.parametrize(
    ("does", "how"),
    [
        ("sys.stdin.readline(); print('last words'); sys.exit(3)", "ended with code 3: last words"),
        ("sys.stdin.readline(); raise KeyError('nothing')", "ended with code 1: Traceback"),
        ("sys.stdin.readline(); os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("import time; time.sleep(60)", "gave no answer within 0.1 s"),
    ],
)
def test_how_a_child_ended_is_said(nursery, does: str, how: str) -> None:
    with child(nursery, does, time_limit_s=0.1 if "sleep" in does else 60.0) as one:
        with pytest.raises(SubjectDied) as death:
            one.ask({})
        assert death.value.how.startswith(how)
        assert one.introduce()["group"]  # started again


def test_a_child_that_is_handed_it_has_children_out_of_its_own_group(nursery) -> None:
    starts = (
        "from bench.search.nursery import Nursery\n"
        "own = Nursery.inherited().popen([sys.executable, '-c', 'import time; time.sleep(60)'],\n"
        "    stdin=-1, stdout=sys.stdout, stderr=sys.stderr, env={}, pass_fds=[],\n"
        "    start_new_session=True)\n"
        "number = json.loads(sys.stdin.readline())['question_number']\n"
        "say(question_number=number, own=own.pid, group=os.getpgid(own.pid))\n" + ANSWERS
    )
    handed = {DESCRIPTOR: str(nursery.descriptor)}
    with child(nursery, starts, environment=handed, pass_fds=[nursery.descriptor]) as one:
        said = one.ask({})
        assert said["group"] == said["own"] != one.introduce()["group"]
    os.kill(said["own"], 9)


def test_where_it_ended_children_are_started_as_ever(nursery) -> None:
    with child(nursery, ANSWERS) as before:
        before.introduce()
        nursery._process.kill()
        nursery._process.wait()
        with pytest.raises(SubjectDied, match="SIGKILL"):
            before.ask({})
        assert before.ask({}) == {}
        assert isinstance(before._child, subprocess.Popen)
