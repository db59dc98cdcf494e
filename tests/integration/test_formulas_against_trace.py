"""The formulas against the trace on random small cases over every axis that both support."""

from __future__ import annotations

import pytest

from benchmarks.case_generator import QUICK, draw_cases
from benchmarks.matrix_comparison import Comparison, compare_case, summarize
from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler.trace import trace_case

SEED = 20
COUNT = 40


@pytest.fixture(scope="module")
def compared() -> list[Comparison]:
    """All cases but those that have no formula, or that transformers' own code refuses."""
    answered, refused = [], []
    for case in draw_cases(SEED, COUNT, QUICK):
        try:
            answered.append(compare_case(case, trace_case))
        except UnsupportedError as error:
            refused.append(str(error))
    assert len(refused) <= COUNT // 5, refused
    return answered


@pytest.mark.parametrize("counter", ["requested", "allocated"])
def test_the_errors_are_within_bounds(compared: list[Comparison], counter: str) -> None:
    summary = summarize(getattr(item, f"{counter}_error") for item in compared)
    worst = max(compared, key=lambda item: abs(getattr(item, f"{counter}_error")))
    told = f"worst: {worst.case.to_dict()}"
    assert summary.count == len(compared)
    assert summary.median <= 0.003, told
    assert summary.percentile_95 <= 0.02, told
    assert summary.worst <= 0.05, told
    assert summary.worst_under >= -0.02, told


def test_parameters_are_the_same(compared: list[Comparison]) -> None:
    for item in compared:
        assert item.formulas.parameters == item.trace.parameters, item.case.to_dict()


def test_the_peak_is_in_the_same_phase_almost_always(compared: list[Comparison]) -> None:
    elsewhere = [item for item in compared if item.formulas.peak.phase != item.trace.peak.phase]
    assert len(elsewhere) <= COUNT // 10


def test_the_weights_agree_to_the_byte_but_for_segments_ends(compared: list[Comparison]) -> None:
    for item in compared:
        ours = item.formulas.components.weights_bytes
        theirs = item.trace.components.weights_bytes
        assert ours == pytest.approx(theirs, rel=0.01), item.case.to_dict()


MELLUM = {
    "model_type": "mellum",
    "hidden_size": 256,
    "intermediate_size": 512,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "head_dim": 64,
    "vocab_size": 4000,
    "sliding_window": 64,
    "layer_types": ["full_attention", "sliding_attention"] * 2,
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
}


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "training", "sequence_length": 128, "batch_size": 2},
        {"task": "training", "sequence_length": 128, "attention": "eager"},
        {"task": "training", "sequence_length": 128, "method": "lora"},
        {"task": "inference", "sequence_length": 256, "max_new_tokens": 16},
    ],
)
def test_mellum_windows_and_experts_by_layer(fields: dict[str, object]) -> None:
    item = compare_case(Case.from_dict({"model": MELLUM, **fields}), trace_case)
    assert abs(item.requested_error) <= 0.001
