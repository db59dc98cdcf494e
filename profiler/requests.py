"""What a worker is asked beside the case: how to run it. It crosses the pipe as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.record import OWN_LOOP, Loop


@dataclass(frozen=True, slots=True)
class HowToRun:
    """How a case is run; nothing here changes what is measured.

    Args:
        repeat: which repeat of the case this is, from 1; it is noted in the record.
        loop: `own`, or `trainer` for transformers.Trainer (cuda only).
        snapshot: where to write the allocation history for PyTorch's viewer (cuda only).
        share_bytes: what the allocator may reserve on a card that is shared with other cases, None
            where the run has the card to itself (cuda only).
    """

    repeat: int = 1
    loop: Loop = OWN_LOOP
    snapshot: Path | None = None
    share_bytes: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        snapshot = None if self.snapshot is None else str(self.snapshot.absolute())
        return {
            "repeat": self.repeat,
            "loop": self.loop,
            "snapshot": snapshot,
            "share_bytes": self.share_bytes,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HowToRun:
        """Read what `to_dict` returned."""
        snapshot = data["snapshot"]
        return cls(
            repeat=data["repeat"],
            loop=data["loop"],
            snapshot=None if snapshot is None else Path(snapshot),
            share_bytes=data["share_bytes"],
        )


AS_USUAL = HowToRun()
