"""The search behind the page: axes, and its end where a model is too large."""

from __future__ import annotations

import pytest

from app.web import fits as module
from app.web.fits import fits
from app.web.form import clean_state


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
    monkeypatch.setattr(module, "BUDGET_S", -1.0)
    assert fits(clean_state({})) is None


def test_a_case_is_estimated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    whole = module.estimated_peaks

    def counting(case: object) -> object:
        seen.append(repr(case))
        return whole(case)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "estimated_peaks", counting)
    assert fits(clean_state({"task": "training", "gpu": "A10"})) is not None
    assert len(seen) == len(set(seen)) > 40
