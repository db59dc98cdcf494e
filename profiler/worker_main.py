"""The worker's side: `python -m profiler.worker_main`, started by `profiler.workers`.

Reads requests from standard input and answers on an inherited pipe until standard input ends
(protocol: `profiler.worker_process`).
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from estimator.case import Case
from estimator.errors import GpumemError
from profiler.environment import collect_environment
from profiler.provenance import Stopwatch
from profiler.record import Record
from profiler.requests import AS_USUAL, HowToRun
from profiler.worker_process import RECORD_FD_VARIABLE

_DETAIL_CHARS = 4000


@dataclass(frozen=True, slots=True)
class Request:
    """One case to run, and how."""

    source: str
    case: Case
    how: HowToRun = AS_USUAL

    @classmethod
    def from_line(cls, line: bytes) -> Request:
        """Read what `Worker.run` sends."""
        data: dict[str, Any] = json.loads(line)
        return cls(data["source"], Case.from_dict(data["case"]), HowToRun.from_dict(data))


def serve(answer: Callable[[Request], Record]) -> None:
    """Answer requests until standard input ends; if it ends during one, kill this group.

    Standard input ends early only where the runner is gone or no longer wants the answer.
    """
    record_fd = int(os.environ[RECORD_FD_VARIABLE])
    lines: queue.Queue[bytes | None] = queue.Queue()
    threading.Thread(target=_read_lines, args=(lines,), daemon=True).start()
    while (line := lines.get()) is not None:
        record = _answer_or_failure(answer, Request.from_line(line))
        data = record.to_json().encode() + b"\n"
        # Before the answer leaves: the runner may close our input as soon as it has it.
        lines.task_done()
        while data:
            data = data[os.write(record_fd, data) :]


def answer(request: Request) -> Record:
    """Trace or measure one case."""
    watch = Stopwatch()
    if request.source == "trace":
        from profiler.trace import trace_case

        report = trace_case(request.case)
        return Record.from_report(
            report, collect_environment("trace"), watch.provenance(request.how.repeat)
        )
    from profiler.measure import measure_case

    return measure_case(request.case, request.how)


def _answer_or_failure(answer: Callable[[Request], Record], request: Request) -> Record:
    watch = Stopwatch()
    try:
        return answer(request)
    except Exception as error:
        failure = _describe(error)
    return Record.failed(
        request.case,
        request.source,
        "error",
        environment=collect_environment(request.source),
        provenance=watch.provenance(request.how.repeat),
        loop=request.how.loop,
        **failure,
    )


def _describe(error: Exception) -> dict[str, Any]:
    """Return `Record.failed`'s arguments: our own errors are sentences, others need the trace."""
    kind = type(error).__name__
    if isinstance(error, GpumemError):
        return {"message": str(error), "kind": kind}
    first = (str(error).strip().splitlines() or ["(no message)"])[0][:300]
    return {
        "message": f"{kind}: {first}",
        "kind": kind,
        "details": "".join(traceback.format_exception(error))[-_DETAIL_CHARS:],
    }


def _read_lines(lines: queue.Queue[bytes | None]) -> None:
    # os.read rather than sys.stdin: a thread that holds its lock would break the exit.
    pending = b""
    while chunk := os.read(0, 2**16):
        *whole, pending = (pending + chunk).split(b"\n")
        for line in whole:
            lines.put(line)
    if lines.unfinished_tasks:
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)
    lines.put(None)


def main() -> int:
    """Serve the process that started this one."""
    if RECORD_FD_VARIABLE not in os.environ:
        message = "gpumem: this is a worker; `gpumem profile` and `gpumem run` start it"
        print(message, file=sys.stderr)
        return 2
    _import_ahead()
    serve(answer)
    return 0


def _import_ahead() -> None:
    """Import what every case needs, before one is there; no CUDA context comes of it."""
    for name in ("torch", "transformers", "profiler.build", "profiler.loops"):
        # What is missing or broken is the case's to say, in its record.
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            importlib.import_module(name)


if __name__ == "__main__":
    sys.exit(main())
