"""The answer of `gpumem fit`: found by a source, told as text of 80 columns or as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.output import SOURCES, table, wrap
from estimator.case import Case
from estimator.config_source import load_config
from estimator.fit import (
    Answer,
    Changes,
    Largest,
    Peaks,
    cheapest_changes,
    largest_batch,
    longest_sequence,
    played_peaks,
)
from estimator.headroom import Room
from estimator.report import SCHEMA_VERSION
from estimator.surface import MIN_LENGTH
from estimator.units import GB, GIB, format_both


@dataclass(frozen=True, slots=True)
class Fitting:
    """What fits. `changes` is None where the case fits as it is."""

    source: str
    case: Case
    room: Room
    peaks: Peaks
    fits: bool
    batch: Largest
    length: Largest
    changes: Changes | None
    assumptions: tuple[str, ...]

    @classmethod
    def estimated(cls, case: Case, room: Room) -> Fitting:
        """Answer from the architecture formulas.

        Raises:
            GpumemError: as `estimate`.
        """
        return cls._solve("architecture", case, room, played_peaks, 1, [])

    @classmethod
    def traced(cls, case: Case, room: Room, surface: Path | None) -> Fitting:
        """Answer from a traced surface, and from its file as far as that reaches.

        Changes are other runs, which a surface says nothing about: they are estimated.

        Raises:
            GpumemError: as `SurfaceAnswers`.
        """
        from profiler.surface_answers import SurfaceAnswers

        answers = SurfaceAnswers(case, surface)
        result = cls._solve("trace", case, room, answers, MIN_LENGTH, answers.notes)
        answers.check(case)
        answers.finish()
        notes = list(answers.notes)
        if result.changes is not None:
            notes.append("changes: predicted by the architecture formulas, not traced")
        return cls(
            result.source,
            result.case,
            result.room,
            result.peaks,
            result.fits,
            result.batch,
            result.length,
            result.changes,
            (*notes, *result.assumptions),
        )

    @classmethod
    def _solve(
        cls, source: str, case: Case, room: Room, answer: Answer, least: int, notes: list[str]
    ) -> Fitting:
        peaks = answer(case)
        fits = peaks.held_by(room)
        batch = largest_batch(case, answer, room)
        length = longest_sequence(case, answer, room, least)
        changes = None if fits else cheapest_changes(case, played_peaks, room)
        return cls(
            source,
            case,
            room,
            peaks.shown(),
            fits,
            batch,
            length,
            changes,
            (*load_config(case.model).notes, _kept_free(room, peaks)),
        )


def _kept_free(room: Room, peaks: Peaks) -> str:
    line = f"{format_both(room.reserve_bytes)} kept free for the CUDA context"
    if peaks.runs_within is not None:
        return f"{line}; the run's blocks are played within the rest, on a model of the allocator"
    if peaks.reserved_bytes is None:
        return f"{line}, and {room.slack:.0%} of the peak for fragmentation"
    return f"{line}; fragmentation is in the reserved peak"


def headline(result: Fitting) -> str:
    """Return one line: batch, length, verdict."""
    return wrap(
        f"{result.room.gpu.name}: {_verdict(result)}; largest batch {_value(result.batch)} at "
        f"length {result.case.sequence_length}, longest sequence {_value(result.length)} at batch "
        f"{result.case.batch_size}"
    )


def _verdict(result: Fitting) -> str:
    return "fits" if result.fits else "does not fit"


def _value(largest: Largest) -> str:
    return "none" if largest.value is None else str(largest.value)


def render(result: Fitting, verbose: bool) -> str:
    """Return the whole answer; `verbose` adds the reasons of the changes that were skipped."""
    gpu, case = result.room.gpu, result.case
    parts = [
        wrap(case.label),
        wrap(SOURCES[result.source]),
        wrap(
            f"{gpu.name} ({gpu.memory_mib} MiB): {_verdict(result)}, "
            f"peak {format_both(result.peaks.allocated_bytes)} in {result.peaks.phase}, "
            f"room for {format_both(result.room.room_bytes)}"
        ),
        "",
        _largest_table(result),
    ]
    if result.changes is not None:
        parts += ["", *_changes(result.changes, verbose)]
    return "\n".join([*parts, "assumed:", *(wrap(line, "- ") for line in result.assumptions)])


def _largest_table(result: Fitting) -> str:
    case = result.case
    rows = [["", "value", "peak GB", "peak GiB", "ends by"]]
    for what, found in (
        (f"largest batch at length {case.sequence_length}", result.batch),
        (f"longest sequence at batch {case.batch_size}", result.length),
    ):
        sizes = ["", ""] if found.peaks is None else _sizes(found.peaks)
        rows.append([what, _value(found), *sizes, found.limit])
    return table(rows)


def _changes(changes: Changes, verbose: bool) -> list[str]:
    lines = []
    if changes.tried:
        rows = [["change", "cost", "fits", "peak GB", "peak GiB"]]
        for item in changes.tried:
            for number, text in enumerate(flags(item.change.fields)):
                more = (
                    ["", "", "", ""]
                    if number
                    else [item.change.cost, "yes" if item.fits else "no", *_sizes(item.peaks)]
                )
                rows.append([("  " if number else "") + text, *more])
        lines.append(table(rows, left=3))
    if not any(item.fits for item in changes.tried):
        lines.append("no change, and no set of up to three, makes it fit")
    for fields, reason in changes.skipped:
        names = " ".join(flags(fields))
        lines.append(wrap(f"not predicted: {names}" + (f": {reason}" if verbose else "")))
    return lines


def flags(fields: dict[str, Any]) -> list[str]:
    """Return changed fields as the flags that set them."""
    flags = []
    for name, value in fields.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags.append(f"--{flag} {value}")
    return flags


def _sizes(peaks: Peaks) -> list[str]:
    return [f"{peaks.allocated_bytes / GB:.2f}", f"{peaks.allocated_bytes / GIB:.2f}"]


def to_dict(result: Fitting) -> dict[str, Any]:
    """Return the answer as a JSON object (docs/json.md)."""
    room = result.room
    return {
        "schema_version": SCHEMA_VERSION,
        "source": result.source,
        "case": result.case.to_dict(),
        "gpu": {
            "name": room.gpu.name,
            "memory_bytes": room.gpu.memory_bytes,
            "reserve_bytes": room.reserve_bytes,
            "room_bytes": room.room_bytes,
        },
        "fits": result.fits,
        "peak": _peaks(result.peaks),
        "largest_batch": _largest(result.batch),
        "longest_sequence": _largest(result.length),
        "changes": [
            {
                "fields": item.change.fields,
                "cost": item.change.cost,
                "why": item.change.why,
                "peak": _peaks(item.peaks),
                "fits": item.fits,
            }
            for item in (result.changes.tried if result.changes else ())
        ],
        "skipped": [
            {"fields": fields, "reason": reason}
            for fields, reason in (result.changes.skipped if result.changes else ())
        ],
        "assumptions": list(result.assumptions),
    }


def _largest(found: Largest) -> dict[str, Any]:
    peaks = None if found.peaks is None else _peaks(found.peaks)
    return {"value": found.value, "limit": found.limit, "peak": peaks}


def _peaks(peaks: Peaks) -> dict[str, Any]:
    return {
        "phase": peaks.phase,
        "allocated_bytes": peaks.allocated_bytes,
        "reserved_bytes": peaks.reserved_bytes,
    }
