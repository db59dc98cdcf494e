"""The cards: what they really have, in MiB as nvidia-smi reports it, and their workspaces.

"80GB" is a name: an H100 reports 81 559 MiB, an A100 81 920 MiB (source of each row: its
`source` field in data/gpus.json).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from estimator.errors import CaseError
from estimator.suggest import did_you_mean
from estimator.units import KIB, MIB

DEFAULT_WORKSPACE_BYTES = 4096 * 2 * KIB + 16 * 8 * KIB
"""cuBLAS workspace a (handle, stream) before Hopper, `:4096:2:16:8` = 8 519 680 B.

Source: `parseChosenWorkspaceSize` in aten/src/ATen/cuda/CublasHandlePool.cpp.
"""

HOPPER_WORKSPACE_BYTES = 32 * MIB
"""cuBLAS workspace a (handle, stream) on Hopper (same function: 4096 * 8 * 1024 B)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A card of the catalogue. `memory_mib` is what the driver reports as total."""

    name: str
    memory_mib: int
    architecture: str
    source: str

    @property
    def memory_bytes(self) -> int:
        """Total memory in bytes."""
        return self.memory_mib * MIB

    @property
    def cublas_workspace_bytes(self) -> int:
        """Bytes that PyTorch allocates for one (cuBLAS handle, stream)."""
        if self.architecture in ("hopper", "blackwell"):
            return HOPPER_WORKSPACE_BYTES
        return DEFAULT_WORKSPACE_BYTES


@cache
def gpus() -> tuple[Gpu, ...]:
    """Return the catalogue of cards."""
    text = files("estimator").joinpath("data", "gpus.json").read_text(encoding="utf-8")
    return tuple(Gpu(**row) for row in json.loads(text))


def find_gpu(name: str) -> Gpu:
    """Return a card by name, ignoring case, spaces and a leading vendor name.

    Raises:
        CaseError: when no card has the name; it suggests similar ones.
    """
    wanted = _key(name)
    for gpu in gpus():
        if _key(gpu.name) == wanted:
            return gpu
    names = [gpu.name for gpu in gpus()]
    hint = did_you_mean(name, names)
    raise CaseError(
        f"gpu is {name!r}, which is not in the catalogue of {len(names)} cards{hint} "
        "(`gpumem gpus` lists them)",
        "gpu",
    )


def workspace_bytes(gpu_name: str | None) -> int:
    """Return the cuBLAS workspace a handle for a card, or Ampere's where none is named."""
    return (
        DEFAULT_WORKSPACE_BYTES if gpu_name is None else find_gpu(gpu_name).cublas_workspace_bytes
    )


def _key(name: str) -> str:
    return name.lower().removeprefix("nvidia").replace(" ", "").replace("-", "").replace("_", "")
