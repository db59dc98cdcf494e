"""Surfaces as JSON files: one file a surface, read and checked without torch."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from estimator.errors import RecordError, show_value
from estimator.size_polynomials import Term
from estimator.strict_json import MAX_JSON_BYTES, parse_json
from estimator.surface import Instant, Span, Stream, Surface, Threshold

SURFACE_VERSION = 1
"""Raised when a reader of an older file would answer wrongly."""

_MAX_POWER = 4
_QUANTITIES = ("batch", "length", "tokens", "alignment")


def to_json(surface: Surface) -> str:
    """Return a surface as one JSON object (docs/surfaces.md)."""
    data = {
        "surface_version": SURFACE_VERSION,
        "identity": surface.identity,
        "thresholds": [[t.quantity, t.bound, t.shift] for t in surface.thresholds],
        "streams": {name: _stream_to_dict(s) for name, s in sorted(surface.streams.items())},
    }
    return json.dumps(data, separators=(",", ":"))


def _stream_to_dict(stream: Stream) -> dict[str, Any]:
    return {
        "sizes": [
            [[t.coefficient, t.batch, t.length, t.multiple, t.shift] for t in size]
            for size in stream.sizes
        ],
        "events": list(stream.events),
        "spans": [[s.phase, s.counted, s.first_event] for s in stream.spans],
        "instants": [[i.phase, list(i.counts), i.unsplit_bytes] for i in stream.instants],
        "unsplit": stream.unsplit,
    }


def save(surface: Surface, path: Path) -> None:
    """Write a surface; the file is whole or not there.

    Raises:
        RecordError: it cannot be written, or would be too large to be read again.
    """
    text = to_json(surface)
    if len(text) > MAX_JSON_BYTES:
        raise RecordError(
            f"the surface needs {len(text) / 2**20:.0f} MiB, more than the "
            f"{MAX_JSON_BYTES / 2**20:.0f} MiB of a surface file: leave out --surface"
        )
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        reason = getattr(problem, "strerror", None) or str(problem)
        raise RecordError(
            f"surface {show_value(str(path), 200)} cannot be written: {reason}"
        ) from None


def load(path: Path) -> Surface:
    """Read a surface.

    Raises:
        RecordError: one sentence: unreadable, cut short, of a newer version, or no surface.
    """
    what = f"surface {show_value(str(path), 200)}"
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_JSON_BYTES + 1)
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise RecordError(f"{what} cannot be read: {reason}") from None
    return from_json(text, what)


def from_json(text: bytes | str, what: str = "the surface") -> Surface:
    """Read what `to_json` wrote; `what` names it in the error sentence.

    Raises:
        RecordError: it is not that.
    """
    data = parse_json(text, what, RecordError)
    found = data.get("surface_version") if isinstance(data, dict) else None
    if type(found) is not int:
        raise RecordError(f"{what} is no surface: it has no surface_version")
    if found > SURFACE_VERSION:
        raise RecordError(
            f"{what} has surface_version {found}, newer than {SURFACE_VERSION}: "
            "read it with a newer gpumem, or delete it"
        )
    try:
        return Surface(
            _checked(data["identity"], dict),
            tuple(_threshold(row) for row in data["thresholds"]),
            {
                _region(name, len(data["thresholds"])): _stream(stream)
                for name, stream in data["streams"].items()
            },
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        raise RecordError(f"{what} is damaged: delete it, and it is derived again") from None


def _checked(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


def _whole(value: Any, least: int = 0) -> int:
    if type(value) is not int or value < least:
        raise ValueError
    return value


def _region(name: str, digits: int) -> str:
    if len(name) != digits or set(name) - {"0", "1"}:
        raise ValueError
    return name


def _threshold(row: Any) -> Threshold:
    quantity, bound, shift = row
    if quantity not in _QUANTITIES:
        raise ValueError
    return Threshold(quantity, _whole(bound, 1), _whole(shift))


def _term(row: Any) -> Term:
    coefficient, batch, length, multiple, shift = row
    if _whole(batch) > _MAX_POWER or _whole(length) > _MAX_POWER:
        raise ValueError
    return Term(_checked(coefficient, int), batch, length, _whole(multiple), _whole(shift))


def _stream(data: Any) -> Stream:
    sizes = tuple(tuple(_term(row) for row in size) for size in data["sizes"])
    events = tuple(data["events"])
    _check_events(events, len(sizes))
    spans = tuple(
        Span(_checked(phase, str), _checked(counted, bool), _whole(first))
        for phase, counted, first in data["spans"]
    )
    firsts = [span.first_event for span in spans]
    if not spans or firsts[0] != 0 or firsts != sorted(firsts) or firsts[-1] > len(events):
        raise ValueError
    instants = tuple(
        Instant(_checked(phase, str), tuple(_whole(count) for count in counts), _whole(unsplit))
        for phase, counts, unsplit in data["instants"]
    )
    if not instants or any(len(instant.counts) != len(sizes) for instant in instants):
        raise ValueError
    return Stream(sizes, events, spans, instants, float(_checked(data["unsplit"], float)))


def _check_events(events: tuple[Any, ...], sizes: int) -> None:
    """Check that each allocation has a size, and that each free is the first of its storage."""
    alive: list[bool] = []
    for event in events:
        if type(event) is not int or event >= sizes:
            raise ValueError
        if event >= 0:
            alive.append(True)
        elif len(alive) + event < 0 or not alive[event]:
            raise ValueError
        else:
            alive[event] = False
