"""Kernel-internal scratch: the bytes of each term, worked out by hand from its source."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.commands.trace import SCRATCH_TERMS
from estimator.case import Case
from profiler.trace import scratch, trace_run

aten = torch.ops.aten
FLASH = aten._scaled_dot_product_flash_attention_backward.default
EFFICIENT = aten._scaled_dot_product_efficient_attention_backward.default


def sizes(func: Any, *args: Any) -> list[int]:
    terms = scratch.before(func, args)
    assert all(component == "temporaries" for component, _ in terms)
    return [size for _, size in terms]


def heads(count: int, tokens: int, head_dim: int, dtype: Any = torch.bfloat16) -> Any:
    return torch.empty(2, count, tokens, head_dim, dtype=dtype, device="meta")


@pytest.mark.parametrize(("tokens", "expected"), [(3072, []), (3073, [8 * 3073, 8 * 3073])])
def test_embedding_backward_sorts_above_3072_indices(tokens: int, expected: list[int]) -> None:
    indices = torch.empty(tokens, dtype=torch.int64, device="meta")
    assert sizes(aten.embedding_dense_backward.default, None, indices) == expected


def test_flash_backward_accumulates_in_fp32_rounded_up() -> None:
    query = heads(4, 100, 64)
    # 100 tokens are 128 rows; a head of 64 stays 64.
    assert sizes(FLASH, query, query, query) == [4 * 2 * 4 * 128, 4 * 2 * 4 * 128 * 64]
    wide = heads(4, 128, 160)
    assert sizes(FLASH, wide, wide, wide)[1] == 4 * 2 * 4 * 128 * 192
    narrow = heads(4, 129, 72)
    assert sizes(FLASH, narrow, narrow, narrow)[1] == 4 * 2 * 4 * 256 * 96


def test_flash_backward_expands_grouped_heads() -> None:
    query, key = heads(8, 128, 64), heads(2, 128, 64)
    expanded = 2 * 128 * 8 * 64 * 2
    assert sizes(FLASH, query, query, key)[2:] == [expanded, expanded]


def test_efficient_backward_holds_delta_and_an_accumulator() -> None:
    query = heads(4, 100, 64, torch.float32)
    assert sizes(EFFICIENT, query, query, query) == [4 * 2 * 4 * 100, 4 * 2 * 4 * 100 * 64]


def test_other_operations_hold_nothing() -> None:
    assert sizes(aten.mm.default, None, None) == []


def test_the_command_lines_names_are_the_terms() -> None:
    assert SCRATCH_TERMS == scratch.NAMES


def test_a_term_left_out_is_not_counted() -> None:
    case = Case.from_dict(
        {
            "model": {
                "model_type": "llama",
                "hidden_size": 256,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 32,
                "head_dim": 64,
                "vocab_size": 32,
            },
            "task": "training",
            "sequence_length": 4096,
            "gradient_checkpointing": True,
        }
    )
    full = trace_run(case).report
    without = trace_run(case, without=["flash-backward"]).report
    assert without.peak.requested_bytes < full.peak.requested_bytes
    assert "scratch left out on request: flash-backward" in without.assumptions
