"""Fits, tight or does not fit: the peak, the card and the CUDA context."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.verdict import CONTEXT_HIGH_BYTES, CONTEXT_LOW_BYTES, judge
from estimator.article import estimate_article
from estimator.case import Case
from estimator.gpus import find_gpu
from estimator.report import MemoryReport

CARD = find_gpu("L4")


def report(allocated: int, reserved: int | None = None) -> MemoryReport:
    base = estimate_article(Case.from_dict({"model": "gpt2"}))
    peak = replace(base.peak, allocated_bytes=allocated, reserved_bytes=reserved)
    return replace(base, peak=peak)


@pytest.mark.parametrize(
    ("reserved", "state"),
    [
        (CARD.memory_bytes - CONTEXT_HIGH_BYTES, "fits"),
        (CARD.memory_bytes - CONTEXT_HIGH_BYTES + 1, "tight"),
        (CARD.memory_bytes - CONTEXT_LOW_BYTES, "tight"),
        (CARD.memory_bytes - CONTEXT_LOW_BYTES + 1, "does not fit"),
        (CARD.memory_bytes * 2, "does not fit"),
        (0, "fits"),
    ],
)
def test_states_by_reserved_peak(reserved: int, state: str) -> None:
    verdict = judge(report(1, reserved), CARD)
    assert verdict.state == state
    assert verdict.headroom_bytes == CARD.memory_bytes - reserved


def test_allocated_alone_keeps_a_slack() -> None:
    limit = CARD.memory_bytes - CONTEXT_HIGH_BYTES
    assert judge(report(limit), CARD).state == "tight"
    assert judge(report(int(limit / 1.05)), CARD).state == "fits"


def test_estimated_reserved_bytes_do_not_end_the_slack() -> None:
    limit = CARD.memory_bytes - CONTEXT_HIGH_BYTES
    estimated = report(limit - 10, limit)
    assert judge(estimated, CARD).state == "tight"
    assert judge(replace(estimated, source="trace"), CARD).state == "fits"


def test_sentence_names_the_real_memory_and_the_context() -> None:
    sentence = judge(report(CARD.memory_bytes + 10**9), CARD).sentence
    assert "L4 (23034 MiB): does not fit, short by 1.00 GB (0.93 GiB)" in sentence
    assert "CUDA context" in sentence
    assert "headroom" in judge(report(10**9), CARD).sentence
