"""The search behind the page: axes, and its end where a model is too large."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.web import fits as module
from app.web.fits import fits
from app.web.form import clean_state
from app.web.render import render_fits
from estimator.case import Case
from estimator.fit import Peaks, estimated_peaks, largest_batch, played_peaks
from estimator.gpus import find_gpu
from estimator.headroom import Room


@pytest.mark.parametrize(
    ("form", "batches", "lengths"),
    [
        ({}, (1, 2, 4, 8, 16), (256, 512, 1024, 2048, 4096, 8192)),
        ({"batch_size": 6, "sequence_length": 1}, (1, 3, 6, 12, 24), (1, 2, 4, 8, 16, 32)),
        ({"model": "gpt2", "sequence_length": 800}, (1, 2, 4, 8, 16), (25, 50, 100, 200, 400, 800)),
    ],
)
def test_the_axes_are_around_the_case(
    form: dict[str, object], batches: tuple[int, ...], lengths: tuple[int, ...]
) -> None:
    found = fits(clean_state(form))
    assert found is not None
    assert found.heat_map.batches == batches
    assert found.heat_map.lengths == lengths


def test_a_search_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits(clean_state({})) is not None
    monkeypatch.setattr(module, "PLAYED_S", -1.0)
    monkeypatch.setattr(module, "BUDGET_S", -1.0)
    assert fits(clean_state({})) is None


def test_a_model_too_large_to_be_played_keeps_a_share_free(monkeypatch: pytest.MonkeyPatch) -> None:
    form = clean_state({"gpu": "RTX-4090"})
    played = fits(form)
    monkeypatch.setattr(module, "PLAYED_S", -1.0)
    ruled = fits(form)
    assert played is not None
    assert ruled is not None
    assert (played.played, ruled.played) == (True, False)
    case, room = ruled.case, Room(find_gpu("RTX-4090"))
    assert ruled.batch == largest_batch(case, estimated_peaks, room)
    assert "5 % of the peak for fragmentation" in render_fits(form)


def test_a_case_is_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def counting(case: Case) -> Peaks:
        seen.append(repr(case))
        return played_peaks(case)

    monkeypatch.setattr(module, "played_peaks", counting)
    assert fits(clean_state({"task": "training", "gpu": "A10"})) is not None
    assert len(seen) == len(set(seen)) > 40


def test_the_heat_map_holds_what_fit_holds() -> None:
    found = fits(clean_state({"task": "training", "method": "lora", "gpu": "RTX-4090"}))
    assert found is not None
    room, chart = Room(find_gpu("RTX-4090")), found.heat_map
    for batch, sizes, held in zip(chart.batches, chart.peaks, chart.held, strict=True):
        for length, size, holds in zip(chart.lengths, sizes, held, strict=True):
            case = replace(found.case, batch_size=batch, sequence_length=length)
            peaks = played_peaks(case)
            assert (size, holds) == (peaks.allocated_bytes, peaks.held_by(room))
    assert {True, False} == {holds for row in chart.held for holds in row}
