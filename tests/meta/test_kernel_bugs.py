"""Wrong kernels, each of which the project's own checks must reject.

Every bug is one change to the text of `kernels/`. Attention is held to the checks over
drawn problems, cache writes and block copies to `paged.cache`, bit for bit. A harness narrows what
is drawn until the bug can show, and no further. README.md has the table of what rejects what.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
import torch

from helpers import profiles
from helpers.counted_bytes import counted_bytes
from helpers.mutants import (
    MAX_EXAMPLES,
    Caught,
    Harness,
    Kernels,
    Mutant,
    attention,
    caches,
    hunt,
    plant,
)
from reference.attention.checks import LAWS
from reference.attention.problem import INPUT_KINDS, AttentionProblem
from reference.attention.strategies import HEAD_DIMS

README: Final = Path(__file__).with_name("README.md")
TABLE_COMMAND: Final = (
    "TRITON_INTERPRET=1 TRITON_DEFAULT_FP_FUSION=1 PYTHONPATH=.:tests "
    "python -m tests.meta.test_kernel_bugs"
)

RIGHT_EXAMPLES: Final = 4
"""Examples of each harness that the unchanged kernels must pass."""

NOT_AN_EXCEPTION: Final = r"^(?!raised)"
OVERFLOW: Final = "int32 overflow"
NAN: Final = " is nan,"
BESIDE: Final = "wrote (to|between) the rows"


@dataclass(frozen=True, slots=True)
class Bug:
    """A mutant, and how it must come to light."""

    mutant: Mutant
    by: Harness
    """The harness that must reject it."""
    finding: str
    """Pattern of what the harness says. By default anything but an exception: a mutant that does
    not run proves nothing."""
    seen: str
    """Where a bug of the kind was reported, as owner/repository#number."""
    blind: str
    """Why it is not rejected, if it is not: a known gap, and a failure once the gap is closed."""


class Survived(AssertionError):
    """A wrong kernel that was not rejected."""


BUGS: dict[str, Bug] = {}


def bug(
    name: str,
    file: str,
    *edits: tuple[str, str],
    by: Harness,
    finding: str = NOT_AN_EXCEPTION,
    seen: str = "",
    blind: str = "",
) -> None:
    """Put a bug on the list."""
    assert name not in BUGS, f"two bugs are called {name}"
    BUGS[name] = Bug(Mutant(name, file, edits), by, finding, seen, blind)


SMALL: Final = (16, 16)
DECODE = attention(prefill=False, tiles=SMALL)
SPLIT = attention(prefill=False, tiles=SMALL, splits=3)
MANY_SPLITS = attention(problem="(q1 k500) d16 b16 fp32", tiles=SMALL, splits=64)
PREFILL = attention(prefill=True, tiles=SMALL)
WRITE, COPY = caches("write"), caches("copy")

# Which tokens: lengths, tiles and splits

bug(
    "last_token_lost",
    "decode",
    ("end_key = tl.load(seq_lens + sequence)", "end_key = tl.load(seq_lens + sequence) - 1"),
    by=DECODE,
)
bug(
    "stale_slot_read",
    "decode",
    ("end_key = tl.load(seq_lens + sequence)", "end_key = tl.load(seq_lens + sequence) + 1"),
    by=DECODE,
)
bug(
    "partial_tile_lost",
    "decode",
    ("(seq_len + BLOCK_N - 1) // BLOCK_N", "seq_len // BLOCK_N"),
    by=DECODE,
)
bug(
    "partial_tile_taken_for_a_whole_one",
    "sweep",
    ("tl.maximum(all_see_until // BLOCK_N,", "tl.maximum(tl.cdiv(all_see_until, BLOCK_N),"),
    by=DECODE,
    finding=NAN,
)
bug(
    "padding_counted_in_the_denominator",
    "sweep",
    ("(token < end_key)[None, :]", "(token < end_key + 1)[None, :]"),
    by=DECODE,
    seen="flashinfer-ai/flashinfer#3716",
)
bug(
    "values_of_padding_not_masked",
    "sweep",
    (
        "values = tl.load(values_at, mask=inside[:, None], other=0.0)",
        "values = tl.load(values_at)",
    ),
    by=DECODE,
    finding=NAN,
    seen="Dao-AILab/flash-attention#2374",
)
bug(
    "unmasked_keys_under_an_additive_mask",
    "sweep",
    ("keys = tl.load(keys_at, mask=inside[None, :], other=0.0)", "keys = tl.load(keys_at)"),
    (
        'logits = tl.where(seen, logits, float("-inf"))',
        'logits += tl.where(seen, 0.0, float("-inf"))',
    ),
    by=DECODE,
    finding=NAN,
)
bug(
    "remainder_of_the_split_lost",
    "decode",
    (
        "tl.minimum(begin + split_tiles, end_tile)",
        "tl.minimum(begin + (end_tile - first_tile) // parts, end_tile)",
    ),
    by=SPLIT,
)
bug(
    "splits_overlap_by_a_tile",
    "decode",
    (
        "tl.minimum(begin + split_tiles, end_tile)",
        "tl.minimum(begin + split_tiles + 1, end_tile)",
    ),
    by=SPLIT,
)
bug(
    "last_split_not_merged",
    "merge",
    ("real = split < num_splits", "real = split < num_splits - 1"),
    by=SPLIT,
)
bug(
    "splits_start_at_the_first_tile",
    "decode",
    ("begin = first_tile + split * split_tiles", "begin = split * split_tiles"),
    by=attention(prefill=False, tiles=SMALL, splits=3, window=True),
)
bug(
    "split_behind_the_end_answers_for_its_sequence",
    "decode",
    ("(split > 0) & (begin >= end_tile)", "(split > 0) & (begin > end_tile)"),
    by=SPLIT,
)

