"""What a surface file is an answer to: checked without torch, so that a file answers without it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from estimator.case import Case
from estimator.config_source import load_config
from estimator.gpus import workspace_bytes

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def identity(case: Case) -> dict[str, Any]:
    """Return what two surfaces must share to be the same: the case but for batch and length, the
    model's configuration, the libraries' versions (null where not installed), and our own code."""
    asked = case.to_dict()
    for name in ("model", "batch_size", "sequence_length", "gpu"):
        del asked[name]
    config = json.dumps(load_config(case.model).config, sort_keys=True)
    return {
        "case": {"model": case.model_name, **asked},
        "config": hashlib.sha256(config.encode()).hexdigest()[:16],
        "workspace_bytes": workspace_bytes(case.gpu),
        "versions": {name: _version(name) for name in LIBRARIES},
        "code": _code(),
    }


def at(case: Case, batch: int, length: int) -> Case:
    """Return a case at another batch size and sequence length."""
    return replace(case, batch_size=batch, sequence_length=length)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _code() -> str:
    """Return a hash of the modules that decide what a trace records."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted([*folder.glob("*.py"), *folder.glob("trace/*.py")]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]
