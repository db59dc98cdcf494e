"""Surfaces derived from real traces of a tiny model: the same bytes as a trace at other points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from estimator.case import Case
from estimator.errors import EnvironmentUnavailable, RecordError, UnsupportedError
from profiler import surface_answers
from profiler.surface_answers import SurfaceAnswers
from profiler.surface_cache import at
from profiler.trace import surface as derivation
from profiler.trace import trace_case
from profiler.trace.surface import differs, extend, new_surface

TINY = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOW = {**TINY, "model_type": "mistral", "sliding_window": 300}


def case(**fields: Any) -> Case:
    return Case.from_dict({"model": TINY, "task": "training", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention": "eager", "optimizer": "adamw_torch"},
        {"method": "lora", "quantization": "nf4", "gradient_checkpointing": True},
        {"model": WINDOW},
        {"task": "inference", "max_new_tokens": 20},
        {"task": "inference", "max_new_tokens": 9, "cache": "static"},
        {"task": "inference", "max_new_tokens": 7, "model": WINDOW},
        {"task": "inference", "quantization": "nf4", "max_new_tokens": 5},
    ],
    ids=str,
)
def test_points_left_out_are_the_trace_to_the_byte(fields: dict[str, Any]) -> None:
    c = case(**fields)
    surface = new_surface(c)
    for batch, length in ((1, 97), (2, 701), (6, 640)):
        extend(surface, c, batch, length)
        point, report = surface.point(batch, length), trace_case(at(c, batch, length))
        assert point.phases == report.phases
        assert point.phase == report.peak.phase
        assert point.requested_bytes == report.peak.requested_bytes
        assert point.allocated_bytes == report.peak.allocated_bytes
        assert point.reserved_bytes == report.peak.reserved_bytes
        assert not differs(surface, at(c, batch, length))
        asked = surface.grid([batch], [length], counter="requested")[0][0]
        assert asked == pytest.approx(report.peak.requested_bytes, rel=0.001)
        near = surface.grid([batch], [length])[0][0]
        assert near == pytest.approx(report.peak.allocated_bytes, rel=0.03)


def test_a_region_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[tuple[int, int]] = []
    record = derivation.record_timeline

    def counting(c: Case) -> Any:
        traced.append((c.batch_size, c.sequence_length))
        return record(c)

    monkeypatch.setattr(derivation, "record_timeline", counting)
    c = case(method="lora")
    surface = new_surface(c)
    extend(surface, c, 4, 100)
    assert len(traced) == len(set(traced)) == derivation.POINTS_A_REGION
    extend(surface, c, 9, 5000)
    assert len(traced) == derivation.POINTS_A_REGION


def test_a_run_that_grows_by_no_rule_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = derivation.record_timeline

    def odd(c: Case) -> Any:
        timeline, parameters = record(c)
        timeline.allocations[-1].size_bytes += c.sequence_length**3 % 10_007
        return timeline, parameters

    monkeypatch.setattr(derivation, "record_timeline", odd)
    with pytest.raises(UnsupportedError, match=r"no rule .*gpumem trace"):
        extend(new_surface(case()), case(), 2, 100)


def test_a_run_that_takes_other_paths_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    record = derivation.record_timeline

    def odd(c: Case) -> Any:
        timeline, parameters = record(c)
        if c.sequence_length > 200:
            timeline.allocate(512)
        return timeline, parameters

    monkeypatch.setattr(derivation, "record_timeline", odd)
    with pytest.raises(UnsupportedError, match="other paths at"):
        extend(new_surface(case()), case(), 2, 100)


def test_answers_are_kept_in_a_file_and_come_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "surface.json"
    c = case(method="lora", batch_size=2, sequence_length=100)
    first = SurfaceAnswers(c, path)
    peaks = first(c)
    first.check(c)
    first.finish()
    assert "simulated: torch" in first.notes[0]

    monkeypatch.setattr(surface_answers, "_can_trace", lambda: False)
    again = SurfaceAnswers(c, path)
    assert again(c) == peaks
    assert again(at(c, 3, 1000)).allocated_bytes > peaks.allocated_bytes
    with pytest.raises(EnvironmentUnavailable, match="pip install"):
        again(at(c, 1, 100))
    with pytest.raises(RecordError, match="its optimizer is 'adamw_torch_fused', not 'sgd'"):
        SurfaceAnswers(case(method="lora", optimizer="sgd"), path)
    with pytest.raises(RecordError, match="config is another"):
        SurfaceAnswers(case(method="lora", model={**TINY, "hidden_size": 128}), path)


def test_a_file_of_other_versions_is_traced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "surface.json"
    c = case(method="lora", batch_size=2, sequence_length=100)
    first = SurfaceAnswers(c, path)
    first.surface.identity["code"] = "older"
    first(c)
    first.finish()
    second = SurfaceAnswers(c, path)
    assert "traced again" in second.notes[0]
    assert second.surface.streams == {}
    monkeypatch.setattr(surface_answers, "_can_trace", lambda: False)
    assert SurfaceAnswers(c, path)(c) == first(c)


def test_shared_sequences_have_no_surface() -> None:
    case = Case.from_dict({"model": "gpt2", "task": "training", "parallelism": {"sp_size": 2}})
    with pytest.raises(UnsupportedError, match="without --source trace"):
        new_surface(case)
