"""Sequence parallelism: laws of what one of several GPUs needs, and searches that respect it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator import estimate
from estimator.allocator import round_block
from estimator.architecture.inventory import inventory, trainable
from estimator.architecture.optimizer import optimizer_sizes
from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import UnsupportedError
from estimator.families import parse_spec
from estimator.fit import estimated_peaks, longest_sequence
from estimator.gpus import find_gpu
from estimator.headroom import Room
from estimator.report import MemoryReport
from estimator.units import MIB

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
}


def answer(ranks: int, length: int = 1024, **fields: Any) -> MemoryReport:
    case = {"model": LLAMA, "task": "training", "sequence_length": length}
    return estimate(Case.from_dict({**case, "parallelism": {"sp_size": ranks}, **fields}))


@settings(max_examples=40, deadline=None)
@given(
    parts=st.integers(8, 512),
    batch=st.integers(1, 4),
    fields=st.sampled_from(
        (
            {},
            {"gradient_checkpointing": True},
            {"method": "lora"},
            {"dtype": "float32"},
            {"attention": "flash_attention_2", "mixed_precision": "bf16", "dtype": "float32"},
        )
    ),
)
def test_more_gpus_need_less_on_each(parts: int, batch: int, fields: dict[str, Any]) -> None:
    reports = [answer(ranks, 8 * parts, batch_size=batch, **fields) for ranks in (1, 2, 4, 8)]
    peaks = [report.peak.requested_bytes or 0 for report in reports]
    assert peaks == sorted(peaks, reverse=True)
    # All that is not tokens stays: weights and states are not shared out.
    for report in reports:
        assert report.components.weights_bytes == reports[0].components.weights_bytes
    # Only rests of the states' blocks depend on what was there before, which is another on each.
    case = Case.from_dict(reports[0].case)
    spec = parse_spec(load_config(case.model))
    tensors, width = trainable(case, inventory(spec, case.lora))
    sizes = [size for size in optimizer_sizes(case, tensors, width, spec).states if size]
    least, rests = sum(map(round_block, sizes)), sum(size > MIB for size in sizes) * MIB
    for report in reports:
        assert least <= report.components.optimizer_states_bytes <= least + rests


def test_a_gpu_of_many_needs_little_more_than_a_run_of_its_tokens() -> None:
    """Where attention saves no scores: the same tokens, and its output a second time, because
    what is exchanged for it is another tensor."""
    alone, shared = answer(1, 2048), answer(4, 8192)
    ends = [
        next(phase.end_allocated_bytes for phase in report.phases if phase.name == "forward")
        for report in (alone, shared)
    ]
    outputs = LLAMA["num_hidden_layers"] * 2048 * LLAMA["hidden_size"] * 2
    assert ends[1] - ends[0] == pytest.approx(outputs, abs=2**16)


def test_the_answer_says_what_it_leaves_out() -> None:
    said = " ".join(answer(4).assumptions)
    assert "one of the 4 GPUs" in said
    assert "no ZeRO" in said
    assert "NCCL" in said
    assert "NCCL" not in " ".join(answer(1).assumptions)


def test_other_kinds_of_attention_are_refused() -> None:
    gpt2 = {"model_type": "gpt2", "n_embd": 256, "n_head": 8, "n_layer": 2, "vocab_size": 300}
    with pytest.raises(UnsupportedError, match="use parallelism null, or gpumem trace"):
        answer(2, model=gpt2)


def test_the_longest_sequence_is_shared_out_evenly() -> None:
    case = Case.from_dict(
        {
            "model": LLAMA,
            "task": "training",
            "sequence_length": 1024,
            "parallelism": {"sp_size": 8},
        }
    )
    found = longest_sequence(case, estimated_peaks, Room(find_gpu("T4")))
    assert found.value is not None
    assert found.value % 8 == 0
    alone = longest_sequence(replace(case, parallelism=None), estimated_peaks, Room(find_gpu("T4")))
    assert alone.value is not None
    assert found.value > 4 * alone.value
