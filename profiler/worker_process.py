"""One worker process: its group, its three pipes, its time limit, its end.

The worker gets requests as JSON lines on standard input and writes its answers as JSON lines
to the inherited pipe whose number is in the environment variable `GPUMEM_RECORD_FD`. Standard
output and error are free for what libraries print; the last of it is kept. Standard input
stays open as long as an answer is wanted: its end tells the worker to stop at once, so that no
worker outlives a runner that was killed.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RECORD_FD_VARIABLE = "GPUMEM_RECORD_FD"

_TAIL_BYTES = 8192
_MAX_ANSWER_BYTES = 64 * 2**20
_TICK_S = 0.25
_TERM_GRACE_S = 2.0


class NoAnswer(Exception):
    """The worker's pipe ended, or its process did, before a whole line came."""


class TimeUp(Exception):
    """The deadline passed before a whole line came."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker ended: its exit code, or the signal that killed it; `forced` if we did."""

    exit_code: int | None = None
    signal: str | None = None
    forced: bool = False


class WorkerProcess:
    """A running worker in a session and process group of its own.

    One thread uses it; `kill` may be called from any.

    Raises:
        OSError: when the command cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        answers, theirs = os.pipe()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                bufsize=0,
                pass_fds=(theirs,),
                start_new_session=True,
                env=worker_variables() | {RECORD_FD_VARIABLE: str(theirs)},
            )
        except BaseException:
            os.close(answers)
            raise
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._output, self._answers = (
            self._process.stdin,
            self._process.stdout,
            answers,
        )
        self._tail = b""
        self._pending = b""
        self._reaped: Ending | None = None
        self._lock = threading.Lock()
        for fd in (self._stdin.fileno(), self._output.fileno(), answers):
            os.set_blocking(fd, False)

    @property
    def pid(self) -> int:
        """The worker's process id, which is its group's id too."""
        return self._process.pid

    def exchange(self, request: bytes, deadline: float) -> bytes:
        """Send one line and return the line that answers it, by `time.monotonic()`'s deadline.

        Raises:
            NoAnswer: the worker ended, closed its pipe, or sends a line without end.
            TimeUp: the deadline passed.
        """
        with selectors.DefaultSelector() as waiting:
            waiting.register(self._answers, selectors.EVENT_READ, self._read_answer)
            waiting.register(self._output, selectors.EVENT_READ, self._read_output)
            waiting.register(self._stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._pending:
                if len(self._pending) > _MAX_ANSWER_BYTES:
                    raise NoAnswer
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeUp
                ready = waiting.select(min(left, _TICK_S))
                for key, _ in ready:
                    if key.data is None:
                        request = self._write(request)
                        if not request:
                            waiting.unregister(self._stdin)
                    elif not key.data():
                        waiting.unregister(key.fileobj)
                if self._answers not in waiting.get_map():
                    raise NoAnswer
                # A grandchild may hold the pipe open after the worker itself is gone.
                if not ready and self._has_ended():
                    raise NoAnswer
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def end(self, grace_s: float = 0.0) -> Ending:
        """Wait up to `grace_s` for the worker to end by itself, then kill its whole group.

        Closes standard input first. May be called twice.
        """
        self._stdin.close()
        forced = not self._wait(grace_s)
        if forced:
            self._signal_group(signal.SIGTERM)
            self._wait(_TERM_GRACE_S)
        with self._lock:
            if self._reaped is None:
                # Before the leader is reaped its id, and so its group's, cannot be another's.
                _signal_group(self.pid, signal.SIGKILL)
                code = self._process.wait()
                self._reaped = (
                    Ending(exit_code=code, forced=forced)
                    if code >= 0
                    else Ending(signal=signal.Signals(-code).name, forced=forced)
                )
                self._read_output()
                self._output.close()
                os.close(self._answers)
            return self._reaped

    def kill(self) -> None:
        """Kill the worker's whole group now; `exchange` then raises NoAnswer. Any thread may."""
        self._signal_group(signal.SIGKILL)

    @property
    def tail(self) -> str:
        """The last lines that the worker printed."""
        text = self._tail.decode(errors="replace")
        return "\n".join(line.rstrip() for line in text.splitlines()[-20:] if line.strip())

    def _write(self, request: bytes) -> bytes:
        """Write what the pipe takes, and return the rest; a worker that is gone takes all."""
        try:
            return request[os.write(self._stdin.fileno(), request) :]
        except BlockingIOError:
            return request
        except BrokenPipeError:
            return b""

    def _read_answer(self) -> bool:
        chunk = _read(self._answers)
        self._pending += chunk or b""
        return chunk != b""

    def _read_output(self) -> bool:
        """Read what is there; return False at the end."""
        while chunk := _read(self._output.fileno()):
            self._tail = (self._tail + chunk)[-_TAIL_BYTES:]
        return chunk is None

    def _has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _wait(self, seconds: float) -> bool:
        """Return whether the worker has ended, or does so within `seconds`; does not reap it."""
        deadline = time.monotonic() + seconds
        pause_s = 0.001
        while self._reaped is None and not self._has_ended():
            if time.monotonic() >= deadline:
                return False
            self._read_output()
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.01)
        return True

    def _signal_group(self, number: signal.Signals) -> None:
        with self._lock:
            if self._reaped is None:
                _signal_group(self.pid, number)


def worker_variables() -> dict[str, str]:
    """Return the environment variables of a worker: ours, made quiet and offline.

    A worker needs nothing from the network; who sets HF_HUB_OFFLINE=0 is obeyed.
    """
    variables = dict(os.environ)
    variables.setdefault("HF_HUB_OFFLINE", "1")
    variables |= {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
    root = Path(__file__).resolve().parents[1]
    # A checkout that is not installed must be found from any folder.
    if (root / "pyproject.toml").exists():
        paths = [str(root), variables.get("PYTHONPATH", "")]
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return variables


def _read(fd: int) -> bytes | None:
    """Return bytes, b"" at the end, or None where nothing is there yet."""
    try:
        return os.read(fd, 2**16)
    except BlockingIOError:
        return None


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return