# Which page

bug(
    "page_off_by_one",
    "sweep",
    ("tl.load(table_row + start // BLOCK_SIZE)", "tl.load(table_row + start // BLOCK_SIZE + 1)"),
    by=attention(prefill=False, tiles=SMALL, block_size=32),
)
bug(
    "next_page_one_token_early",
    "sweep",
    ("token // BLOCK_SIZE, mask=inside", "(token + 1) // BLOCK_SIZE, mask=inside"),
    by=attention(prefill=False, block_size=16),
)
bug(
    "pages_swapped_in_pairs",
    "sweep",
    ("tl.load(table_row + start // BLOCK_SIZE)", "tl.load(table_row + (start // BLOCK_SIZE ^ 1))"),
    by=attention(prefill=False, tiles=SMALL, block_size=16),
)
bug(
    "pages_taken_for_consecutive",
    "sweep",
    (
        "tl.load(table_row + start // BLOCK_SIZE)",
        "(tl.load(table_row) + start // BLOCK_SIZE)",
    ),
    by=attention(prefill=False, tiles=SMALL, block_size=32),
)
bug(
    "values_of_another_page",
    "sweep",
    ("value_cache += block * stride_block_v", "value_cache += (block ^ 1) * stride_block_v"),
    by=attention(prefill=False, tiles=SMALL, block_size=32),
)
bug(
    "offset_in_the_page_forgotten",
    "sweep",
    ("offset = start % BLOCK_SIZE + lane", "offset = lane"),
    by=attention(prefill=False, tiles=SMALL, block_size=64),
)
bug(
    "block_stride_from_the_slot_stride",
    "sweep",
    ("key_cache += block * stride_block_k", "key_cache += block * BLOCK_SIZE * stride_slot_k"),
    by=attention(prefill=False, tiles=SMALL, block_size=32),
    seen="ROCm/aiter#3498",
)
bug(
    "table_row_of_the_neighbour",
    "decode",
    (
        "block_table + sequence.to(tl.int64)",
        "block_table + tl.maximum(sequence - 1, 0).to(tl.int64)",
    ),
    by=DECODE,
)
bug(
    "block_index_times_stride_in_int32",
    "sweep",
    (
        "tl.load(table_row + start // BLOCK_SIZE).to(tl.int64)",
        "tl.load(table_row + start // BLOCK_SIZE)",
    ),
    by=attention(prefill=False, tiles=SMALL, block_size=64, fp8=True, far=True),
    finding=OVERFLOW,
    seen="vllm-project/vllm#50427",
)
bug(
    "block_indices_times_stride_in_int32",
    "sweep",
    ("block = block.to(tl.int64)", "block = block.to(tl.int32)"),
    by=attention(prefill=True, block_size=32, fp8=True, far=True),
    finding=OVERFLOW,
    seen="vllm-project/vllm#1486",
)

# Which head, which row

bug(
    "gqa_heads_interleaved",
    "decode",
    ("head = kv_head * GROUP + row", "head = kv_head + row * tl.num_programs(1)"),
    by=attention(prefill=False, tiles=SMALL, num_kv_heads=2),
    seen="ekzhang/jax-js#180",
)
bug(
    "gqa_heads_interleaved_in_prefill",
    "prefill",
    ("head = kv_head * GROUP + row % GROUP", "head = kv_head + row % GROUP * tl.num_programs(1)"),
    by=attention(prefill=True, tiles=SMALL, num_kv_heads=2),
)
bug(
    "values_of_the_first_head",
    "decode",
    ("value_cache + kv_head * stride_head_v", "value_cache"),
    by=attention(prefill=False, tiles=SMALL, num_kv_heads=2),
    seen="PSAL-POSTECH/ONNXim#33",
)
bug(
    "head_dim_padding_not_masked",
    "sweep",
    ("keys = tl.load(keys_at, mask=real[:, None], other=0.0)", "keys = tl.load(keys_at)"),
    by=attention(prefill=False, tiles=SMALL, head_dims=(24, 80, 96), block_size=128, max_len=64),
    finding=NAN,
    seen="XPU-Forces/mojo_opset#266",
)
bug(
    "row_of_the_sequence_in_a_batch_with_idle_ones",
    "decode",
    ("token = first_token.to(tl.int64)", "token = sequence.to(tl.int64)"),
    by=attention(prefill=False, tiles=SMALL, idle=True),
)
bug(
    "query_tiles_of_earlier_sequences_miscounted",
    "prefill",
    ("(tile - (first_token // BLOCK_Q + sequence))", "(tile - first_token // BLOCK_Q)"),
    by=PREFILL,
    finding=NAN,
)
bug(
    "too_few_query_tiles",
    "attention",
    ("(tiles.block_m // batch.group_size) + num_seqs", "(tiles.block_m // batch.group_size) + 1"),
    by=PREFILL,
    finding=NAN,
)
bug(
    "lse_of_every_group_in_the_first",
    "decode",
    ("stride_token_l + head * stride", "stride_token_l + row * stride"),
    by=attention(prefill=False, tiles=SMALL, num_kv_heads=2),
)
bug(
    "writes_one_head_too_many",
    "decode",
    (
        "tl.store(result_at, result.to(out.dtype.element_ty), mask=real)",
        "tl.store(result_at, result.to(out.dtype.element_ty), "
        "mask=(row <= GROUP)[:, None] & (dim < HEAD_DIM)[None, :])",
    ),
    by=DECODE,
    finding=BESIDE,
)
bug(
    "writes_one_token_too_many",
    "prefill",
    (
        "tl.store(result_at, result.to(out.dtype.element_ty), mask=real)",
        "tl.store(result_at, result.to(out.dtype.element_ty), "
        "mask=(in_sequence <= query_len)[:, None] & (dim < HEAD_DIM)[None, :])",
    ),
    by=PREFILL,
    finding=BESIDE,
    seen="flagos-ai/FlagGems#5235",
)

