"""SGLang's Triton kernels: decode, extend (prefill behind a cached prefix), and a merge of two.

They are called as `TritonAttnBackend` does (sglang/srt/layers/attention/triton_backend.py): the
cache as rows of slots, a sequence's slots in `kv_indices`, and of an extend the keys of this step
beside it. Only the files that hold the kernels are read from the wheel; of what they import the
few names that they use are stood in for.

Decode rounds the query to the type of a float8 cache, and the backend pads a batch with sequences
of one token, never of none: neither a float8 cache nor a row without keys is asked.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

import torch
from torch import Tensor

from reference.attention.contract import Capabilities, MergeBatch, PagedBatch, declares
from subjects.attention.peers import prepared_by
from subjects.loading import SubjectError

SPLITS: Final = 8
"""`--triton-attention-num-kv-splits` of SGLang's server."""

_HOME: Final = "sglang.kernels.ops.attention"
_UNEVEN: Final = frozenset({f"layout={name}" for name in ("together", "head-major", "layers")})
"""Layouts whose slots are not equally far apart throughout the pool: SGLang has one stride."""

_kernels: dict[str, Any] = {}


def _prepare(device: str) -> None:
    spec = importlib.util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        raise SubjectError(
            f"sglang is not installed in {sys.prefix}: build its environment with "
            f"'make engine-sglang', or name an interpreter with --engine-python"
        )
    root = Path(spec.submodule_search_locations[0])
    folder = root / "kernels" / "ops" / "attention"
    if not (folder / "merge_state.py").is_file():
        raise SubjectError(f"{root} has no kernels/ops/attention: install sglang 0.5.23")
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    stand_ins: dict[str, dict[str, Any]] = {
        "sglang.srt.environ": {"envs": SimpleNamespace()},  # asked for AMD's alone
        "sglang.srt.utils": {
            "get_device_core_count": lambda _: 0,
            "is_cuda": torch.cuda.is_available,
            **dict.fromkeys(("is_gfx95_supported", "is_gfx1250_supported"), bool),
            "is_hip": lambda: torch.version.hip is not None,
        },
    }
    packages = ("sglang", "sglang.srt", "sglang.kernels", "sglang.kernels.ops", _HOME)
    for name in (*packages, *stand_ins):
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(stand_ins.get(name, {}))
    for name in ("score_mod", "decode_attention", "extend_attention", "merge_state"):
        _kernels[name] = _run(f"{_HOME}.{name}", folder / f"{name}.py")


def _run(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_DECODES: Final = Capabilities(
    kv_dtypes=frozenset(),
    variants=frozenset({"noncausal", "softcap", "sinks"}),
    also=frozenset({"value_size"}),
    declines=_UNEVEN | {"padding", "waiting", "empty", "layout=padded"},
    promises=frozenset({"deterministic", "relabelling"}),
)


@prepared_by(_prepare)
@declares(_DECODES)
def decode(batch: PagedBatch) -> None:
    """Fill `batch.out`; every sequence has a query of one token."""
    _decode(batch, latent=False)


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="latent",
        kv_dtypes=frozenset(),
        head_dims=frozenset({576}),
        value_dims=frozenset({512}),
        variants=frozenset({"noncausal", "softcap", "sinks"}),
        declines=_DECODES.declines,
        promises=_DECODES.promises,
    )
)
def latent(batch: PagedBatch) -> None:
    """The same over latent records."""
    _decode(batch, latent=True)


def _decode(batch: PagedBatch, *, latent: bool) -> None:
    num_tokens, heads, _ = batch.query.shape
    starts, slots = _slots(batch, batch.seq_lens)
    new = batch.query.new_empty
    _kernels["decode_attention"].decode_attention_fwd(
        batch.query,
        _rows(batch.key_cache),
        _rows(batch.value_cache),
        batch.out,
        starts,
        slots,
        new((num_tokens, heads, SPLITS, batch.value_dim), dtype=torch.float32),
        new((num_tokens, heads, SPLITS), dtype=torch.float32),
        torch.full((num_tokens,), SPLITS, dtype=torch.int32, device=batch.query.device),
        SPLITS,
        batch.scale,
        batch.k_scale,
        batch.v_scale,
        logit_cap=batch.softcap or 0.0,
        sinks=batch.sinks,
        has_mla=latent,
    )


@prepared_by(_prepare)
@declares(
    Capabilities(
        kv_dtypes=frozenset(),
        variants=frozenset({"prefill", "window", "softcap", "sinks", "lse"}),
        also=frozenset({"value_size"}),
        declines=_UNEVEN | {"padding", "empty", "layout=padded"},
        promises=frozenset({"deterministic", "relabelling"}),
    )
)
def extend(batch: PagedBatch) -> None:
    """Fill `batch.out` and `batch.lse`: this step's keys are given apart from those before it."""
    counts = batch.query_start_loc.diff()
    before = batch.seq_lens - counts
    starts, slots = _slots(batch, before)
    _, all_slots = _slots(batch, batch.seq_lens)
    ends = batch.seq_lens.cumsum(0)
    here = [
        torch.arange(int(end - count), int(end), device=ends.device)
        for end, count in zip(ends, counts, strict=True)
    ]
    step = all_slots[torch.cat(here)]
    keys, values = _rows(batch.key_cache), _rows(batch.value_cache)
    _kernels["extend_attention"].extend_attention_fwd(
        batch.query,
        keys[step],
        values[step],
        batch.out,
        keys,
        values,
        batch.query_start_loc,
        starts,
        slots,
        custom_mask=None,
        is_causal=True,
        mask_indptr=None,
        max_len_extend=batch.max_query_len,
        k_scale=1.0,
        v_scale=1.0,
        sm_scale=batch.scale,
        logit_cap=batch.softcap or 0.0,
        sliding_window_size=-1 if batch.window is None else batch.window - 1,
        sinks=batch.sinks,
        lse_extend=batch.lse,
    )


@prepared_by(_prepare)
@declares(
    Capabilities(
        kind="merge",
        declines=frozenset({"empty", "many_parts"}),
        promises=frozenset({"deterministic"}),
    )
)
def merge(batch: MergeBatch) -> None:
    """Fill `batch.out` and `batch.lse`; all tensors are dense, and one part is merged with none."""
    outs, lses = list(batch.part_out), list(batch.part_lse)
    if len(outs) == 1:
        outs.append(torch.zeros_like(outs[0]))
        lses.append(torch.full_like(lses[0], -torch.inf))
    dense = [each.contiguous() for pair in zip(outs, lses, strict=True) for each in pair]
    out, lse = _kernels["merge_state"].merge_state_triton(*dense)
    batch.out.copy_(out)
    if batch.lse is not None:
        batch.lse.copy_(lse)


def _rows(cache: Tensor) -> Tensor:
    """[slots, heads, size], a view: no layout that is not declined has slots of other distances."""
    return cache.view(-1, *cache.shape[2:])


def _slots(batch: PagedBatch, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The slots of the first so many tokens of each sequence, one after the other, and where each
    begins.
    """
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    sequence = torch.repeat_interleave(lengths)
    token = torch.arange(len(sequence), device=lengths.device) - starts[sequence]
    size = batch.block_size
    if not len(sequence):
        return starts, token
    block = batch.block_table[sequence, token // size].long()
    return starts, block * size + token % size
