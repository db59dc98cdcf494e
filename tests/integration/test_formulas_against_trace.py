"""The formulas against the trace on random small cases over every axis that both support."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import matrix
from benchmarks.case_generator import QUICK, draw_cases
from benchmarks.matrix import Comparison, compare_case, summarize
from estimator.case import Case
from estimator.errors import UnsupportedError
from profiler.trace import trace_case

SEED = 20
COUNT = 40


@pytest.fixture(scope="module")
def compared() -> list[Comparison]:
    """All cases but those that transformers' own code refuses, which have to stay rare."""
    answered, refused = [], []
    for case in draw_cases(SEED, COUNT, QUICK):
        try:
            answered.append(compare_case(case, trace_case))
        except UnsupportedError as error:
            refused.append(str(error))
    assert len(refused) <= COUNT // 10, refused
    return answered


def test_the_cases_cover_the_axes() -> None:
    cases = list(draw_cases(SEED, COUNT, QUICK))
    assert {case.task for case in cases} == {"inference", "training"}
    assert {case.dtype for case in cases} == {"bfloat16", "float16", "float32"}
    assert {case.attention for case in cases} == {"sdpa", "eager", "flash_attention_2"}
    assert {case.method for case in cases} == {"full", "lora"}
    assert {case.gradient_checkpointing for case in cases} == {False, True}
    assert len({case.optimizer for case in cases if case.training}) >= 3
    assert len({case.case_id for case in cases}) == COUNT


def test_the_same_seed_draws_the_same_cases() -> None:
    first, again = list(draw_cases(5, 10)), list(draw_cases(5, 10))
    assert first == again
    assert first != list(draw_cases(6, 10))
    # A case does not depend on how many are drawn.
    assert list(draw_cases(5, 3)) == first[:3]


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


def test_a_summary_by_hand() -> None:
    summary = summarize([0.01, -0.02, 0.0, 0.03])
    assert summary.median == 0.015
    assert summary.percentile_95 == summary.worst == 0.03
    assert summary.worst_under == -0.02
    assert summarize([0.5]).worst_under == 0.0
    assert summarize([0.001] * 19 + [0.9]).percentile_95 == 0.001
    with pytest.raises(ValueError, match="no errors"):
        summarize([])


def test_the_command_writes_what_it_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Driven by a scripted worker: the formulas' own answer, and once a death."""

    class Scripted:
        def __init__(self, source: str) -> None:
            assert source == "trace"
            self.died = False

        def __enter__(self) -> Scripted:
            return self

        def __exit__(self, *args: object) -> None:
            return None

        def run(self, case: Case) -> object:
            from types import SimpleNamespace

            from estimator import estimate

            if not self.died:
                self.died = True
                return SimpleNamespace(report=None, error=SimpleNamespace(message="it died"))
            return SimpleNamespace(report=estimate(case), error=None)

    monkeypatch.setattr(matrix, "Worker", Scripted)
    file = tmp_path / "matrix.json"
    code = matrix.main(["--quick", "--count", "4", "--seed", "3", "-o", str(file)])
    out = capsys.readouterr().out
    assert code == 3
    assert "no answer: " in out
    assert "it died" in out
    assert "requested: 3 cases, median 0.000 %" in out
    rows = json.loads(file.read_text())["results"]
    assert len(rows) == 4
    assert rows[0]["error"] == {"message": "it died"}
    assert rows[1]["requested_error"] == 0.0
    assert rows[1]["trace"]["schema_version"] == rows[1]["formulas"]["schema_version"]


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
