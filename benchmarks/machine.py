"""What this machine can run: which source, how many cases at once, how much of the card."""

from __future__ import annotations

import os
import re
from pathlib import Path

from benchmarks.selection import SelectionError
from estimator.errors import EnvironmentUnavailable, show_value
from estimator.units import GIB, KIB
from profiler.environment import cuda_problem, library_version
from profiler.nvml import read_device

SOURCES = ("auto", "cuda", "trace")

_TRACE_JOBS = 2
"""A traced 8B model needs about 1 GiB of memory, and torch imports compete for the disk."""

MAX_JOBS = 64

_WORKER_BYTES = {"cuda": 4 * GIB, "trace": 3 * GIB // 2}
"""Main memory to allow for a worker: torch with CUDA's libraries, or a large traced model."""

_MARGIN_SHARE = 0.05

_FIRST_GUESS_S = {"cuda": 60.0, "trace": 20.0}
"""How long a case may take, for `--time-budget`, before one has shown it."""


def choose_source(source: str) -> str:
    """Return `cuda` or `trace` for `auto` (cuda where there is a GPU), or `source` itself.

    Raises:
        EnvironmentUnavailable: when the machine cannot run it; the message names the way out.
    """
    problem = cuda_problem()
    if source == "auto":
        source = "trace" if problem else "cuda"
    if source == "cuda" and problem:
        raise EnvironmentUnavailable(
            f"nothing can be measured here: {problem} (`--source trace` needs no GPU)"
        )
    if source == "trace":
        missing = [name for name in ("torch", "transformers") if library_version(name) is None]
        if missing:
            raise EnvironmentUnavailable(
                f"nothing can be traced here: {' and '.join(missing)} not installed: "
                "pip install 'gpumem[profile]'"
            )
    return source


def parse_jobs(text: str | None, source: str) -> int:
    """Return how many cases `--jobs` means to run at once.

    By default one on a GPU and up to two on the CPU. `auto` is one a processor, as far as the main
    memory goes: a worker spends most of its time importing libraries, whatever waits on the card.

    Raises:
        SelectionError: when it is neither `auto` nor a number from 1 to 64.
    """
    if text is None:
        return 1 if source == "cuda" else min(_TRACE_JOBS, _processors())
    if text == "auto":
        free_bytes = _free_memory_bytes()
        room = MAX_JOBS if free_bytes is None else free_bytes // _WORKER_BYTES[source]
        return max(1, min(MAX_JOBS, _processors(), room))
    if not re.fullmatch(r"\d{1,3}", text, re.ASCII) or not 1 <= int(text) <= MAX_JOBS:
        raise SelectionError(
            f"--jobs is {show_value(text)}, but must be auto or a whole number from 1 to {MAX_JOBS}"
        )
    return int(text)


def _processors() -> int:
    """Return the processors that this process may use."""
    return len(os.sched_getaffinity(0))


def _free_memory_bytes() -> int | None:
    """Return the main memory that can be had without swapping; None where it is not known."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s*(\d+) kB$", text, re.MULTILINE)
    return None if found is None else int(found[1]) * KIB


def card_capacity_bytes() -> int:
    """Return the bytes of the card that packed cases may share: what is free, less a margin.

    The margin is 5 % of the card, at least 1 GiB.

    Raises:
        EnvironmentUnavailable: when the driver does not say what is free.
    """
    device = read_device()
    if device is None or device.total_bytes is None or device.used_bytes is None:
        raise EnvironmentUnavailable(
            "the driver does not say how much of the card is free, which --jobs above 1 needs: "
            "use --jobs 1"
        )
    margin_bytes = max(int(device.total_bytes * _MARGIN_SHARE), GIB)
    return max(0, device.total_bytes - device.used_bytes - margin_bytes)


def first_guess_s(source: str) -> float:
    """Return the seconds to allow for a case before any case has run."""
    return _FIRST_GUESS_S[source]
