"""What a checkpoint holds, from the headers of its safetensors files: no tensor is read.

Format: 8 bytes with the header's length (little-endian), then a JSON object that has `dtype`,
`shape` and `data_offsets` by tensor name (huggingface/safetensors, README, "Format").
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from estimator.errors import ModelError, show_value
from estimator.strict_json import MAX_JSON_BYTES, parse_json

MAX_HEADER_BYTES = 100_000_000
"""What safetensors itself allows."""

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint's tensors: how many, their elements, and bytes as stored, by dtype."""

    tensors: int
    parameters: int
    bytes_by_dtype: tuple[tuple[str, int], ...]

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(size for _, size in self.bytes_by_dtype)

    @property
    def sentence(self) -> str:
        """What it holds, in words."""
        dtypes = " and ".join(name for name, _ in self.bytes_by_dtype)
        return (
            f"the checkpoint holds {self.parameters} parameters in {self.total_bytes} B as stored "
            f"({dtypes}; from its safetensors headers)"
        )


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Read the headers of a folder's safetensors files; None where there is none.

    With an index, the files that it names; without, `model.safetensors` or else all.

    Raises:
        ModelError: a file is missing, cut short, or no safetensors file.
    """
    elements: dict[str, int] = {}
    sizes: Counter[str] = Counter()
    for path in _files(folder):
        for name, tensor in _header(path).items():
            if name == "__metadata__":
                continue
            count, dtype, size = _tensor(path, name, tensor)
            elements[name] = count
            sizes[dtype] += size
    if not elements:
        return None
    by_dtype = tuple(sorted(sizes.items(), key=lambda item: -item[1]))
    return Checkpoint(len(elements), sum(elements.values()), by_dtype)


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        what = f"checkpoint index {show_value(str(index), 200)}"
        found = parse_json(_read(index, MAX_JSON_BYTES, what), what, ModelError)
        names = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise ModelError(f"{what} has no weight_map of file names")
        # Names only: an index does not lead out of its folder.
        return [folder / Path(name).name for name in sorted(set(names.values()))]
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    return [path for path in sorted(folder.glob("*.safetensors")) if "adapter" not in path.name]


def _header(path: Path) -> dict[str, Any]:
    what = f"checkpoint {show_value(str(path), 200)}"
    start = _read(path, 8, what)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise ModelError(f"{what} is not a safetensors file: it states no header's length")
    text = _read(path, 8 + length, what)[8:]
    if len(text) < length:
        raise ModelError(f"{what} is cut short: its header has {length} B, the file {len(text)}")
    header = parse_json(text, f"the header of {what}", ModelError, MAX_HEADER_BYTES)
    if not isinstance(header, dict):
        raise ModelError(f"the header of {what} is {show_value(header)}, but must be an object")
    return header


def _tensor(path: Path, name: str, tensor: Any) -> tuple[int, str, int]:
    shape = tensor.get("shape") if isinstance(tensor, dict) else None
    offsets = tensor.get("data_offsets") if isinstance(tensor, dict) else None
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2:
        raise ModelError(
            f"tensor {show_value(name)} of checkpoint {show_value(str(path), 200)} has no valid "
            "shape and data_offsets"
        )
    return math.prod(shape), str(tensor.get("dtype")), max(0, offsets[1] - offsets[0])


def _whole_numbers(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(v) is int and v >= 0 for v in values)


def _read(path: Path, most: int, what: str) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(most)
    except FileNotFoundError:
        raise ModelError(f"{what} is missing") from None
    except OSError as problem:
        raise ModelError(f"{what} cannot be read: {problem.strerror or 'unknown error'}") from None
