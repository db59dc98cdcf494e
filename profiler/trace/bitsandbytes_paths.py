"""bitsandbytes on meta tensors: what its CUDA code does where meta tensors cannot follow.

Source: bitsandbytes/backends/cuda/ops.py, bitsandbytes/functional.py (`get_paged`).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import _disable_current_modes

MANAGED: set[int] = set()
"""Storages in CUDA managed memory, which PyTorch's allocator does not see."""


def answer_vectorwise_quant(args: Any) -> tuple[Any, Any, Any]:
    """int8_vectorwise_quant: int8 values, a scale a row, and no outlier columns.

    How many columns hold outliers depends on the values; a trace assumes none.
    """
    x = args[0]
    rows = x.numel() // x.shape[-1]
    scales = torch.empty(rows, dtype=torch.float32, device=x.device)
    values = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    return values, scales, torch.empty(0, dtype=torch.int64, device=x.device)


def answer_mixed_scaled_mm(args: Any) -> tuple[Any, Any]:
    """int8_mixed_scaled_mm without outliers: the product in the input's dtype, and nothing else."""
    x, quantized, weight = args[0], args[1], args[2]
    shape = (*quantized.shape[:-1], weight.shape[0])
    return torch.empty(shape, dtype=x.dtype, device=x.device), x.new_empty(0)


ANSWERS = {
    "bitsandbytes::int8_vectorwise_quant": answer_vectorwise_quant,
    "bitsandbytes::int8_mixed_scaled_mm": answer_mixed_scaled_mm,
}
"""Operations whose outputs depend on values, answered in their place."""


@contextlib.contextmanager
def managed_memory() -> Iterator[None]:
    """Let paged optimizers make their states without a GPU, outside of the accounting."""
    try:
        from bitsandbytes import functional
        from bitsandbytes.optim import optimizer
    except ImportError:
        yield
        return
    originals = {
        name: getattr(functional, name) for name in ("get_paged", "fill", "prefetch_tensor")
    }
    sync = optimizer.sync_gpu
    functional.get_paged = _get_paged
    functional.fill = functional.prefetch_tensor = _nothing
    optimizer.sync_gpu = _nothing
    try:
        yield
    finally:
        for name, value in originals.items():
            setattr(functional, name, value)
        optimizer.sync_gpu = sync


@contextlib.contextmanager
def copied_weights() -> Iterator[None]:
    """Let 4-bit weights be copied where they are meta tensors, as peft does to set DoRA up.

    `Params4bit.__deepcopy__` fills a new tensor on the CPU, into which no meta tensor fits.
    """
    # Its CPU kernels, which a trace never runs, complain where they cannot be fetched.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        from bitsandbytes.nn import Params4bit
    except ImportError:
        yield
        return
    original = Params4bit.__deepcopy__
    Params4bit.__deepcopy__ = _copy_4bit
    try:
        yield
    finally:
        Params4bit.__deepcopy__ = original


def _copy_4bit(weight: Any, memo: Any) -> Any:
    fields = weight.__getstate__()
    fields["quant_state"] = copy.deepcopy(fields["quant_state"])
    data = copy.deepcopy(fields.pop("data"))
    return type(weight)(data, **fields)


def _get_paged(*shape: int, dtype: Any = torch.float32, device: Any = None) -> Any:
    with _disable_current_modes():
        tensor = torch.empty(shape, dtype=dtype, device="meta")
    storage = tensor.untyped_storage()
    key = storage._cdata
    MANAGED.add(key)
    weakref.finalize(storage, MANAGED.discard, key)
    tensor.is_paged = True
    return tensor


def _nothing(*_: Any, **__: Any) -> None:
    """Filling, prefetching and waiting allocate nothing."""