bug(
    "rows_past_the_group_race_with_the_next_tile",
    "prefill",
    ("(in_sequence < query_len) & (row < BLOCK_Q * GROUP)", "(in_sequence < query_len)"),
    by=attention(prefill=True, tiles=SMALL, group_size=3, backwards=True),
)

# Masks: causal, window

bug(
    "causal_mask_strict",
    "sweep",
    ("token[None, :] <= query_at[:, None]", "token[None, :] < query_at[:, None]"),
    by=PREFILL,
)
bug(
    "causal_mask_one_token_ahead",
    "sweep",
    ("token[None, :] <= query_at[:, None]", "token[None, :] <= query_at[:, None] + 1"),
    by=PREFILL,
)
bug(
    "causal_mask_skipped_on_the_diagonal",
    "prefill",
    ("all_see_until = first_position + 1", "all_see_until = last_position + 1"),
    by=PREFILL,
)
bug(
    "causal_mask_aligned_top_left",
    "prefill",
    ("query_at = seq_len - query_len + in_sequence", "query_at = in_sequence"),
    by=PREFILL,
    seen="Dao-AILab/flash-attention#402",
)
bug(
    "window_one_token_wide",
    "decode",
    ("tl.maximum(seq_len - WINDOW, 0)", "tl.maximum(seq_len - WINDOW - 1, 0)"),
    by=attention(prefill=False, tiles=SMALL, window=True),
    seen="huggingface/transformers#39408",
)
bug(
    "window_one_token_short",
    "decode",
    ("tl.maximum(seq_len - WINDOW, 0)", "tl.maximum(seq_len - WINDOW + 1, 0)"),
    by=attention(prefill=False, tiles=SMALL, window=True),
)
bug(
    "window_one_token_wide_in_prefill",
    "sweep",
    ("token[None, :] > query_at[:, None] - WINDOW", "token[None, :] >= query_at[:, None] - WINDOW"),
    by=attention(prefill=True, tiles=SMALL, window=True),
)
bug(
    "window_one_token_short_in_prefill",
    "sweep",
    (
        "token[None, :] > query_at[:, None] - WINDOW",
        "token[None, :] > query_at[:, None] - WINDOW + 1",
    ),
    by=attention(prefill=True, tiles=SMALL, window=True),
)
bug(
    "left_edge_of_the_window_ignored",
    "sweep",
    ("seen = (token >= first_key)[None, :] & ", "seen = "),
    by=attention(prefill=False, tiles=SMALL, window=True),
)
bug(
    "window_edge_not_masked_in_prefill",
    "prefill",
    (
        "all_see_from = tl.maximum(last_position - WINDOW + 1, 0)",
        "all_see_from = tl.maximum(first_position - WINDOW + 1, 0)",
    ),
    by=attention(prefill=True, tiles=SMALL, window=True),
)

# Logits: scale, soft-cap, ALiBi

bug(
    "scale_one_per_cent_off",
    "attention",
    ("batch.scale * batch.k_scale * LOG2_E", "batch.scale * batch.k_scale * LOG2_E * 1.01"),
    by=attention(),
)
bug(
    "log2_e_to_four_digits",
    "attention",
    ("LOG2_E = math.log2(math.e)", "LOG2_E = 1.4427"),
    by=attention(),
)
bug(
    "natural_exponential_of_binary_logits",
    "sweep",
    ("weights = tl.exp2(logits", "weights = tl.exp(logits"),
    by=DECODE,
)
bug(
    "tf32_logits",
    "sweep",
    (
        'tl.dot(query, keys.to(query.dtype), input_precision="ieee")',
        'tl.dot(query, keys.to(query.dtype), input_precision="tf32")',
    ),
    by=attention(dtypes=("fp32",)),
)
bug(
    "softcap_after_the_mask",
    "sweep",
    (
        'logits = tl.where(seen, logits, float("-inf"))',
        'logits = tl.where(seen, logits, -cap_factor if SOFTCAP else float("-inf"))',
    ),
    by=attention(tiles=SMALL, softcap=5.0),
    seen="onnx/onnx#7865",
)
bug(
    "softcap_after_alibi",
    "sweep",
    (
        "logits = cap_factor - 2.0",
        "token = start + tl.arange(0, BLOCK_N)\n"
        "        if ALIBI:\n"
        "            distance = tl.abs(query_at[:, None] - token[None, :]).to(tl.float32)\n"
        "            logits -= slope[:, None] * distance * (2.88539008 / cap_factor)\n"
        "        logits = cap_factor - 2.0",
    ),
    ("if ALIBI:\n        distance", "if ALIBI and not SOFTCAP:\n        distance"),
    by=attention(tiles=SMALL, softcap=5.0, alibi=True),
    seen="microsoft/onnxruntime#28379",
)
bug(
    "softcap_of_half_the_logit",
    "attention",
    ("2.0 * logit_factor / batch.softcap", "logit_factor / batch.softcap"),
    by=attention(softcap=30.0),
)
bug(
    "softcap_in_natural_units",
    "attention",
    ("batch.softcap * LOG2_E", "batch.softcap"),
    by=attention(softcap=30.0),
)
bug(
    "softcap_not_passed_on",
    "attention",
    ('"SOFTCAP": batch.softcap is not None', '"SOFTCAP": False'),
    by=attention(softcap=30.0),
    seen="sgl-project/sgl-kernel-xpu#491",
)
bug(
    "alibi_sign",
    "sweep",
    ("logits -= slope[:, None]", "logits += slope[:, None]"),
    by=attention(alibi=True),
)
bug(
    "alibi_distance_from_one_past_the_query",
    "decode",
    ("+ (end_key - 1)", "+ end_key"),
    by=attention(prefill=False, alibi=True),
    finding=r"^lse\[",
    seen="vllm-project/vllm#945",
)
bug(
    "alibi_distance_signed",
    "sweep",
    (
        "tl.abs(query_at[:, None] - token[None, :])",
        "(query_at[:, None] - token[None, :])",
    ),
    by=attention(prefill=True, alibi=True, noncausal=True),
)
bug(
    "alibi_slopes_from_head_zero",
    "decode",
    ("tl.load(slopes + head", "tl.load(slopes + row"),
    by=attention(prefill=False, alibi=True, num_kv_heads=2),
    seen="flashinfer-ai/flashinfer#1606",
)
bug(
    "alibi_slope_in_natural_units",
    "prefill",
    (
        "tl.load(slopes + head, mask=valid, other=0.0) * 1.4426950408889634",
        "tl.load(slopes + head, mask=valid, other=0.0)",
    ),
    by=attention(prefill=True, alibi=True),
)

