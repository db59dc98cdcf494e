"""Workers: each case is run in another process, whose death costs one case and nothing else.

A CUDA case gets a fresh process, so that no case sees another's cache or context; a trace
shares one process with the cases before it, because importing torch takes seconds. A process
that dies is replaced at the next case. Protocol: see `profiler.worker_process`.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Literal, Self

from estimator.case import Case
from estimator.errors import RecordError
from profiler.environment import Environment, collect_environment
from profiler.provenance import Stopwatch
from profiler.record import Record
from profiler.requests import AS_USUAL, HowToRun
from profiler.worker_process import Ending, NoAnswer, TimeUp, WorkerProcess

_EXIT_GRACE_S = 20.0
"""How long a worker that has answered may take to end: CUDA's teardown takes a second or two."""


class Worker:
    """Runs cases one at a time, each under a time limit; use it in a `with` block.

    Args:
        source: `cuda` (a fresh process a case) or `trace` (one process for many).
        timeout_s: seconds that a case may take, imports included.
        command: the worker's command line; by default this Python with profiler.worker_main.

    One thread calls `prepare` and `run`; `kill` may be called from any.
    """

    def __init__(
        self, source: str, timeout_s: float = 600.0, command: Sequence[str] | None = None
    ) -> None:
        self._source = source
        self._timeout_s = timeout_s
        self._command = list(command or [sys.executable, "-P", "-m", "profiler.worker_main"])
        self._process: WorkerProcess | None = None
        self._environment: Environment | None = None
        self._killed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the worker that is running, if one is."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the worker's process, if there is one, with everything that it started."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def kill(self) -> None:
        """Stop for good, from any thread: the case that is running ends as an error."""
        self._killed = True
        process = self._process
        if process is not None:
            process.kill()

    def prepare(self) -> None:
        """Start the worker's process, if there is none: it imports what it needs and then waits.

        Nothing is on the card by then. Whoever waits for room on it loses no time this way.
        """
        # What cannot be started now cannot be started by `run` either, which says so.
        with suppress(OSError):
            self._start()

    def run(self, case: Case, timeout_s: float | None = None, how: HowToRun = AS_USUAL) -> Record:
        """Run one case and return its record; a worker's death is a record too.

        Args:
            timeout_s: seconds for this case instead of the worker's own limit.
            how: what is asked of the worker beside the case.
        """
        watch = Stopwatch()
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        request = {"source": self._source, "case": case.to_dict(), **how.to_dict()}
        line = json.dumps(request).encode() + b"\n"
        deadline = time.monotonic() + limit_s
        failure: dict[str, Any]
        try:
            answer = self._exchange(line, deadline)
            record = self._read(answer, json.loads(line)["case"])
        except OSError as error:
            failure = {
                "message": f"the worker cannot be started: {error.strerror}: {self._command[0]}",
                "kind": type(error).__name__,
            }
        except TimeUp:
            failure = self._describe_end(f"took longer than its {limit_s:g} s", "timeout")
        except NoAnswer:
            failure = self._describe_end("ended before it answered", "no_answer")
        except RecordError as error:
            failure = self._describe_end(f"answered with garbage ({error})", "garbage")
        except BaseException:
            self.close()
            raise
        else:
            return self._finish(record)
        status: Literal["timeout", "error"] = "error"
        if failure["kind"] == "timeout":
            status = "timeout"
        return Record.failed(
            case,
            self._source,
            status,
            environment=self._known_environment(),
            provenance=watch.provenance(how.repeat),
            loop=how.loop,
            **failure,
        )

    def _exchange(self, line: bytes, deadline: float) -> bytes:
        process = self._start()
        # `kill` may have come while the process was starting.
        if process is None or self._killed:
            raise NoAnswer
        return process.exchange(line, deadline)

    def _start(self) -> WorkerProcess | None:
        if self._process is None and not self._killed:
            self._process = WorkerProcess(self._command)
        return self._process

    def _read(self, answer: bytes, case: Any) -> Record:
        try:
            text = answer.decode()
        except UnicodeDecodeError:
            raise RecordError("it is not UTF-8") from None
        record = Record.from_json(text)
        if record.source != self._source or record.case != case:
            raise RecordError("it is for another case")
        return record

    def _finish(self, record: Record) -> Record:
        """End a process that is not used again, and note it if that does not go well."""
        if self._source != "cuda" or self._process is None:
            return record
        ending = self._process.end(_EXIT_GRACE_S)
        self._process = None
        if ending.forced:
            return record.with_flags("the worker did not end after it answered and was killed")
        if ending.exit_code != 0:
            return record.with_flags(f"the worker answered and then {_describe(ending)}")
        return record

    def _describe_end(self, what: str, kind: str) -> dict[str, Any]:
        """End the process, and return `Record.failed`'s arguments for how it ended."""
        if self._killed:
            what, kind = "was stopped", "stopped"
        if self._process is None:
            return {"message": f"the worker {what}", "kind": kind}
        # A worker whose pipe has ended is on its way out: let it say its own exit code.
        ending = self._process.end(1.0 if kind == "no_answer" else 0.0)
        tail = self._process.tail
        self._process = None
        if kind == "no_answer" and not ending.forced:
            what = f"{_describe(ending)} before it answered"
            kind = "signal" if ending.signal else "no_answer" if ending.exit_code == 0 else "exit"
        last = tail.rpartition("\n")[2][:200]
        return {
            "message": f"the worker {what}" + (f": {last}" if last else ""),
            "kind": kind,
            "exit_code": None if ending.forced else ending.exit_code,
            "signal": None if ending.forced else ending.signal,
            "details": tail or None,
        }

    def _known_environment(self) -> Environment:
        if self._environment is None:
            self._environment = collect_environment(self._source)
        return self._environment


def _describe(ending: Ending) -> str:
    if ending.signal == "SIGKILL":
        return "was killed by SIGKILL (the machine's memory may have run out)"
    if ending.signal is not None:
        return f"was killed by {ending.signal}"
    return f"ended with exit code {ending.exit_code}"
