"""The formulas against the trace over a seeded matrix of random cases.

    python -m benchmarks.matrix --seed 0 --count 200 --workers 2 -o matrix.json

Prints the median, the 95th percentile and the worst error, the under-estimates, and for the worst
cases the phase and the component that differs; writes every comparison as JSON. Both sides are
predictions: nothing here is measured.
"""

from __future__ import annotations

import argparse
import json
import queue
import statistics
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.case_generator import QUICK, draw_cases
from estimator import estimate
from estimator.case import Case
from estimator.errors import GpumemError
from estimator.report import COMPONENTS, MemoryReport
from estimator.units import format_error, format_gib, relative_error
from profiler.workers import Worker


@dataclass(frozen=True, slots=True)
class Comparison:
    """One case, answered by the formulas and by the trace."""

    case: Case
    formulas: MemoryReport
    trace: MemoryReport

    @property
    def requested_error(self) -> float:
        """Relative error of the peak that tensors ask for."""
        ours, theirs = self.formulas.peak.requested_bytes, self.trace.peak.requested_bytes
        assert ours is not None
        assert theirs is not None
        return relative_error(ours, theirs)

    @property
    def allocated_error(self) -> float:
        """Relative error of the peak that is handed out."""
        return relative_error(self.formulas.peak.allocated_bytes, self.trace.peak.allocated_bytes)

    def differences(self) -> dict[str, int]:
        """Return formulas minus trace at the peak, by component, where they differ."""
        pairs = {
            name: getattr(self.formulas.components, f"{name}_bytes")
            - getattr(self.trace.components, f"{name}_bytes")
            for name in COMPONENTS
        }
        return {name: size for name, size in pairs.items() if size}

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a JSON object."""
        return {
            "case": self.case.to_dict(),
            "requested_error": self.requested_error,
            "allocated_error": self.allocated_error,
            "differences_bytes": self.differences(),
            "formulas": self.formulas.to_dict(),
            "trace": self.trace.to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that one side could not answer."""

    case: Case
    message: str

    def to_dict(self) -> dict[str, Any]:
        """Return the failure as a JSON object."""
        return {"case": self.case.to_dict(), "error": {"message": self.message}}


Result = Comparison | Failure


@dataclass(frozen=True, slots=True)
class Summary:
    """Sizes of relative errors over many comparisons: fractions, not percents."""

    count: int
    median: float
    percentile_95: float
    worst: float
    worst_under: float
    """The largest under-estimate as a negative number, 0 where there is none."""


def compare_case(case: Case, trace: Callable[[Case], MemoryReport]) -> Comparison:
    """Ask both sides.

    Raises:
        GpumemError: either side cannot answer.
    """
    return Comparison(case, estimate(case), trace(case))


def summarize(errors: Iterable[float]) -> Summary:
    """Summarize relative errors; the 95th percentile is the smallest error that 95 % stay within.

    Raises:
        ValueError: there are none.
    """
    signed = list(errors)
    if not signed:
        raise ValueError("there are no errors to summarize")
    sizes = sorted(abs(error) for error in signed)
    within = -(-len(sizes) * 95 // 100) - 1
    return Summary(
        len(sizes), statistics.median(sizes), sizes[within], sizes[-1], min(0.0, *signed, 0.0)
    )


def run_matrix(
    cases: Sequence[Case], workers: int, on_result: Callable[[Result], None]
) -> list[Result]:
    """Compare cases, each traced in one of `workers` processes; results keep the order."""
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(len(cases)):
        waiting.put(index)
    results: dict[int, Result] = {}
    lock = threading.Lock()

    def work() -> None:
        with Worker("trace") as worker:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                result = _answer(cases[index], worker)
                with lock:
                    results[index] = result
                    on_result(result)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[index] for index in range(len(cases))]


def _answer(case: Case, worker: Worker) -> Result:
    record = worker.run(case)
    if record.report is None:
        return Failure(case, record.error.message if record.error else record.status)
    report = record.report
    try:
        return compare_case(case, lambda _: report)
    except GpumemError as error:
        return Failure(case, str(error))
    except Exception as error:
        # A formula that fails is what the matrix is there to find: it costs one case, not all.
        return Failure(case, f"{type(error).__name__}: {error}")


def print_results(results: Sequence[Result], show: int) -> None:
    """Print the summary, and the `show` worst cases with what differs."""
    compared = [result for result in results if isinstance(result, Comparison)]
    for failure in results:
        if isinstance(failure, Failure):
            print(f"no answer: {failure.case.label}: {failure.message}")
    if not compared:
        return
    for name in ("requested", "allocated"):
        summary = summarize(getattr(item, f"{name}_error") for item in compared)
        print(
            f"{name}: {summary.count} cases, median {100 * summary.median:.3f} %, "
            f"95 % within {100 * summary.percentile_95:.3f} %, worst {100 * summary.worst:.2f} %, "
            f"worst under-estimate {format_error(summary.worst_under)}"
        )
    elsewhere = sum(item.formulas.peak.phase != item.trace.peak.phase for item in compared)
    print(f"peak in another phase than the trace's: {elsewhere}")
    for item in sorted(compared, key=lambda c: -abs(c.requested_error))[:show]:
        differences = sorted(item.differences().items(), key=lambda pair: -abs(pair[1]))[:3]
        print(
            f"{format_error(item.requested_error)} requested, "
            f"{format_error(item.allocated_error)} allocated: {item.case.label} "
            f"[{item.trace.case['model'] if isinstance(item.case.model, str) else 'made up'}] "
            f"{format_gib(item.trace.peak.allocated_bytes)} in {item.trace.peak.phase} "
            f"(formulas: {item.formulas.peak.phase}); "
            + ", ".join(f"{name} {size:+d} B" for name, size in differences)
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the matrix; exit code 3 where a case got no answer."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.matrix", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="small made-up models only")
    parser.add_argument("--show", type=int, default=10, help="how many of the worst to print")
    parser.add_argument("-o", "--output", type=Path, help="write every comparison as JSON")
    options = parser.parse_args(arguments)
    cases = list(draw_cases(options.seed, options.count, QUICK if options.quick else None))
    done = 0

    def progress(_: Result) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty() or done % 25 == 0:
            print(f"{done}/{len(cases)}", file=sys.stderr, flush=True)

    results = run_matrix(cases, options.workers, progress)
    print_results(results, options.show)
    if options.output is not None:
        rows = [result.to_dict() for result in results]
        content = {"seed": options.seed, "count": options.count, "results": rows}
        options.output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 3 if any(isinstance(result, Failure) for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