# Online softmax

bug(
    "no_maximum_subtracted",
    "sweep",
    ("tl.maximum(maximum, tl.max(logits, 1))", "tl.maximum(maximum, 0.0)"),
    by=attention(inputs="loud"),
)
bug(
    "maximum_of_the_tile_only",
    "sweep",
    ("tl.maximum(maximum, tl.max(logits, 1))", "tl.max(logits, 1)"),
    by=attention(tiles=SMALL, inputs="loud"),
)
bug(
    "accumulator_not_rescaled",
    "sweep",
    ("acc = acc * rescale[:, None]", "acc = acc * 1.0"),
    by=DECODE,
)
bug(
    "denominator_not_rescaled",
    "sweep",
    (
        "denominator = denominator * rescale + tl.sum(weights, 1)",
        "denominator += tl.sum(weights, 1)",
    ),
    by=DECODE,
)
bug(
    "denominator_of_rounded_weights",
    "sweep",
    ("tl.sum(weights, 1)", "tl.sum(weights.to(query.dtype).to(tl.float32), 1)"),
    by=attention(dtypes=("fp16", "bf16")),
    finding=r"^lse\[",
)
bug(
    "weights_rounded_to_float8",
    "sweep",
    ("tl.dot(weights.to(query.dtype),", "tl.dot(weights.to(tl.float8e5).to(query.dtype),"),
    by=attention(),
)
bug(
    "accumulator_rounded_after_every_tile",
    "sweep",
    (
        "return acc, denominator, new_maximum",
        "return acc.to(query.dtype).to(tl.float32), denominator, new_maximum",
    ),
    by=attention(tiles=SMALL, dtypes=("bf16",), inputs="flat", max_len=600),
)
bug(
    "row_without_a_key_yet",
    "sweep",
    ('tl.where(new_maximum == float("-inf"), 0.0, new_maximum)', "new_maximum"),
    by=attention(prefill=True, tiles=SMALL, window=True),
    finding=NAN,
)
bug(
    "sequence_without_a_key",
    "sweep",
    (
        "acc * (value_scale / tl.where(empty, 1.0, denominator))[:, None]",
        "acc * (value_scale / denominator)[:, None]",
    ),
    by=DECODE,
    finding=NAN,
)

# Merging the splits

