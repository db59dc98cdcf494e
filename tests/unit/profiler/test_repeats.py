"""Repeats must agree to the byte, or be flagged."""

from __future__ import annotations

import sys
import textwrap

from estimator.case import Case
from profiler.repeats import run_repeats
from profiler.workers import Worker

WORKER = """
from estimator.report import *
from profiler.record import Measurement, Record
from profiler.worker_main import serve

def answer(request):
    peaks = {peaks}
    report = MemoryReport(
        source=request.source, case=request.case.to_dict(), parameters=Parameters(1, 1),
        peak=Peak("decode", 1, peaks[request.how.repeat - 1], 3), phases=(),
        components=Components(),
    )
    return Record.from_report(report, None, None, Measurement())

serve(answer)
"""


def flags_of(peaks: list[int]) -> list[tuple[str, ...]]:
    code = textwrap.dedent(WORKER).format(peaks=peaks)
    with Worker("cuda", 30, [sys.executable, "-c", code]) as worker:
        records = run_repeats(worker, Case.from_dict({"model": "gpt2"}), len(peaks))
    assert [record.status for record in records] == len(peaks) * ["ok"]
    return [record.flags for record in records]


def test_equal_repeats_have_no_flag() -> None:
    assert flags_of([512, 512]) == [(), ()]


def test_unequal_repeats_are_all_flagged() -> None:
    flag = "3 repeats differ: peak allocated by 1024 B"
    assert flags_of([512, 1536, 512]) == 3 * [(flag,)]
