"""Block events: digested, recorded from a publisher, and read back."""

import gzip
import json
import socket
import threading
import time
from contextlib import closing

import pytest

from bench.diagnose.digests import Digests
from bench.diagnose.listening import EventListener
from bench.diagnose.observed import CLEARED, REMOVED, STORED
from bench.diagnose.readers import read_all
from bench.diagnose.recording import Budget, Growing, Input, Wanted, record
from bench.workloads.block_events import batch_of
from reference.errors import BadInput

TOKENS = list(range(8))
STORE = {
    "type": "BlockStored",
    "block_hashes": [11, 12],
    "parent_block_hash": None,
    "token_ids": TOKENS,
    "block_size": 4,
    "lora_id": None,
    "medium": "GPU",
    "lora_name": None,
    "extra_keys": [["salt-of-a-customer"], None],
}


def test_equal_blocks_stay_equal_and_nothing_of_them_is_left():
    digests = Digests()
    event = digests.event(STORE)
    again = digests.event(STORE | {"block_hashes": [21, 22], "parent_block_hash": 11})
    assert event["content"] == again["content"]
    assert len(set(event["content"])) == 2
    assert again["parent_block_hash"] == event["block_hashes"][0]
    assert event["extra_keys"][1] is None
    said = json.dumps(event)
    assert "salt-of" not in said
    assert "token_ids" not in said
    assert Digests().event(STORE)["content"] != event["content"], "a guess could be tried"


def test_the_array_form_says_the_same():
    digests = Digests()
    array = ["BlockStored", [11, 12], None, TOKENS, 4, None, "GPU", None, STORE["extra_keys"]]
    assert digests.event(array) == digests.event(STORE)
    assert digests.event(["BlockRemoved", [b"\x01"], "GPU"])["block_hashes"][0]
    assert digests.event(["AllBlocksCleared"]) == {"type": "AllBlocksCleared"}


@pytest.mark.parametrize(
    "broken",
    [
        *(7, "BlockStored", [], ["Nonsense", 1], {"type": "BlockStored"}, [["a"]], {"type": []}),
        *(STORE | {"block_size": 0}, STORE | {"token_ids": None}),
    ],
)
def test_what_is_no_event_is_refused(broken):
    with pytest.raises(ValueError, match="it"):
        Digests().event(broken)


def test_batches_of_three_engines():
    assert batch_of([1.5, [["AllBlocksCleared"]], 3]) == (1.5, [["AllBlocksCleared"]], 3)
    assert batch_of([1.5, []]) == (1.5, [], None)
    assert batch_of({"ts": 1, "events": [], "attn_dp_rank": 2}) == (1.0, [], 2)


def batch(*events: object) -> bytes:
    import msgpack

    return bytes(msgpack.packb([1796071490.5, list(events), 1]))


def listener(tmp_path, monkeypatch):
    """A listener that is given its messages by hand, and its input."""
    pytest.importorskip("msgpack")
    monkeypatch.setattr("bench.diagnose.listening.find_spec", lambda _: True)
    monkeypatch.setattr("bench.diagnose.listening._subscribed", lambda _: None)
    file = Growing(tmp_path / "kv_events.jsonl.gz", Budget(10**6))
    entry = Input("tcp://*:1", file, "kv_events.jsonl.gz")
    return EventListener("tcp://*:1", entry, Digests()), entry


def test_gaps_restarts_and_rubbish_are_counted(tmp_path, monkeypatch):
    heard, entry = listener(tmp_path, monkeypatch)
    for number in (4, 5, 9, 0):
        heard.message([b"", number.to_bytes(8, "big"), batch(STORE)])
    for rubbish in ([b"", b"", b""], [b""], [b"", bytes(8), b"\xc1"], [b"", bytes(8), b"\x01"]):
        heard.message(rubbish)
    entry.file.flush()
    assert (entry.taken, entry.lost, entry.failed) == (4, 3, 4)
    kept = gzip.decompress((tmp_path / "kv_events.jsonl.gz").read_bytes()).decode()
    lines = [json.loads(line) for line in kept.splitlines()]
    assert [line.get("lost") for line in lines] == [None, None, 3, None]
    assert lines[3]["restarted"]
    seen = read_all([tmp_path])
    assert len(seen.events) == 8
    assert seen.events.engine[0] == "1"


def free_socket() -> socket.socket:
    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    return probe


@pytest.mark.parametrize("server_binds", ["tcp://0.0.0.0", "tcp://*", ""])
def test_a_publisher_is_heard_whichever_side_binds(tmp_path, server_binds):
    zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")
    publisher = zmq.Context.instance().socket(zmq.PUB)
    publisher.setsockopt(zmq.LINGER, 0)
    if server_binds:
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
    else:
        with closing(free_socket()) as probe:
            port = probe.getsockname()[1]
        publisher.connect(f"tcp://127.0.0.1:{port}")
    told = f"{server_binds}:{port}" if server_binds else f"tcp://localhost:{port}"
    stop = threading.Event()
    wanted = Wanted(events=(told,), folder=tmp_path / "made", last_s=10.0)
    made = []
    thread = threading.Thread(target=lambda: made.append(record(wanted, stop, lambda _: None)))
    thread.start()
    for number in range(100):
        publisher.send_multipart(
            [b"", number.to_bytes(8, "big"), batch(STORE, ["AllBlocksCleared"])]
        )
        time.sleep(0.01)
    stop.set()
    thread.join()
    publisher.close(0)
    assert made[0].inputs[0].taken > 5
    assert made[0].inputs[0].lost == 0
    assert {STORED, CLEARED} <= set(read_all([tmp_path / "made"]).events.kind.tolist())


def test_missing_packages_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.diagnose.listening.find_spec", lambda _: None)
    wanted = Wanted(events=("tcp://*:5557",), folder=tmp_path / "made")
    with pytest.raises(BadInput, match="pip install pyzmq msgpack"):
        record(wanted, threading.Event(), lambda _: None)


def test_an_endpoint_that_is_none_is_refused(tmp_path):
    pytest.importorskip("zmq", reason="pyzmq is not installed")
    wanted = Wanted(events=("tcp://nowhere",), folder=tmp_path / "made")
    with pytest.raises(BadInput, match="kv-events-config"):
        record(wanted, threading.Event(), lambda _: None)


def test_raw_events_are_digested_as_they_are_read(tmp_path):
    raw = tmp_path / "events.jsonl"
    lines = [
        {"ts": 10.0, "events": [STORE], "data_parallel_rank": 0},
        [11.0, [["BlockRemoved", [12], "GPU"]], 0],
        {"ts": 12.0, "events": [STORE | {"token_ids": TOKENS[::-1], "medium": "STORAGE"}]},
    ]
    raw.write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = read_all([raw]).events
    assert events.kind.tolist() == [STORED, STORED, REMOVED]
    assert events.content[0] != events.content[1] != 0
    assert events.parent.tolist()[:2] == [0, events.block[0]]
    assert events.block[2] == events.block[1]
    assert (events.extra != 0).tolist() == [True, False, False]
