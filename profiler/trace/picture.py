"""The story of a traced run as a picture: bytes alive by component, phases, the peak.

Drawn by matplotlib (the extra `report`) without a window or a display.
"""

from __future__ import annotations

from bisect import bisect_left
from io import BytesIO
from itertools import groupby
from typing import Any

from estimator.case import Case
from estimator.units import GB, GIB, format_both
from profiler.history import History
from profiler.trace.beside import draw_history
from profiler.trace.story import Story, place
from profiler.trace.timeline import LOAD

FORMATS = ("png", "svg")

_COLOURS = {
    "weights": "#4c72b0",
    "gradients": "#dd8452",
    "optimizer_states": "#8172b3",
    "activations": "#55a868",
    "kv_cache": "#64b5cd",
    "logits": "#c44e52",
    "temporaries": "#ccb974",
    "workspace": "#8c8c8c",
    "unattributed": "#d0d0d0",
}
_WIDTH_INCHES, _HEIGHT_INCHES, _DPI = 10, 5, 100
_ROOM_ABOVE = 1.32
"""The axis' height as a multiple of the highest bytes drawn: room for the names of phases."""

_LETTER_SHARE = 0.0085
_LINE_SHARE = 0.017
"""Of the axis' width, what a letter and a line take: the name of a phase that is too narrow for
its letters stands upright, that of one too narrow for a line is left out."""


def draw(story: Story, format: str, beside: History | None = None) -> bytes:
    """Return the picture's bytes.

    Args:
        format: one of `FORMATS`.
        beside: a measured run's history, drawn below on the same scale of bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # Same story, same bytes.
    settings = {"svg.hashsalt": "gpumem", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(settings):
        height = _HEIGHT_INCHES if beside is None else _HEIGHT_INCHES * 1.7
        figure = Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, layout="constrained")
        axes = figure.add_subplot(1 if beside is None else 2, 1, 1)
        _draw_components(axes, story)
        _draw_phases(axes, story)
        _draw_peak(axes, story)
        label = Case.from_dict(story.case).label
        axes.set_title(
            f"{label}: traced, not measured\npeak in {story.peak.instant}", loc="left", fontsize=10
        )
        if beside is not None:
            below = figure.add_subplot(2, 1, 2, sharey=axes)
            draw_history(below, beside)
            highest = max(*beside.reserved_bytes, *story.points.reserved_bytes) / GB
            axes.set_ylim(0, max(highest, 1e-3) * _ROOM_ABOVE)
        out = BytesIO()
        metadata = {"Date": None} if format == "svg" else {"Software": None}
        figure.savefig(out, format=format, metadata=metadata)
    return out.getvalue()


def _draw_components(axes: Any, story: Story) -> None:
    points = story.points
    places = _places(story)
    names = list(points.components)
    rows = [[size / GB for size in points.components[name]] for name in names]
    axes.stackplot(
        places,
        rows,
        labels=[name.replace("_", " ") for name in names],
        colors=[_COLOURS[name] for name in names],
        linewidth=0,
    )
    reserved = [size / GB for size in points.reserved_bytes]
    axes.plot(places, reserved, color="black", linewidth=0.8, label="reserved")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, max(*reserved, 1e-3) * _ROOM_ABOVE)
    axes.set_xticks([])
    axes.set_xlabel("allocations and frees in order, large ones wider (not to scale in time)")
    axes.set_ylabel("GB")
    gib = axes.secondary_yaxis(
        "right", functions=(lambda gb: gb * GB / GIB, lambda gib: gib * GIB / GB)
    )
    gib.set_ylabel("GiB")
    handles, labels = axes.get_legend_handles_labels()
    # As they are stacked: the uppermost first.
    axes.figure.legend(
        handles[::-1], labels[::-1], loc="outside right upper", frameon=False, handlelength=1
    )


def _draw_phases(axes: Any, story: Story) -> None:
    top = axes.get_ylim()[1]
    several = story.phases[-1].step > 0
    for step, group in groupby(story.phases, key=lambda phase: phase.step):
        phases = [phase for phase in group if phase.name != LOAD]
        if several and phases:
            start, end = (_place(story, e) for e in (phases[0].first_event, phases[-1].end_event))
            axes.text((start + end) / 2, top * 0.99, f"step {step + 1}", ha="center", va="top")
    for phase in story.phases:
        start, end = _place(story, phase.first_event), _place(story, phase.end_event)
        if start:
            axes.axvline(start, color="black", linewidth=0.6, linestyle=":")
        name = phase.name.replace("_", " ")
        lying = end - start >= _LETTER_SHARE * len(name)
        if lying or end - start >= _LINE_SHARE:
            axes.text(
                (start + end) / 2,
                top * 0.94,
                name,
                ha="center",
                va="top",
                rotation=0 if lying else 90,
                fontsize=None if lying else 7,
            )


def _draw_peak(axes: Any, story: Story) -> None:
    peak = story.peak
    at, height = _place(story, peak.event), peak.allocated_bytes / GB
    axes.plot([at], [height], marker="o", color="black", markeredgecolor="white")
    left = at > 0.5
    axes.annotate(
        f"peak {format_both(peak.allocated_bytes)}",
        (at, height),
        xytext=(-8 if left else 8, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
    )


def _places(story: Story) -> list[float]:
    total = story.points.turnover_bytes[-1]
    instants = zip(story.points.events, story.points.turnover_bytes, strict=True)
    return [place(event, turnover, story.events, total) for event, turnover in instants]


def _place(story: Story, event: int) -> float:
    """Return where the first instant kept at or after an event is."""
    index = bisect_left(story.points.events, event)
    points = story.points
    return place(
        points.events[index], points.turnover_bytes[index], story.events, points.turnover_bytes[-1]
    )
