"""Out of GPU memory, as a result: which exceptions mean it, and what they tell."""

from __future__ import annotations

import re

from estimator.units import GIB, KIB, MIB, format_both
from profiler.counters import Counters
from profiler.record import Counts, OutOfMemory

_ASKED = re.compile(r"Tried to allocate ([\d.]+) (bytes|KiB|MiB|GiB)")
_UNITS = {"bytes": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB}

# Libraries that allocate beside PyTorch fail with words of their own.
_OTHER_WORDS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)


def is_shortage(error: BaseException) -> bool:
    """Return whether an exception says that the GPU is out of memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OTHER_WORDS)
    )


def describe_shortage(
    error: BaseException, counters: Counters, phase: str, peak: Counts | None
) -> OutOfMemory:
    """Return where the GPU ran out, and the bytes asked: the allocator's own, else the message's.

    Args:
        peak: the highest counters of the phase, if the allocator could still be read.
    """
    told = counters.shortage
    asked_bytes = None if told is None else told.asked_bytes
    if asked_bytes is None and (found := _ASKED.search(str(error))):
        asked_bytes = round(float(found.group(1)) * _UNITS[found.group(2)])
    return OutOfMemory(
        phase=phase,
        asked_bytes=asked_bytes,
        free_bytes=None if told is None else told.free_bytes,
        total_bytes=None if told is None else told.total_bytes,
        allocated_bytes=None if peak is None else peak.allocated_bytes,
        reserved_bytes=None if peak is None else peak.reserved_bytes,
    )


def shortage_sentence(oom: OutOfMemory) -> str:
    """Return the sentence for people."""
    asked = "" if oom.asked_bytes is None else f", asking for {format_both(oom.asked_bytes)}"
    held = ""
    if oom.allocated_bytes is not None:
        held = f" with {format_both(oom.allocated_bytes)} allocated at most before"
    return f"out of GPU memory in {oom.phase}{asked}{held}"
