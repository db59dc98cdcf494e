"""The same case several times, each in a fresh worker: the bytes must be the same."""

from __future__ import annotations

from collections.abc import Sequence

from estimator.case import Case
from profiler.record import Record
from profiler.requests import HowToRun
from profiler.workers import Worker


def run_repeats(worker: Worker, case: Case, repeats: int) -> list[Record]:
    """Run a case `repeats` times and return the records, flagged where they differ."""
    return flag_unequal(
        [worker.run(case, how=HowToRun(repeat=number + 1)) for number in range(repeats)]
    )


def flag_unequal(records: Sequence[Record]) -> list[Record]:
    """Return records of one case, each with a flag if what they measured is not equal to the byte.

    The driver's counter is left out: it is not ours alone. Failed records count by their status.
    """
    if len({_measured(record) for record in records}) < 2:
        return list(records)
    peaks = [record.peak.allocated_bytes for record in records if record.peak is not None]
    spread = f": peak allocated by {max(peaks) - min(peaks)} B" if len(peaks) > 1 else ""
    return [record.with_flags(f"{len(records)} repeats differ{spread}") for record in records]


def flag_if_unequal(record: Record, earlier: Sequence[Record]) -> Record:
    """Return a measured record, flagged if it is not equal to the byte to an earlier repeat's."""
    if record.source != "cuda":
        return record
    others = [one for one in earlier if one.status == record.status == "ok"]
    different = next((one for one in others if _measured(one) != _measured(record)), None)
    if different is None or record.peak is None or different.peak is None:
        return record
    apart = abs(record.peak.allocated_bytes - different.peak.allocated_bytes)
    return record.with_flags(
        f"it differs from repeat {different.repeat}: peak allocated by {apart} B"
    )


def _measured(record: Record) -> tuple[object, ...]:
    peak, measurement = record.peak, record.measurement
    if peak is None:
        return (record.status,)
    counts = (peak.phase, peak.requested_bytes, peak.allocated_bytes, peak.reserved_bytes)
    phases = () if measurement is None else measurement.phases
    return (record.status, *counts, *phases)