bug(
    "row_without_a_key_has_a_finite_lse",
    "sweep",
    ('lse = tl.where(empty, float("-inf"),', "lse = tl.where(empty, 0.0,"),
    by=DECODE,
    seen="vllm-project/vllm#49294",
)
bug(
    "merge_weights_not_normalised",
    "merge",
    ("result = acc / denominator", "result = acc"),
    by=SPLIT,
)
bug(
    "merge_of_the_first_splits_only",
    "merge",
    ("range(0, num_splits, BLOCK_SPLITS)", "range(0, tl.minimum(num_splits, 16), BLOCK_SPLITS)"),
    by=MANY_SPLITS,
)
bug(
    "merge_not_rescaled",
    "merge",
    ("acc = acc * rescale + tl.sum", "acc = acc + tl.sum"),
    by=MANY_SPLITS,
)
bug(
    "splits_hand_natural_logs_to_a_binary_merge",
    "decode",
    ("partial_lse + at, part_lse,", "partial_lse + at, part_lse * 0.6931471805599453,"),
    by=SPLIT,
    seen="sgl-project/sglang#40903",
)
bug(
    "lse_in_binary_units",
    "decode",
    ("row_lse * 0.6931471805599453", "row_lse"),
    by=DECODE,
    finding=r"^lse\[",
    seen="vllm-project/vllm#47079",
)
bug(
    "merged_lse_in_binary_units",
    "merge",
    ("(maximum + tl.log2(denominator)) * 0.6931471805599453", "maximum + tl.log2(denominator)"),
    by=SPLIT,
    finding=r"^lse\[",
)
bug(
    "sink_counted_in_every_split",
    "decode",
    (
        "part, part_lse = finish(acc, denominator, maximum, value_scale)",
        "more = tl.load(sinks + head, mask=row < GROUP, other=0.0) * 1.4426950408889634\n"
        "            acc, denominator, maximum = add_sink(acc, denominator, maximum, more)\n"
        "            part, part_lse = finish(acc, denominator, maximum, value_scale)",
    ),
    by=attention(prefill=False, tiles=SMALL, splits=3, sinks=True),
    seen="ROCm/rocm-libraries#12227",
)
bug(
    "sink_missing_in_the_merge",
    "merge",
    ("denominator = 1.0", "denominator = 0.0 * maximum"),
    by=attention(prefill=False, tiles=SMALL, splits=3, sinks=True),
)
bug(
    "sink_missing_in_the_merged_lse",
    "merge",
    (
        "tl.log2(denominator)",
        "tl.log2(denominator - tl.exp2(tl.load(sinks + head) * 1.4426950408889634 - maximum))",
    ),
    by=attention(prefill=False, tiles=SMALL, splits=3, sinks=True),
    finding=r"^lse\[",
)
bug(
    "sink_in_natural_units",
    "decode",
    (
        "tl.load(sinks + head, mask=row < GROUP, other=0.0) * 1.4426950408889634",
        "tl.load(sinks + head, mask=row < GROUP, other=0.0)",
    ),
    by=attention(prefill=False, tiles=SMALL, sinks=True),
    seen="ROCm/rocm-libraries#12227",
)
bug(
    "accumulator_not_rescaled_by_the_sink",
    "sweep",
    ("return acc * rescale[:, None], denominator", "return acc, denominator"),
    by=attention(tiles=SMALL, sinks=True),
)
bug(
    "sink_above_every_logit",
    "merge",
    ("tl.maximum(maximum, tl.max(lses, 0))", "tl.max(lses, 0)"),
    by=attention(prefill=False, tiles=SMALL, splits=3, sinks=True, inputs="sunken"),
)
bug(
    "splits_without_lse_are_merged_from_nothing",
    "decode",
    (
        "            tl.store(partial_lse + at",
        "            if WITH_LSE:\n                tl.store(partial_lse + at",
    ),
    by=attention(check="without-lse", prefill=False, tiles=SMALL, splits=3),
)
bug(
    "splits_chosen_anew_at_every_call",
    "attention",
    (
        "splits = launch.splits\n",
        "_decode.calls = getattr(_decode, 'calls', 0) + 1\n"
        "    splits = type(launch.splits)(_decode.calls % 3 + 1, 1, _decode.calls % 3 + 1)\n",
    ),
    by=attention(check="repeated", prefill=False, tiles=SMALL),
)

# Quantised caches

bug(
    "key_scale_ignored",
    "attention",
    ("batch.scale * batch.k_scale * LOG2_E", "batch.scale * LOG2_E"),
    by=attention(fp8=True),
    seen="flashinfer-ai/flashinfer#4979",
)
bug(
    "value_scale_ignored",
    "attention",
    ("value_scale=batch.v_scale,\n        BLOCK_SEQS", "value_scale=1.0,\n        BLOCK_SEQS"),
    by=attention(prefill=False, fp8=True),
)
bug(
    "value_scale_applied_twice",
    "attention",
    (
        "value_scale=batch.v_scale,\n        stride_token_o",
        "value_scale=batch.v_scale**2,\n        stride_token_o",
    ),
    by=attention(prefill=True, fp8=True),
)
bug(
    "key_scale_applied_to_the_values",
    "attention",
    (
        "value_scale=batch.v_scale,\n        BLOCK_SEQS",
        "value_scale=batch.k_scale,\n        BLOCK_SEQS",
    ),
    by=attention(prefill=False, fp8=True),
)
bug(
    "float8_bits_taken_for_integers",
    "sweep",
    ("tl.join(first.to(", "tl.join(first.to(tl.uint8, bitcast=True).to("),
    by=attention(fp8=True),
)
bug(
    "halves_of_a_float8_tile_swapped",
    "sweep",
    ("first, second = tl.split(halves)", "second, first = tl.split(halves)"),
    by=attention(fp8=True),
)
bug(
    "query_too_large_for_float16",
    "sweep",
    (" * scale[:, None]).to(tl.float16), undo", ").to(tl.float16), undo * 0 + 1"),
    by=attention(dtypes=("bf16",), fp8=True, inputs="loud", scale=1e-4),
    finding=NAN,
)
bug(
    "query_scaled_back_by_half",
    "sweep",
    ("((exponent - 14) << 23)", "((exponent - 13) << 23)"),
    by=attention(dtypes=("bf16",), fp8=True),
)
bug(
    "weights_in_float16_scaled_back_in_part",
    "sweep",
    ("acc *= 1.0 / WEIGHT_SCALE", "acc *= 0.00003"),
    by=attention(dtypes=("fp16",)),
)
bug(
    "e4m3_bits_taken_for_e5m2",
    "sweep",
    ("keys.to(query.dtype)", "keys.to(tl.float8e5, bitcast=True).to(query.dtype)"),
    by=attention(fp8=True),
)

# Strides

