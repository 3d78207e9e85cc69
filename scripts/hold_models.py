"""Hold what `--model` says of public configurations to what vLLM's own functions compute.

Asks vLLM in its environment (`make engine-vllm`), writes what it says to
tests/data/models/vllm.json and prints the table of docs/memory-waste.md. A test holds ours to the
stored figures, and the stored figures to vLLM where its environment is.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.waste.capacity import longest_request
from bench.waste.models import CACHE_DTYPES, SCALE_BYTES, Model, model_of_config
from bench.waste.tables import Tables, tables_of
from subjects.environments import engine_python

ROOT: Final = Path(__file__).parents[1]
CONFIGS: Final = ROOT / "tests" / "data" / "models" / "configs.json"
STORED: Final = CONFIGS.with_name("vllm.json")
BLOCK_SIZE: Final = 16
MAX_MODEL_LEN: Final = 32_768
MOST_TOKENS: Final = 2**20
IN_FLIGHT: Final = 8_192
POOL_BYTES: Final = 20 * 10**9
NAMES: Final = {"int4": "int4_per_token_head", "int8": "int8_per_token_head"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ours:
    """What we say of a model."""

    model: Model
    tables: Tables

    @classmethod
    def of(cls, described: dict[str, Any]) -> Ours:
        """Read a configuration."""
        model = model_of_config(described["config"], name=described["name"])
        dtype = described.get("cache_dtype", "bf16")
        model = Model(
            name=model.name,
            groups=model.groups,
            element_bytes=CACHE_DTYPES[dtype],
            scale_bytes=SCALE_BYTES.get(dtype, 0),
            ranks=described.get("tensor_parallel", 1),
        )
        return cls(model=model, tables=tables_of(model, block_size=BLOCK_SIZE))

    def figures(self) -> dict[str, Any]:
        """What vLLM is asked for, in the same form."""
        model, tables = self.model, self.tables
        blocks = POOL_BYTES // tables.block_bytes
        groups = [
            [group.layers, model.state_of(group) or int(model.layer_bytes(group))]
            for group in model.groups
        ]
        longest = longest_request(tables, blocks, in_flight=IN_FLIGHT, most=MOST_TOKENS)
        return {
            "groups": sorted(groups),
            "tables": sum(table.count for table in tables.tables),
            "block_bytes": tables.block_bytes,
            "blocks": blocks,
            "longest": longest,
            "concurrency": blocks / tables.blocks(MAX_MODEL_LEN, in_flight=IN_FLIGHT),
        }


def described() -> list[dict[str, Any]]:
    """The configurations."""
    found: list[dict[str, Any]] = json.loads(CONFIGS.read_text())
    return found


def ask_vllm() -> list[dict[str, Any]]:
    """Let vLLM compute all of them. Raises SubjectError: its environment is not there."""
    questions = [
        {
            "config": each["config"],
            "tensor_parallel": each.get("tensor_parallel", 1),
            "cache_dtype": NAMES.get(name := each.get("cache_dtype", "auto"), name),
            "block_size": BLOCK_SIZE,
            "max_model_len": MAX_MODEL_LEN,
            "most": MOST_TOKENS,
            "in_flight": IN_FLIGHT,
            "pool_bytes": POOL_BYTES,
        }
        for each in described()
    ]
    said = subprocess.run(
        [str(engine_python("vllm")), "-W", "ignore", str(ROOT / "scripts" / "vllm_capacity.py")],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    answers: list[dict[str, Any]] = json.loads(said.splitlines()[-1])
    for answer in answers:
        if "groups" in answer:
            answer["groups"] = sorted(each[1:] for each in answer["groups"])
    return answers


def table(stored: list[dict[str, Any]]) -> str:
    """The table of the docs."""
    lines = [
        "| model | kind | layers x bytes of a token | tables | blocks | longest | at once |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each, theirs in zip(described(), stored, strict=True):
        ours = Ours.of(each)
        groups = ", ".join(
            f"{group.layers} x "
            + (
                f"{ours.model.state_of(group):,} a request"
                if group.state_bytes
                else f"{int(ours.model.layer_bytes(group)):,}"
                + ("" if group.window is None else f" behind {group.window:,}")
            )
            for group in ours.model.groups
        )
        mine = ours.figures()
        cells = [
            f"{mine[name]:,}"
            if mine[name] == theirs[name]
            else f"{mine[name]:,} / {theirs[name]:,}"
            for name in ("tables", "blocks", "longest")
        ]
        cells.append(f"{mine['concurrency']:.2f}")
        lines.append(f"| {each['name']} | {each['kind']} | {groups} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Ask, store and print."""
    stored = ask_vllm()
    rows = ",\n".join(json.dumps(each) for each in stored)
    STORED.write_text(f"[\n{rows}\n]\n")
    print(table(stored))


if __name__ == "__main__":
    main()
