"""Where the public traces lie, for the tests that read them."""

import os
from pathlib import Path

import pytest

from helpers.places import ROOT

FILES = {
    "azure-conv": "azure_llm_2023_conv.csv",
    "azure-code": "azure_llm_2023_code.csv",
    "sharegpt": "sharegpt_lengths_llama2.csv",
    "sharegpt-first-turns": "sharegpt_lengths_llama2.csv",
    "mooncake-conv": "mooncake_conversation.jsonl",
}


def trace_folder() -> Path:
    """Find the traces: PAGEDBENCH_TRACES, else the folder that is kept beside a checkout."""
    if stated := os.environ.get("PAGEDBENCH_TRACES"):
        return Path(stated)
    return ROOT.parent / "shared" / "traces"


def published_file(name: str) -> Path:
    """Find a trace, plain or gzip; where it is not at hand, the test is skipped."""
    for path in (trace_folder() / FILES[name], trace_folder() / f"{FILES[name]}.gz"):
        if path.exists():
            return path
    return pytest.skip(f"no {FILES[name]}(.gz) in {trace_folder()}; point PAGEDBENCH_TRACES to it")
