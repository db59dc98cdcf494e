"""Which code made a record, and when."""

from __future__ import annotations

import subprocess
import time
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from profiler.record import Provenance

_GIT_TIMEOUT_S = 10


@cache
def code_version() -> tuple[str, bool | None]:
    """Return the code's version, and whether it had changes that are not committed.

    In a git checkout the version is `git describe`'s; in an installed package it is the
    package's, and the second value is None: not known.
    """
    root = Path(__file__).resolve().parents[1]
    if (root / ".git").exists():
        try:
            described = subprocess.run(
                ["git", "-C", str(root), "describe", "--always", "--dirty", "--tags"],
                capture_output=True,
                text=True,
                timeout=_GIT_TIMEOUT_S,
                check=True,
            ).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            described = ""
        if described:
            return described.removesuffix("-dirty"), described.endswith("-dirty")
    try:
        return metadata.version("gpumem"), None
    except metadata.PackageNotFoundError:
        return "unknown", None


class Stopwatch:
    """Starts when it is made; `provenance()` tells when that was and how long ago."""

    def __init__(self) -> None:
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._start = time.monotonic()

    def provenance(self, repeat: int = 1) -> Provenance:
        """Return the provenance of a run that ends now."""
        version, dirty = code_version()
        return Provenance(
            code_version=version,
            dirty=dirty,
            started_at=self._started_at,
            duration_seconds=round(time.monotonic() - self._start, 3),
            repeat=repeat,
        )
