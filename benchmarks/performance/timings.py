"""The measurements: importing the library, one estimate, the command line from cold, a trace.

What starts a process is timed in a fresh one, as a user would wait for it; the fastest of several
runs is the figure that other load on the machine disturbs least.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

REPEATS = 7

_MODEL = "Llama-3.1-8B"
_CASE = {"model": _MODEL, "task": "training", "gradient_checkpointing": True}


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds that something took, over several runs."""

    name: str
    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        """The median."""
        return statistics.median(self.seconds)

    @property
    def fastest_s(self) -> float:
        """The fastest run."""
        return min(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the timing as a JSON object."""
        return asdict(self)


def timed(name: str, run: Callable[[], object], repeats: int = REPEATS) -> Timing:
    """Time `run` so many times."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return Timing(name, tuple(seconds))


def _process(*arguments: str) -> Callable[[], object]:
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def import_estimator(name: str) -> Timing:
    """A Python process that imports the library and ends."""
    return timed(name, _process("-c", "import estimator"))


def one_estimate(name: str) -> Timing:
    """An estimate in a process that has made one before."""
    from estimator import Case, estimate

    case = Case.from_dict(_CASE)
    estimate(case)
    return timed(name, lambda: estimate(case), repeats=50)


def cold_command(name: str) -> Timing:
    """`gpumem estimate` from the shell."""
    return timed(name, _process("-m", "app", "estimate", _MODEL, "--task", "training"))


def trace_of_8b(name: str) -> Timing:
    """A traced training step of an 8B model, without the imports."""
    from estimator.case import Case
    from profiler.trace import trace_case

    case = Case.from_dict(_CASE)
    return timed(name, lambda: trace_case(case), repeats=3)


MEASUREMENTS: dict[str, tuple[Callable[[str], Timing], bool]] = {
    "import estimator": (import_estimator, False),
    "one estimate": (one_estimate, False),
    "gpumem estimate, cold": (cold_command, False),
    "trace of an 8B training step": (trace_of_8b, True),
}
"""What is measured by name, and whether it is slow."""