bug(
    "strides_of_the_keys_for_the_values",
    "attention",
    ('"stride_slot_v": values.stride(1)', '"stride_slot_v": keys.stride(1)'),
    by=attention(),
    seen="flagos-ai/FlagAttention#45",
)
bug(
    "query_taken_for_contiguous",
    "attention",
    (
        '"stride_token_q": batch.query.stride(0)',
        '"stride_token_q": batch.query.shape[1] * batch.query.shape[2]',
    ),
    by=attention(),
    seen="Dao-AILab/flash-attention#2886",
)
bug(
    "output_taken_for_contiguous",
    "attention",
    (
        "value_scale=batch.v_scale,\n        stride_token_o=batch.out.stride(0)",
        "value_scale=batch.v_scale,\n        "
        "stride_token_o=batch.out.shape[1] * batch.out.shape[2]",
    ),
    by=attention(prefill=True),
)
bug(
    "block_table_taken_for_contiguous",
    "attention",
    ('"stride_seq_t": batch.block_table.stride(0)', '"stride_seq_t": batch.block_table.shape[1]'),
    by=attention(),
)

# Extremes

bug(
    "query_group_cut_at_sixteen_heads",
    "launch",
    ("max(16, triton.next_power_of_2(group_size))", "16"),
    by=attention(prefill=False),
)
bug(
    "running_maximum_starts_at_a_finite_number",
    "sweep",
    (
        'tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)',
        "tl.full([BLOCK_M], -5.0e4, dtype=tl.float32)",
    ),
    by=attention(inputs="sunken"),
    seen="flashinfer-ai/flashinfer#4267",
)

# Cache writes and block copies

bug(
    "write_one_slot_late",
    "cache_ops",
    ("offset = slot % BLOCK_SIZE", "offset = slot % BLOCK_SIZE + 1"),
    by=WRITE,
)
bug(
    "padding_is_written",
    "cache_ops",
    ("if slot < 0:", "if slot < -1:"),
    by=WRITE,
)
bug(
    "slot_in_int32",
    "cache_ops",
    ("slot = tl.load(slot_mapping + token)", "slot = tl.load(slot_mapping + token).to(tl.int32)"),
    by=caches("write", fp8=True, far=True, layout="by block", block_size=16),
    finding=OVERFLOW,
    seen="lightseekorg/tokenspeed#501",
)
bug(
    "write_with_a_padded_head_dim",
    "cache_ops",
    (" & (dim < HEAD_DIM)[None, :]", ""),
    by=caches("write", head_dim=80),
    seen="XPU-Forces/mojo_opset#266",
)
bug(
    "write_with_padded_heads",
    "cache_ops",
    ("(head < NUM_HEADS)[:, None] & ", ""),
    by=caches("write", heads=3),
)
bug(
    "new_values_read_with_the_strides_of_the_keys",
    "cache_ops",
    ("new_values + token * stride_token_v", "new_values + token * stride_token_k"),
    by=WRITE,
)
bug(
    "values_written_with_the_strides_of_the_keys",
    "cache_ops",
    ("value_cache += block * stride_block_vc", "value_cache += block * stride_block_kc"),
    by=WRITE,
)
bug(
    "float8_overflow_becomes_nan",
    "cache_ops",
    (
        "keys = tl.clamp(keys, -largest, largest, propagate_nan=tl.PropagateNan.ALL)",
        'keys = tl.where(tl.abs(keys) > largest, float("nan"), keys)',
    ),
    by=caches("write", fp8=True, loud=True),
    seen="jax-ml/ml_dtypes#400",
)
bug(
    "float8_saturates_at_another_formats_largest",
    "cache_ops",
    ("torch.finfo(key_cache.dtype).max", "240.0"),
    by=caches("write", fp8=True),
    seen="sgl-project/sglang#40581",
)
bug(
    "nan_becomes_the_largest_number",
    "cache_ops",
    (
        "keys = tl.clamp(keys, -largest, largest, propagate_nan=tl.PropagateNan.ALL)",
        "keys = tl.clamp(keys, -largest, largest)",
    ),
    by=caches("write", fp8=True),
    seen="vllm-project/vllm#49077",
)
bug(
    "quantised_by_multiplying",
    "cache_ops",
    ("+ k_scale)", "+ 1.0 / k_scale)"),
    by=caches("write", fp8=True),
)
bug(
    "values_quantised_with_the_scale_of_the_keys",
    "cache_ops",
    ("+ v_scale)", "+ k_scale)"),
    by=caches("write", fp8=True),
)
bug(
    "quantised_through_float16",
    "cache_ops",
    ("keys.to(key_cache.dtype.element_ty)", "keys.to(tl.float16).to(key_cache.dtype.element_ty)"),
    by=caches("write", fp8=True),
)
bug(
    "half_a_block_copied",
    "cache_ops",
    ("real = element < BLOCK_ELEMENTS", "real = element < BLOCK_ELEMENTS // 2"),
    by=COPY,
    seen="vllm-project/vllm#55112",
)
bug(
    "only_the_first_part_of_a_block_copied",
    "cache_ops",
    ("triton.cdiv(block_elements, block))", "1)"),
    by=caches("copy", block_size=16, heads=3, head_dim=80),
)
bug(
    "source_and_destination_swapped",
    "cache_ops",
    ("source = tl.load(pairs + 2 * pair)", "source = tl.load(pairs + 2 * pair + 1)"),
    ("destination = tl.load(pairs + 2 * pair + 1)", "destination = tl.load(pairs + 2 * pair)"),
    by=COPY,
)
bug(
    "only_the_keys_copied",
    "cache_ops",
    (
        "stride_block_v + value_at, values, mask=real)",
        "stride_block_v + value_at, values, mask=real & (element < 0))",
    ),
    by=COPY,
)
bug(
    "slots_taken_for_adjacent",
    "cache_ops",
    ("key_at = slot * stride_slot_k + within", "key_at = element"),
    by=caches("copy", layout="by slot", block_size=16),
    seen="vllm-project/vllm-ascend#16013",
)
bug(
    "pair_in_int32",
    "cache_ops",
    ("source = tl.load(pairs + 2 * pair)", "source = tl.load(pairs + 2 * pair).to(tl.int32)"),
    by=caches("copy", fp8=True, far=True, layout="by block", block_size=16),
    finding=OVERFLOW,
)

