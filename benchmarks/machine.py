"""What this machine can run: which source, how many cases at once, how much of the card."""

from __future__ import annotations

import os

from estimator.errors import EnvironmentUnavailable
from estimator.units import GIB
from profiler.environment import cuda_problem, library_version
from profiler.nvml import read_device

SOURCES = ("auto", "cuda", "trace")

_TRACE_JOBS = 2
"""A traced 8B model needs about 1 GiB of memory, and torch imports compete for the disk."""

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


def default_jobs(source: str) -> int:
    """Return how many cases to run at once: one on a GPU, up to two on the CPU."""
    return 1 if source == "cuda" else min(_TRACE_JOBS, os.cpu_count() or 1)


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
