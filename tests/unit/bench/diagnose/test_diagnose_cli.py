"""`pagedbench diagnose`: exit codes, outputs, and what is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import app

RUN = CliRunner()


def scrapes(waiting: int, preempted: int, hits: int = 400) -> str:
    lines = []
    for n in range(40):
        lines += [
            f"# scrape {1_700_000_000 + n}",
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{engine="0"}} {3 + n % 3}',
            f'vllm:num_requests_waiting{{engine="0"}} {waiting}',
            f'vllm:kv_cache_usage_perc{{engine="0"}} {0.97 if preempted else 0.3}',
            f'vllm:num_preemptions_total{{engine="0"}} {preempted * n}',
            f'vllm:request_success_total{{engine="0",finished_reason="stop"}} {n}',
            f'vllm:prompt_tokens_total{{engine="0"}} {500 * n}',
            f'vllm:prefix_cache_queries_total{{engine="0"}} {500 * n}',
            f'vllm:prefix_cache_hits_total{{engine="0"}} {hits * n}',
        ]
    return "\n".join(lines) + "\n"


def run(*arguments: str | Path):
    return RUN.invoke(app, ["diagnose", *map(str, arguments)])


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (scrapes(0, 0), 0, "healthy"),
        (scrapes(9, 2), 1, "pool_too_small"),
        (scrapes(0, 0)[:300], 3, "cannot tell"),
    ],
)
def test_the_exit_code_is_the_verdict(tmp_path, text, code, says):
    (tmp_path / "metrics.prom").write_text(text)
    done = run(tmp_path)
    assert done.exit_code == code, done.output
    assert says in done.output


def test_the_outputs_say_the_same(tmp_path):
    file = tmp_path / "metrics.prom"
    file.write_text(scrapes(9, 2))
    out = {name: tmp_path / f"out.{name}" for name in ("json", "md", "png")}
    done = run(file, "--json", out["json"], "--markdown", out["md"], "--plot", out["png"])
    assert done.exit_code == 1
    record = json.loads(out["json"].read_text())
    assert record["verdict"] == "found"
    cause = record["causes"][0]
    assert cause["mode"] == "pool_too_small"
    assert cause["evidence"][0]["says"] in done.output.replace("\n    ", " ")
    assert cause["alert"] in out["md"].read_text()
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    assert record["given"][0]["items"] == 40


def test_a_malformed_file_is_refused_with_its_line(tmp_path):
    file = tmp_path / "metrics.prom"
    file.write_text(scrapes(0, 0).replace('waiting{engine="0"} 0', 'waiting{engine="0"} x', 1))
    done = run(file)
    assert done.exit_code == 2
    assert f"{file}, line 4" in done.output.replace("\n", "")


def test_what_is_no_input_is_refused(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("to whom it may concern\n")
    assert run(file).exit_code == 2
    assert run(tmp_path / "none").exit_code == 2
