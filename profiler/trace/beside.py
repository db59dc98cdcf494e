"""A measured history under the picture of the traced run: one scale of bytes, two runs."""

from __future__ import annotations

from typing import Any

from estimator.units import GB, format_both
from profiler.history import History, Mark
from profiler.trace.story import place

_MAX_POINTS = 4000
_MAX_MARKS = 40


def draw_history(axes: Any, history: History) -> None:
    """Draw what was measured: bytes alive and reserved, the phases, the peak."""
    kept = _thin(history)
    places = [_place(history, event) for event in kept]
    allocated = [history.allocated_bytes[event] / GB for event in kept]
    axes.fill_between(places, allocated, color="#9c9c9c", linewidth=0)
    reserved = [history.reserved_bytes[event] / GB for event in kept]
    axes.plot(places, reserved, color="black", linewidth=0.8)
    axes.set_xlim(0, 1)
    axes.set_xticks([])
    axes.set_ylabel("GB")
    axes.set_xlabel("measured on a GPU: what tensors asked for, each rounded up to 512 B")
    if len(history.marks) <= _MAX_MARKS:
        for mark in history.marks:
            _draw_mark(axes, history, mark)
    peak = history.peak_event
    size_bytes = history.allocated_bytes[peak]
    axes.plot([_place(history, peak)], [size_bytes / GB], marker="o", color="black")
    axes.set_title(f"measured peak {format_both(size_bytes)}", loc="left", fontsize=10)


def _draw_mark(axes: Any, history: History, mark: Mark) -> None:
    at = _place(history, mark.event)
    axes.axvline(at, color="black", linewidth=0.6, linestyle=":")
    axes.annotate(
        mark.name.replace("_", " "),
        (at, 1),
        xycoords=("data", "axes fraction"),
        xytext=(2, -3),
        textcoords="offset points",
        rotation=90,
        va="top",
        fontsize=6,
    )


def _place(history: History, event: int) -> float:
    last = len(history.turnover_bytes) - 1
    return place(event, history.turnover_bytes[event], last, history.turnover_bytes[-1])


def _thin(history: History) -> list[int]:
    """Return the events to draw: the highest and the lowest of each stretch, in order."""
    count = len(history.allocated_bytes)
    width = max(1, 2 * count // _MAX_POINTS)
    kept = {0, count - 1}
    for first in range(0, count, width):
        stretch = range(first, min(first + width, count))
        kept.add(max(stretch, key=history.allocated_bytes.__getitem__))
        kept.add(min(stretch, key=history.allocated_bytes.__getitem__))
    return sorted(kept)