# Right numbers all the same: what only one detector sees, see studies/detectors/judges.py

LONG: Final = "(q1 k140000) h1 g1 d16 b64 bf16 inputs=needle"
"""A context in which no single key counts for more than rounding does, if all count alike."""

bug(
    "last_key_of_a_long_context_masked",
    "sweep",
    ("(token < end_key)[None, :]", "(token < end_key - (end_key >> 17))[None, :]"),
    by=attention(problem=f"{LONG} seed=5", tiles=(2048, 16), splits=1),
)

bug(
    "two_values_of_a_tile_swapped",
    "sweep",
    (
        "value_at = block * stride_block_v + offset * stride_slot_v",
        "value_at = block * stride_block_v + (offset ^ (token < 2)) * stride_slot_v",
    ),
    by=attention(problem=f"{LONG} seed=6", tiles=(2048, 16), splits=1),
)
bug(
    "range_of_the_whole_pool_looked_at",
    "attention",
    (
        "logit_factor = batch.scale * batch.k_scale * LOG2_E",
        "largest = float(batch.key_cache.float().abs().max())\n"
        "    logit_factor = batch.scale * (batch.k_scale + 0 * largest) * LOG2_E",
    ),
    by=attention(),
    finding=NAN,
)
bug(
    "query_starts_read_past_their_end",
    "prefill",
    (
        "tl.load(query_start_loc + candidate, mask=candidate < num_seqs, other=0)",
        "tl.load(query_start_loc + candidate)",
    ),
    by=attention(check="memory", prefill=True, tiles=SMALL, max_seqs=6),
    finding="outside the tensor: load of query_start_loc",
)
bug(
    "partial_results_of_absent_splits_read",
    "merge",
    (
        "parts = tl.load(parts_at, mask=real[:, None] & (dim < HEAD_DIM)[None, :], other=0.0)",
        "parts = tl.where(real[:, None], tl.load(parts_at), 0.0)",
    ),
    by=attention(check="memory", prefill=False, tiles=SMALL, splits=3),
    finding="outside the tensor: load of partial_out",
)
bug(
    "table_row_of_the_next_sequence_looked_up_first",
    "decode",
    (
        "end_key = tl.load(seq_lens + sequence)",
        "end_key = tl.load(seq_lens + sequence)\n"
        "    end_key += tl.load(block_table + (sequence + 1) * stride_seq_t) * 0",
    ),
    by=attention(check="memory", prefill=False, tiles=SMALL),
    finding="load of block_table",
)
bug(
    "keys_of_padding_read",
    "sweep",
    ("keys = tl.load(keys_at, mask=inside[None, :], other=0.0)", "keys = tl.load(keys_at)"),
    by=attention(check="memory", prefill=False, tiles=SMALL),
    finding="not the program's own: load of key_cache",
)
bug(
    "values_beyond_the_head_size_read",
    "sweep",
    ("values = tl.load(values_at, mask=real[None, :], other=0.0)", "values = tl.load(values_at)"),
    by=attention(
        check="memory", prefill=False, tiles=SMALL, head_dims=(24, 80), block_size=128, max_len=64
    ),
    finding="load of value_cache",
)
bug(
    "values_of_padding_left_undefined",
    "sweep",
    (
        "values = tl.load(values_at, mask=inside[:, None], other=0.0)",
        "values = tl.load(values_at, mask=inside[:, None])",
    ),
    by=attention(check="memory", prefill=False, tiles=SMALL),
    finding="masked load without `other`",
)
bug(
    "keys_after_the_diagonal_loaded",
    "prefill",
    ("end_key = last_position + 1", "end_key = seq_len"),
    by=counted_bytes(attention(prefill=True, tiles=SMALL)),
    finding="moved",
)
bug(
    "keys_before_the_window_loaded",
    "prefill",
    ("first_key = tl.maximum(first_position - WINDOW + 1, 0)", "first_key = 0"),
    by=counted_bytes(attention(prefill=True, tiles=SMALL, window=True)),
    finding="moved",
)
bug(
    "query_loaded_twice",
    "decode",
    (
        "rows = tl.load(query_at, mask=real, other=0.0)",
        "rows = tl.load(query_at, mask=real, other=0.0)\n"
        "    rows = tl.load(query_at, mask=real, other=0.0, volatile=True)",
    ),
    by=counted_bytes(attention(prefill=False, tiles=SMALL)),
    finding="moved",
)
bug(
    "values_written_twice",
    "cache_ops",
    (
        "    tl.store(value_to, values.to(value_cache.dtype.element_ty), mask=real)",
        "    tl.store(value_to, values.to(value_cache.dtype.element_ty), mask=real)\n"
        "    tl.store(value_to, values.to(value_cache.dtype.element_ty), mask=real)",
    ),
    by=counted_bytes(WRITE),
    finding="stored of value_cache",
)
bug(
    "padding_written_to_the_first_slot",
    "cache_ops",
    (
        "    if slot < 0:\n        return\n",
        "    slot = tl.maximum(slot, 0)\n",
    ),
    by=WRITE,
)
bug(
    "copied_by_every_program_of_a_pair",
    "cache_ops",
    ("element = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)", "element = tl.arange(0, BLOCK)"),
    by=caches("copy", block_size=16, heads=3, head_dim=80),
)

# What every bug and every harness must do

