"""Measured runs to learn from: one run, its case, and the highest bytes of each counter.

A run may have several counters (allocated, reserved, device); figures of one run are kept together.
Traces are predictions and never evidence; what `benchmarks.holdout` holds out is left to judge by.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.evidence.rows import published_measurements
from benchmarks.holdout import is_held_out
from benchmarks.sides import read_side
from estimator.case import Case
from estimator.coefficients import run_kind
from estimator.config_source import load_config
from estimator.errors import GpumemError
from estimator.gpus import find_gpu

COUNTERS = ("allocated", "reserved", "device")

PUBLISHED_TIERS = ("A", "B")
"""What is rounded or unclear (tier C) is no evidence for fits."""

PUBLISHED_WORDS = "measured and published by others"
OWN_WORDS = "measured by this project's profiler"


class EvidenceError(GpumemError):
    """There is no evidence to calibrate on; the message names the way out."""


@dataclass(frozen=True, slots=True)
class Run:
    """A measured run: ids of its figures, its case, peak bytes by counter.

    `family` is the model's type in transformers (`llama`, `qwen3_moe`): what is left out together.
    `measured_by` completes "N runs ...".
    """

    ids: tuple[str, ...]
    case: Case
    family: str
    counters: dict[str, int]
    measured_by: str

    @property
    def kind(self) -> str:
        """The kind of run, as estimates are matched."""
        return run_kind(self.case)


def family_of(case: Case) -> str:
    """Return the family of a case's model: its model type in transformers.

    Raises:
        ModelError: when the configuration cannot be read.
    """
    model = case.model if isinstance(case.model, str) else json.dumps(case.model, sort_keys=True)
    return _family(model, isinstance(case.model, str))


@cache
def _family(model: str, named: bool) -> str:
    return load_config(model if named else json.loads(model)).model_type


def measured_runs(folder: Path) -> tuple[Run, ...]:
    """Return the runs of a folder of records that were measured and finished without a flag.

    Raises:
        RecordError: when there is no such folder.
    """
    runs = []
    for entry in read_side(str(folder)).cases.values():
        record = entry.record
        if record.source != "cuda" or record.status != "ok" or record.peak is None or entry.flags:
            continue
        if is_held_out(entry.case):
            continue
        sizes = {name: getattr(record.peak, f"{name}_bytes") for name in COUNTERS}
        counters = {name: size for name, size in sizes.items() if size}
        case = entry.predicted_case
        run = Run((record.record_id,), case, family_of(case), counters, OWN_WORDS)
        runs.append(run)
    return tuple(runs)


def published_runs() -> tuple[Run, ...]:
    """Return the published runs with a peak of known counter, tiers A and B; equal cases apart.

    A run's rows stand one after another, each with another counter.
    """
    runs: list[Run] = []
    last: tuple[str, ...] = ()
    for row in published_measurements():
        case, counter, size = row.case, row.counter, row.size_bytes
        if row.outcome != "ok" or row.instant != "peak" or row.tier not in PUBLISHED_TIERS:
            continue
        if case is None or counter not in COUNTERS or not size or is_held_out(case):
            continue
        key = (row.source, row.method, row.framework, case.case_id)
        if key == last and counter not in runs[-1].counters:
            known = runs.pop()
            ids, counters = (*known.ids, row.row_id), {**known.counters, counter: size}
            runs.append(replace(known, ids=ids, counters=counters))
        else:
            counters = {counter: size}
            runs.append(Run((row.row_id,), case, family_of(case), counters, PUBLISHED_WORDS))
        last = key
    return tuple(map(_at_one_moment, runs))


def _at_one_moment(run: Run) -> Run:
    """Leave a device figure out that is below the reserved one of its run: the driver, which shows
    more than that, was asked at another moment than the peak."""
    counters = run.counters
    if counters.get("device", 0) >= counters.get("reserved", 0) or "device" not in counters:
        return run
    kept = {name: size for name, size in counters.items() if name != "device"}
    return replace(run, counters=kept)


def evidence_hash(runs: Iterable[Run]) -> str:
    """Return a hash of all figures and cases, 16 hex digits, whatever their order."""
    rows = sorted(json.dumps(_plain(run), sort_keys=True) for run in runs)
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()[:16]


def _plain(run: Run) -> dict[str, Any]:
    return {"ids": list(run.ids), "case": run.case.to_dict(), "counters": run.counters}


def described(runs: Sequence[Run]) -> str:
    """Return by whom runs were measured, on which cards and whether on older stacks.

    It completes "N runs ...".
    """
    words = " and ".join(sorted({run.measured_by for run in runs}))
    cards = sorted({find_gpu(run.case.gpu).name for run in runs if run.case.gpu is not None})
    words += f" on {' and '.join(cards)}" if cards else ""
    older = any(run.case.stack is not None for run in runs)
    return f"{words}, older stacks (docs/stacks.md)" if older else words
