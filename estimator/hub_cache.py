"""Models that the Hugging Face Hub's cache on this machine holds: found by name, no network.

Layout: `$HF_HUB_CACHE/models--OWNER--NAME/refs/main` names a commit, whose files are in
`snapshots/COMMIT` (huggingface_hub, guide "Understand caching").
"""

from __future__ import annotations

import os
import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[\w.-]+")


def cached_snapshot(model: str) -> Path | None:
    """Return the folder of a Hub id's main revision with a config.json, or None.

    Args:
        model: `owner/name`, as the Hub spells it.
    """
    if not _HUB_ID.fullmatch(model) or ".." in model:
        return None
    repository = _cache() / f"models--{model.replace('/', '--')}"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    if not _COMMIT.fullmatch(commit) or commit in (".", ".."):
        return None
    folder = repository / "snapshots" / commit
    return folder if (folder / "config.json").is_file() else None


def _cache() -> Path:
    home = os.environ.get("HF_HOME")
    if home is None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        home = os.fspath(Path(base) / "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
