"""The cards: what they really have, in MiB as nvidia-smi reports it, and their workspaces.

"80GB" is a name: an H100 reports 81 559 MiB, an A100 81 920 MiB (source of each row: its
`source` field in data/gpus.json).
"""

from __future__ import annotations

import json
import re
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
    """Return a card by its name here, the driver's ("NVIDIA A100-SXM4-80GB") or a short one
    ("4090"), in any case.

    Raises:
        CaseError: when no card, or more than one, has the name; it suggests similar ones.
    """
    found = _by_key().get(_key(name), ())
    if len(found) == 1:
        return found[0]
    if found:
        raise CaseError(
            f"gpu is {name!r}, which is the name of several cards: say which of "
            f"{', '.join(gpu.name for gpu in found)}",
            "gpu",
        )
    sized = _of_size(name)
    if sized:
        raise CaseError(
            f"gpu is {name!r}, which is a size: say which card, of {', '.join(sized)}", "gpu"
        )
    names = [gpu.name for gpu in gpus()]
    hint = did_you_mean(name, names)
    raise CaseError(
        f"gpu is {name!r}, which is not in the catalogue of {len(names)} cards{hint} "
        "(`gpumem gpus` lists them)",
        "gpu",
    )


def _of_size(name: str) -> list[str]:
    """Return the cards that are sold under a size: "24GB" is 22.5 to 24.0 GiB."""
    size = re.fullmatch(r"\s*(\d+)\s*(?:gi?b?)?\s*", name, re.IGNORECASE)
    if size is None:
        return []
    sold = int(size[1]) * KIB
    return [gpu.name for gpu in gpus() if 0.92 * sold <= gpu.memory_mib <= sold]


def workspace_bytes(gpu_name: str | None) -> int:
    """Return the cuBLAS workspace a handle for a card, or Ampere's where none is named."""
    return (
        DEFAULT_WORKSPACE_BYTES if gpu_name is None else find_gpu(gpu_name).cublas_workspace_bytes
    )


_NO_PART_OF_THE_NAME = re.compile(
    r"nvidia|geforce|tesla|sxm\d?|pcie|hbm\d?e?|generation|blackwell|workstation|server|edition"
    r"|[\s_-]"
)
"""What the driver's name says besides the card: vendor, brand, socket, memory technology."""


def _key(name: str) -> str:
    return _NO_PART_OF_THE_NAME.sub("", name.lower())


@cache
def _by_key() -> dict[str, tuple[Gpu, ...]]:
    """Return the cards that a spelling may mean; a card's own name means that card alone."""
    found: dict[str, tuple[Gpu, ...]] = {}
    for gpu in gpus():
        for spelling in _spellings(gpu):
            found[spelling] = (*found.get(spelling, ()), gpu)
    return found | {_key(gpu.name): (gpu,) for gpu in gpus()}


def _spellings(gpu: Gpu) -> set[str]:
    """Return the keys of a card: with and without its size, `GB` and `RTX`."""
    key = _key(gpu.name)
    size = f"{round(gpu.memory_mib / KIB)}"
    bare = key.removesuffix("gb").removesuffix(size) if key.endswith(f"{size}gb") else key
    keys = {key, bare, bare + size, f"{bare}{size}gb"}
    return keys | {re.sub("^(rtx|gtx)", "", one) for one in keys}
