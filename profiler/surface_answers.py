"""Answers from a traced surface: from its file where that reaches, else by tracing further.

Only tracing further imports torch.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from estimator.case import Case
from estimator.errors import EnvironmentUnavailable, RecordError, UnsupportedError, show_value
from estimator.fit import Peaks
from estimator.surface import Surface, SurfacePoint, UnknownRegion
from estimator.surface_file import load, save
from profiler.surface_cache import identity

_RUN = ("case", "config", "workspace_bytes")
_TRACED_BY = ("versions", "code")


class SurfaceAnswers:
    """Peaks of one case at any batch and length, as a trace there would tell them.

    Args:
        case: the run; its batch and length do not matter.
        path: a surface file to begin from and to keep what is traced; None for none.

    Attributes:
        notes: a line each on where the answers come from.

    Raises:
        RecordError: the file is of another run, damaged or cannot be read.
    """

    def __init__(self, case: Case, path: Path | None = None) -> None:
        self._case, self._path = case, path
        self._surface: Surface | None = None
        self._traced = False
        self.notes: list[str] = []
        if path is not None and path.exists():
            self._surface = self._usable(load(path), path)

    def __call__(self, case: Case) -> Peaks:
        """Return the peaks of the case at another batch or length.

        Raises:
            UnsupportedError: the run has no surface; the message names the way out.
            EnvironmentUnavailable: it has to be traced further, and torch is not here.
        """
        point = self._point(case.batch_size, case.sequence_length)
        return Peaks(point.phase, point.allocated_bytes, point.reserved_bytes)

    @property
    def surface(self) -> Surface:
        """The surface as far as it is known."""
        if self._surface is None:
            self._need_tracing()
            from profiler.trace.surface import new_surface

            self._surface = new_surface(self._case)
        return self._surface

    def check(self, case: Case) -> None:
        """Trace the case itself and compare, if anything was traced since the file was read.

        Raises:
            UnsupportedError: the surface differs from the trace there.
        """
        if not self._traced:
            return
        from profiler.trace.surface import differs

        if differs(self.surface, case):
            raise UnsupportedError(
                f"the surface of {case.model_name} differs from its trace at batch "
                f"{case.batch_size} and length {case.sequence_length}: use gpumem trace, or "
                "--source architecture"
            )

    def finish(self) -> None:
        """Keep what was traced, and add the line that says by what.

        Raises:
            RecordError: the file cannot be written.
        """
        versions = self.surface.identity["versions"]
        self.notes.insert(
            0,
            f"simulated: torch {str(versions['torch']).split('+')[0]}, transformers "
            f"{versions['transformers']}, on meta tensors; not measured",
        )
        if self._traced and self._path is not None:
            save(self.surface, self._path)

    def _point(self, batch: int, length: int) -> SurfacePoint:
        try:
            return self.surface.point(batch, length)
        except UnknownRegion:
            self._need_tracing()
            from profiler.trace.surface import extend

            extend(self.surface, self._case, batch, length)
            self._traced = True
            return self.surface.point(batch, length)

    def _usable(self, surface: Surface, path: Path) -> Surface | None:
        """Return a surface that was read, or None where it has to be traced again."""
        mine, found = identity(self._case), surface.identity
        what = f"surface {show_value(str(path), 200)}"
        for name in _RUN:
            if found.get(name) != mine[name]:
                raise RecordError(f"{what} is of another run: {_difference(name, found, mine)}")
        if not _can_trace() or all(found.get(name) == mine[name] for name in _TRACED_BY):
            return surface
        self.notes.append(f"{what} was traced by other versions, and is traced again")
        return None

    def _need_tracing(self) -> None:
        if not _can_trace():
            where = "" if self._path is None else f" ({show_value(str(self._path), 200)} lacks it)"
            raise EnvironmentUnavailable(
                f"this has to be traced first{where}, and torch, transformers and peft are not all "
                "installed here: pip install 'gpumem[profile]', or use --source architecture"
            )


def _can_trace() -> bool:
    return all(find_spec(name) is not None for name in ("torch", "transformers", "peft"))


def _difference(name: str, found: dict[str, Any], mine: dict[str, Any]) -> str:
    if name != "case":
        return f"its {name.removesuffix('_bytes')} is another"
    theirs = found.get("case")
    if isinstance(theirs, dict):
        for field, value in mine["case"].items():
            if theirs.get(field) != value:
                return f"its {field} is {show_value(theirs.get(field))}, not {show_value(value)}"
    return "its case has other fields"