LAW_BUGS: Final = {
    "relabelled-pages": ("pages_taken_for_consecutive", {"prefill": False, "block_size": 64}),
    "repeated": ("splits_chosen_anew_at_every_call", {"prefill": False}),
    "without-lse": ("splits_without_lse_are_merged_from_nothing", {"prefill": False, "splits": 3}),
    "shared-prefix": (
        "pages_taken_for_consecutive",
        {"prefill": False, "block_size": 16, "shared_prefix": 64},
    ),
    "alone": ("table_row_of_the_neighbour", {"prefill": False}),
    "last-row": ("causal_mask_strict", {"prefill": True}),
    "growth": ("causal_mask_one_token_ahead", {"prefill": True}),
    "scaled-values": ("value_scale_ignored", {"prefill": False, "fp8": True}),
}
"""For each law a bug that it rejects by itself, and what to draw."""

LAW_HARNESSES: Final = {
    law: attention(check=law, tiles=SMALL, **narrowed) for law, (_, narrowed) in LAW_BUGS.items()
}
HARNESSES: Final = {
    harness.says: harness for harness in (*(b.by for b in BUGS.values()), *LAW_HARNESSES.values())
}


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    return plant(None, tmp_path_factory.mktemp("right"))


def catch(mutant: Mutant, harness: Harness, right: Kernels, folder: Path) -> Caught:
    """Plant, hunt, and let the right kernels answer the example that gave the mutant away."""
    caught = hunt(harness, plant(mutant, folder))
    if caught is None:
        raise Survived(f"{mutant.name} survived {MAX_EXAMPLES} examples of {harness.says}")
    assert harness.findings(right, caught.example) == []
    return caught


def expected_to_fail(bug: Bug) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(raises=Survived, reason=bug.blind)] if bug.blind else []


@pytest.mark.parametrize(
    "bug", [pytest.param(b, id=name, marks=expected_to_fail(b)) for name, b in BUGS.items()]
)
def test_bug_is_rejected(
    bug: Bug, right: Kernels, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    caught = catch(bug.mutant, bug.by, right, tmp_path)
    record_property("examples", caught.tried)
    record_property("finding", caught.finding)
    assert re.search(bug.finding, caught.finding), f"{caught.example}: {caught.finding}"


@pytest.mark.parametrize("law", LAW_HARNESSES)
def test_law_alone_rejects_a_bug(law: str, right: Kernels, tmp_path: Path) -> None:
    name, _ = LAW_BUGS[law]
    caught = catch(BUGS[name].mutant, LAW_HARNESSES[law], right, tmp_path)
    assert re.search(NOT_AN_EXCEPTION, caught.finding), f"{caught.example}: {caught.finding}"


@pytest.mark.parametrize("harness", HARNESSES.values(), ids=HARNESSES)
def test_unchanged_copy_passes(harness: Harness, right: Kernels) -> None:
    assert hunt(harness, right, max_examples=RIGHT_EXAMPLES) is None


def test_every_law_has_a_bug() -> None:
    assert set(LAW_BUGS) == {law.name for law in LAWS}


def test_readme_lists_the_bugs() -> None:
    table = README.read_text().partition("<!-- end of the table -->")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert rows == list(BUGS), f"write the table anew: {TABLE_COMMAND}"


# The table of README.md


PLAIN_EXAMPLES: Final = 200
"""Examples without any narrowing within which the table says when a bug shows."""

PLAIN: Final = {
    "write": WRITE,
    "copy": COPY,
    "attention": attention(head_dims=HEAD_DIMS, max_len=150),
}

SHOWN_BY: Final = {
    "load of": "memory",
    "closed form": "counted bytes",
    "raised": "overflow check",
    "wrote ": "guard rows",
    NAN: "NaN",
    "changed": "bits",
    "bytes": "bits",
    "lse[": "lse",
    "out[": "out",
}
"""What a finding says, and what that is called in the table; the first that fits."""


def table_row(name: str, bug: Bug, folder: Path) -> str:
    """A bug's line in the table."""
    wrong = plant(bug.mutant, folder)
    caught = hunt(bug.by, wrong)
    plain = PLAIN[bug.by.operation]
    at_once = hunt(plain, wrong, max_examples=PLAIN_EXAMPLES)
    kinds = shown = tried = "-"
    if caught is not None:
        tried = str(caught.tried)
        shown = next(word for text, word in SHOWN_BY.items() if text in caught.finding)
        if isinstance(caught.example, AttentionProblem):
            variants = {kind: caught.example.replace(inputs=kind) for kind in INPUT_KINDS}
            kinds = " ".join(kind for kind in variants if bug.by.findings(wrong, variants[kind]))
    drawn = f"> {PLAIN_EXAMPLES}" if at_once is None else str(at_once.tried)
    cells = (f"`{name}`", bug.mutant.file, bug.by.says, tried, shown, kinds, drawn, bug.seen)
    return f"| {' | '.join(cells)} |"


def write_table() -> None:
    """Hunt every bug and put the table into README.md, between its two marks."""
    text = README.read_text()
    start, end = (text.index(mark) for mark in ("| bug |", "<!-- end of the table -->"))
    head = "| bug | file | harness | examples | shown by | inputs | plain | seen in |\n"
    with tempfile.TemporaryDirectory() as folder:
        rows = [table_row(name, bug, Path(folder)) for name, bug in BUGS.items()]
    body = head + "| --- " * 8 + "|\n" + "\n".join(rows) + "\n\n"
    README.write_text(text[:start] + body + text[end:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    profiles.register_profiles()
    write_table()
