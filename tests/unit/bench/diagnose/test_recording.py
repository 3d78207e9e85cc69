"""`pagedbench record`: what it keeps of a running server, and how it ends."""

import gzip
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.diagnose import recording
from bench.diagnose.readers import read_all
from bench.diagnose.recording import Budget, Growing, Wanted, record
from bench.diagnose.scraping import fetch
from reference.errors import BadInput

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 7.0
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 4096.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{engine="0",model_name="tiny"} 1.7e9
# TYPE python_gc_objects_collected_total counter
python_gc_objects_collected_total{generation="0"} 12.0
"""


@contextmanager
def server(answer: Iterator[str | None]) -> Iterator[str]:
    """The address of a server that gives these pages one after the other; None is a 500."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = next(answer)
            self.send_response(200 if page is not None else 500)
            self.end_headers()
            self.wfile.write((page or "").encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.server_port}/metrics"
        listening.shutdown()


def always(*pages: str | None) -> Iterator[str | None]:
    yield from pages
    while True:
        yield pages[-1]


def recorded(folder: Path, **wanted: object) -> recording.Recording:
    options = {"every_s": 0.05, "last_s": 0.5, "folder": folder} | wanted
    return record(Wanted(**options), threading.Event(), lambda _: None)  # type: ignore[arg-type]


def text(file: Path) -> str:
    return gzip.decompress(file.read_bytes()).decode()


def test_known_metrics_are_kept_and_diagnose_reads_them(tmp_path):
    with server(always(PAGE)) as address:
        made = recorded(tmp_path / "made", metrics=(address,))
    kept = text(tmp_path / "made" / "metrics.prom.gz")
    assert "python_gc" not in kept
    assert "_created" not in kept
    assert "HELP" not in kept
    assert made.ended == "time"
    seen = read_all([tmp_path / "made"])
    (running,) = seen.named("running")
    assert set(running.values) == {7.0}
    assert len(running.values) == made.inputs[0].taken >= 1


def test_every_metric_is_kept_with_all(tmp_path):
    with server(always(PAGE)) as address:
        recorded(tmp_path / "made", metrics=(address,), every_metric=True)
    assert "python_gc_objects" in text(tmp_path / "made" / "metrics.prom.gz")


def test_a_failure_leaves_a_mark_and_attempts_become_rare(tmp_path):
    with server(always(PAGE, None)) as address:
        made = recorded(tmp_path / "made", metrics=(address,), last_s=1.0)
    lines = text(tmp_path / "made" / "metrics.prom.gz").splitlines()
    marks = [line for line in lines if "FAILED" in line]
    assert len(marks) == made.inputs[0].failed
    assert "FAILED HTTP 500 Internal Server Error" in marks[0]
    assert 2 <= len(marks) <= 6, "ten attempts at twenty a second without backing off"
    assert len(read_all([tmp_path / "made"]).failed_s) == len(marks)


def test_two_servers_are_told_apart(tmp_path):
    other = PAGE.replace("7.0", "9.0")
    with server(always(PAGE)) as one, server(always(other)) as two:
        recorded(tmp_path / "made", metrics=(one, two))
    found = read_all([tmp_path / "made"]).named("running")
    assert sorted(each.values[0] for each in found) == [7.0, 9.0]
    assert len({each.engine for each in found}) == 2


def test_a_page_without_metrics_is_no_recording(tmp_path):
    with (
        server(always("<html>hello</html>")) as address,
        pytest.raises(BadInput, match="no metrics"),
    ):
        recorded(tmp_path / "made", metrics=(address,))


def test_nobody_there_is_said_with_the_address(tmp_path):
    said = r"127\.0\.0\.1:1/metrics: Connection refused; is the server running"
    with pytest.raises(BadInput, match=said):
        recorded(tmp_path / "made", metrics=("127.0.0.1:1",))
    assert not (tmp_path / "made").exists(), "it is to be tried again with the same words"


def test_what_was_flushed_can_be_read_while_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FLUSH_S", 0.0)
    file = Growing(tmp_path / "lines.gz", Budget(10**6))
    for number in range(5):
        file.add(f"{number}\n")
        assert text(tmp_path / "lines.gz").splitlines()[-1] == str(number)


