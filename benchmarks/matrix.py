"""The formulas against the trace over a seeded matrix of random cases.

    python -m benchmarks.matrix --seed 0 --count 200 --workers 2 -o out/matrix.jsonl

Every answer of the trace is written as it comes, and a run that was stopped goes on where it
stopped; the formulas are asked again each time. Prints the median, the 95th percentile and the
worst error, tables by family and by axis, and for the worst cases the component that differs. Both
sides are predictions: nothing here is measured.
"""

from __future__ import annotations

import argparse
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.case_generator import QUICK, draw_cases
from benchmarks.matrix_answers import Answer, AnswerFile
from benchmarks.matrix_comparison import Failure, compare_answer
from benchmarks.matrix_page import write_page
from benchmarks.matrix_tables import slowest_lines, text_lines
from estimator.case import Case
from estimator.errors import GpumemError
from profiler.workers import Worker

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C stopped, as a shell's."""


def trace_cases(
    cases: Sequence[Case],
    workers: int,
    timeout_s: float,
    on_answer: Callable[[Answer], None],
) -> bool:
    """Trace cases in `workers` processes, which each keep torch imported; False if interrupted.

    `on_answer` is called with each answer as it comes, one at a time.
    """
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    lock = threading.Lock()
    stopped = threading.Event()
    pool = [Worker("trace", timeout_s) for _ in range(min(workers, len(cases)))]

    def work(worker: Worker) -> None:
        with worker:
            while not stopped.is_set():
                try:
                    case = waiting.get_nowait()
                except queue.Empty:
                    return
                started = time.monotonic()
                record = worker.run(case)
                answer = Answer.from_record(case, record, time.monotonic() - started)
                with lock:
                    if not stopped.is_set():
                        on_answer(answer)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in pool]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stopped.set()
        for worker in pool:
            worker.kill()
        for thread in threads:
            thread.join()
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the matrix; exit code 3 where a case got no answer."""
    options = _parser().parse_args(arguments)
    cases = list(draw_cases(options.seed, options.count, QUICK if options.quick else None))
    file = None if options.output is None else AnswerFile(options.output)
    try:
        answers = {} if file is None else file.read()
        apart = {} if options.held_out is None else AnswerFile(options.held_out).read()
    except GpumemError as error:
        print(f"gpumem: {error}", file=sys.stderr)
        return 2
    missing = [c for c in cases if c.case_id not in answers or not answers[c.case_id].final]
    if options.no_trace:
        missing = []
    done = 0

    def keep(answer: Answer) -> None:
        nonlocal done
        answers[answer.case.case_id] = answer
        if file is not None:
            file.add(answer)
        done += 1
        if sys.stderr.isatty() or done % 25 == 0:
            print(f"{done}/{len(missing)}", file=sys.stderr, flush=True)

    whole = trace_cases(missing, options.workers, options.timeout, keep)
    found = [answers[case.case_id] for case in cases if case.case_id in answers]
    results = [compare_answer(answer) for answer in found]
    held_out = [compare_answer(answer) for answer in apart.values()]
    for line in text_lines(results, options.show, options.tables):
        print(line)
    for line in slowest_lines(found, options.show if options.tables else 0):
        print(line)
    if options.page is not None:
        write_page(options.page, results, options.seed, len(cases), held_out)
    if not whole:
        return INTERRUPTED
    unanswered = len(found) < len(cases) or any(isinstance(one, Failure) for one in results)
    return 3 if unanswered else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds a case may take")
    parser.add_argument("--quick", action="store_true", help="small models only")
    parser.add_argument("--tables", action="store_true", help="tables by family, axis and seconds")
    parser.add_argument("--show", type=int, default=10, help="how many of the worst to print")
    parser.add_argument("--no-trace", action="store_true", help="only what the file answers")
    parser.add_argument("--page", type=Path, help="write the results as Markdown")
    parser.add_argument(
        "--held-out", type=Path, help="a file of another seed's answers, for a section of the page"
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="file of the trace's answers, JSON lines; is resumed"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
