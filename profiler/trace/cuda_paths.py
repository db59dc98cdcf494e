"""Makes torch choose for meta tensors what it chooses for CUDA tensors, while a trace runs.

Each replaced function names the place in torch where CUDA takes another path.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.optim import adam, adamw, optimizer, sgd
from torch.utils import _foreach_utils

from profiler.trace.attention import cuda_attention
from profiler.trace.autocast import autocast_context, autocast_dtype, autocast_is_enabled
from profiler.trace.bitsandbytes_paths import managed_memory

_DROPOUT = torch.nn.functional.dropout
_SOFTMAX = torch.nn.functional.softmax
_AUTOCAST = torch.autocast
_IS_AUTOCAST_ENABLED = torch.is_autocast_enabled
_GET_AUTOCAST_DTYPE = torch.get_autocast_dtype
_ONE_HOT = torch.nn.functional.one_hot


@contextlib.contextmanager
def as_on_cuda() -> Iterator[None]:
    """Take CUDA's paths: attention kernels, dropout, softmax, foreach and fused optimizers."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(cuda_attention())
        stack.enter_context(managed_memory())
        stack.enter_context(_replaced(torch.nn.functional, "dropout", _dropout))
        stack.enter_context(_replaced(torch.nn.functional, "softmax", _softmax))
        stack.enter_context(_replaced(torch.nn.functional, "one_hot", _one_hot))
        stack.enter_context(_replaced(torch, "autocast", _autocast))
        stack.enter_context(_replaced(torch, "is_autocast_enabled", _is_autocast_enabled))
        stack.enter_context(_replaced(torch, "get_autocast_dtype", _get_autocast_dtype))
        for name in (
            "_get_foreach_kernels_supported_devices",
            "_get_fused_kernels_supported_devices",
        ):
            devices = [*getattr(_foreach_utils, name)(), "meta"]
            for holder in (_foreach_utils, optimizer, adam, adamw, sgd):
                if hasattr(holder, name):
                    stack.enter_context(_replaced(holder, name, lambda devices=devices: devices))
        yield


@contextlib.contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, original)


def _dropout(input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """CUDA runs the fused kernel, which saves a boolean mask and not a scaled one.

    Source: aten/src/ATen/native/Dropout.cpp, `is_fused_kernel_acceptable`.
    """
    if input.device.type == "meta" and training and not inplace and 0 < p < 1 and input.numel():
        return torch.native_dropout(input, p, True)[0]
    return _DROPOUT(input, p, training, inplace)


def _softmax(input: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    """CUDA reads fp16 and writes fp32 in one kernel, without an fp32 copy of the input.

    Source: aten/src/ATen/native/SoftMax.cpp, `softmax` (half_to_float).
    """
    fused = input.device.type == "meta" and input.dtype == torch.float16 and dtype == torch.float32
    if fused:
        return torch._softmax(input, dim, True)
    return _SOFTMAX(input, dim, _stacklevel, dtype)


def _one_hot(tensor: Any, num_classes: int = -1) -> Any:
    """CUDA writes ones into zeros; meta compares with a range.

    Source: aten/src/ATen/native/Onehot.cpp.
    """
    if tensor.device.type != "meta" or num_classes < 0:
        return _ONE_HOT(tensor, num_classes)
    zeros = tensor.new_zeros((*tensor.shape, num_classes))
    return zeros.scatter_(-1, tensor.unsqueeze(-1), 1)


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    """Let code switch autocast off for the device of its tensors, as peft does.

    torch.autocast refuses the device type `meta`.
    """
    if device_type == "meta":
        enabled = kwargs.get("enabled", args[1] if len(args) > 1 else True)
        dtype = kwargs.get("dtype", args[0] if args else None)
        return autocast_context((dtype or torch.float16) if enabled else None)
    return _AUTOCAST(device_type, *args, **kwargs)


def _get_autocast_dtype(device_type: str) -> Any:
    return autocast_dtype() if device_type == "meta" else _GET_AUTOCAST_DTYPE(device_type)


def _is_autocast_enabled(*device_types: str) -> bool:
    """Answer for meta tensors, whose device type torch.is_autocast_enabled refuses.

    peft asks without a device whether it has to cast by itself; transformers before 5.1 asks for
    the device of its tensors.
    """
    if not device_types or device_types[0] == "meta":
        return autocast_is_enabled()
    enabled: bool = _IS_AUTOCAST_ENABLED(*device_types)
    return enabled
