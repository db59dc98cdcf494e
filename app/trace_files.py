"""The files that `gpumem trace` writes: timeline, picture, snapshot. Checked before the trace."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from estimator.errors import CaseError, EnvironmentUnavailable, show_choices, show_value

if TYPE_CHECKING:
    from profiler.trace import Trace

PICTURE_FORMATS = ("png", "svg")


@dataclass(frozen=True, slots=True)
class TraceFiles:
    """Where to write what; None: not asked for."""

    timeline: str | None
    picture: str | None
    snapshot: str | None
    beside: str | None = None

    def check(self) -> None:
        """Check that the files can be written, which takes no time; a trace takes seconds.

        Raises:
            CaseError: a folder is missing, a picture's format unknown, or none asked for.
            RecordError: what is to be drawn beside it is no snapshot.
            EnvironmentUnavailable: matplotlib is not installed.
        """
        for flag, name in (
            ("--timeline", self.timeline),
            ("--picture", self.picture),
            ("--snapshot", self.snapshot),
        ):
            if name is not None:
                _check_path(flag, name)
        if self.picture is None:
            if self.beside is not None:
                raise CaseError("--beside is drawn below the traced run: give --picture too")
            return
        if _format(self.picture) not in PICTURE_FORMATS:
            endings = show_choices(f".{ending}" for ending in PICTURE_FORMATS)
            raise CaseError(f"--picture is {show_value(self.picture)}, but must end in {endings}")
        if find_spec("matplotlib") is None:
            raise EnvironmentUnavailable(
                "--picture needs matplotlib, not installed here: pip install 'gpumem[report]' "
                "(--timeline and --snapshot work without)"
            )
        if self.beside is not None:
            from profiler.history import read_history

            read_history(Path(self.beside))

    def write(self, trace: Trace) -> None:
        """Write what was asked for."""
        from profiler.history import read_history
        from profiler.trace.picture import draw
        from profiler.trace.snapshot import pickled_snapshot
        from profiler.trace.story import tell

        if self.timeline is not None or self.picture is not None:
            story = tell(trace.timeline, trace.replay, trace.report, trace.expandable)
            if self.timeline is not None:
                Path(self.timeline).write_text(json.dumps(story.to_dict()) + "\n", encoding="utf-8")
            if self.picture is not None:
                beside = None if self.beside is None else read_history(Path(self.beside))
                Path(self.picture).write_bytes(draw(story, _format(self.picture), beside))
        if self.snapshot is not None:
            data = pickled_snapshot(trace.timeline, trace.expandable)
            Path(self.snapshot).write_bytes(data)


def _check_path(flag: str, name: str) -> None:
    path = Path(name)
    try:
        if path.is_dir():
            raise CaseError(f"{flag} is {show_value(name, 200)}, which is a folder")
        if not path.parent.is_dir():
            raise CaseError(
                f"{flag} is {show_value(name, 200)}, but there is no folder "
                f"{show_value(str(path.parent), 200)}"
            )
    except (OSError, ValueError) as problem:  # ValueError: a NUL character in the path
        reason = getattr(problem, "strerror", None) or str(problem)
        raise CaseError(f"{flag} is {show_value(name, 200)}: {reason}") from None


def _format(name: str) -> str:
    return Path(name).suffix.removeprefix(".").lower()