def test_it_ends_before_it_is_larger_than_it_may_be(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FLUSH_S", 0.0)
    monkeypatch.setattr(recording, "RESERVED_BYTES", 1000)
    with server(always(PAGE)) as address:
        made = recorded(tmp_path / "made", metrics=(address,), max_bytes=3000, last_s=20.0)
    assert made.ended == "size"
    assert sum(file.stat().st_size for file in (tmp_path / "made").iterdir()) <= 3000
    assert len(read_all([tmp_path / "made"]).named("running")[0].values) > 3


def test_a_folder_that_holds_something_is_refused(tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(BadInput, match="not empty"):
        recorded(tmp_path, metrics=("localhost:1",))


@pytest.mark.parametrize("address", ["ftp://host/metrics", "http://", "a b", "http://h:99999/"])
def test_what_is_no_address_is_refused(tmp_path, address):
    with pytest.raises(BadInput, match="--metrics"):
        Wanted(metrics=(address,), folder=tmp_path)


def test_passwords_are_not_recorded(tmp_path):
    with server(always(PAGE)) as address:
        secret = address.replace("http://", "http://user:hunter2@") + "?token=hunter3"
        made = recorded(tmp_path / "made", metrics=(secret,))
    assert made.inputs[0].taken
    assert "hunter" not in (tmp_path / "made" / "recording.json").read_text()


def test_an_answer_that_drips_is_given_up(monkeypatch):
    class Dripping(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(BrokenPipeError, ConnectionResetError):
                for _ in range(100):
                    self.wfile.write(b"x")
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setattr("bench.diagnose.scraping.TIMEOUT_S", 0.2)
    with ThreadingHTTPServer(("127.0.0.1", 0), Dripping) as listening:
        listening.daemon_threads = True
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            fetch(f"http://127.0.0.1:{listening.server_port}/metrics", threading.Event())
        listening.shutdown()
    assert time.monotonic() - began < 1.5


LINES = """\
INFO 11-30 13:06:09 [api.py:1] non-default args: {'api_key': ['sk-secret'], 'max_num_seqs': 32}
INFO 11-30 13:06:40 [logger.py:36] Received request cmpl-1: prompt: 'my password is secret', params
INFO 11-30 13:06:50 [x.py:1] Engine 000: Avg prompt throughput: 103.5 tokens/s, \
Avg generation throughput: 10.2 tokens/s, Running: 24 reqs, Waiting: 3 reqs, \
GPU KV cache usage: 75.8%
"""


def test_the_log_is_followed_without_its_text(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "FLUSH_S", 0.0)
    monkeypatch.setattr("bench.diagnose.following._POLL_S", 0.02)
    log = tmp_path / "vllm.log"
    log.write_text(LINES)
    made = tmp_path / "made"
    thread = threading.Thread(target=lambda: recorded(made, log=log, last_s=1.0))
    thread.start()
    time.sleep(0.3)
    log.rename(tmp_path / "vllm.log.1")  # as logrotate does
    log.write_text(LINES.splitlines()[-1].replace("13:06:50", "13:07:00") + "\n")
    thread.join()
    kept = text(made / "server.log.gz")
    assert "secret" not in kept
    seen = read_all([made])
    assert seen.config["max_num_seqs"] == 32
    (waiting,) = seen.named("waiting")
    assert waiting.values.tolist() == [3.0, 3.0]
    assert waiting.times_s[1] - waiting.times_s[0] == 10.0


def test_the_command_ends_with_what_it_did(tmp_path):
    with server(always(PAGE)) as address:
        words = ["record", "--metrics", address, "-o", str(tmp_path / "made"), "--for", "1s"]
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "scrapes" in result.output
    said = json.loads((tmp_path / "made" / "recording.json").read_text())
    assert said["ended"] == "time"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_recorded(tmp_path, number):
    def until_signalled() -> Iterator[str]:
        yield from [PAGE] * 3
        os.kill(os.getpid(), number)
        yield from itertools.repeat(PAGE)

    with server(until_signalled()) as address:
        words = ["record", "--metrics", address, "-o", str(tmp_path / "made"), "--every", "100ms"]
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 130, result.output
    assert "scrapes" in result.output
    assert json.loads((tmp_path / "made" / "recording.json").read_text())["ended"] == "stopped"
    assert len(read_all([tmp_path / "made"]).named("running")[0].values) >= 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "made"], "nothing to record"),
        (["-o", "made", "--metrics", "h:1", "--every", "1us"], "--every 1us"),
        (["-o", "made", "--metrics", "h:1", "--every", "fast"], "--every fast"),
        (["-o", "made", "--metrics", "h:1", "--for", "0s"], "--for 0s"),
        (["-o", "made", "--metrics", "h:1", "--max-size", "1"], "--max-size 1"),
        (["-o", "made", "--log", "nowhere.log"], "nowhere.log"),
    ],
)
def test_what_cannot_be_recorded_is_refused(tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["record", *words])
    assert result.exit_code == 2
    assert said in result.output
