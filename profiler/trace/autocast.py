"""CUDA's autocast for meta tensors, which torch.autocast does not know.

Functions are replaced by ones that cast first, as the autocast kernels do: matrix products and
attention to the half type, softmax, norms, losses and powers to fp32. Casts of leaf weights that
require grad are cached until the context ends; casts of frozen weights are not.

Source: aten/src/ATen/autocast_mode.h (the lists), autocast_mode.cpp (`cached_cast`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

_HALF_FUNCTIONS = (
    (torch.nn.functional, ("linear", "conv1d", "scaled_dot_product_attention")),
    (torch, ("matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm")),
    (torch.Tensor, ("matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm")),
)
_FP32_ELEMENTWISE = ("pow", "square", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p")
"""square is made of pow, which autocast sees."""

_FP32_FUNCTIONS = (
    (torch.nn.functional, ("softmax", "log_softmax", "layer_norm", "cross_entropy", "softplus")),
    (torch, ("softmax", "log_softmax", "cumsum", "layer_norm", *_FP32_ELEMENTWISE)),
    (torch.Tensor, ("softmax", "cumsum", "__pow__", *_FP32_ELEMENTWISE)),
)
_WITH_DTYPE = {"softmax", "log_softmax", "cumsum"}
"""Functions that are left alone where the caller names a dtype."""


class _State:
    """The context that is active now: its half type, and the casts that it caches."""

    def __init__(self) -> None:
        self.dtype: Any = None
        self.cache: dict[int, tuple[Any, Any]] = {}
        self.last_dtype: Any = None
        self.off = False

    def active_dtype(self) -> Any:
        """The half type; also while checkpointing plays a block again in backward."""
        if self.dtype is not None or self.off:
            return self.dtype
        recomputing = torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()
        return self.last_dtype if recomputing else None


_STATE = _State()


def _to_half(value: Any) -> Any:
    dtype = _STATE.active_dtype()
    if not isinstance(value, torch.Tensor) or value.dtype == dtype:
        return value
    if not value.is_floating_point() or value.dtype == torch.float64:
        return value
    cacheable = value.dtype == torch.float32 and value.requires_grad and value.is_leaf
    if not cacheable or value._is_view() or _STATE.dtype is None:
        return value.to(dtype)
    known = _STATE.cache.get(id(value))
    if known is None:
        known = _STATE.cache[id(value)] = (value, value.to(dtype))
    return known[1]


def _to_fp32(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.to(torch.float32)
    return value


def _wrap(original: Any, cast: Callable[[Any], Any], keeps_dtype: bool) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _STATE.active_dtype() is None or (keeps_dtype and kwargs.get("dtype") is not None):
            return original(*args, **kwargs)
        args = tuple(cast(arg) for arg in args)
        return original(*args, **{key: cast(value) for key, value in kwargs.items()})

    return wrapped


@contextlib.contextmanager
def replaced_functions(dtype: Any) -> Iterator[None]:
    """Make torch's functions follow autocast to `dtype` inside `autocast_context`, for a run."""
    _STATE.last_dtype = dtype
    undo: list[Callable[[], None]] = []
    for table, cast in ((_HALF_FUNCTIONS, _to_half), (_FP32_FUNCTIONS, _to_fp32)):
        for holder, names in table:
            for name in names:
                undo.append(_replace(holder, name, cast))
    try:
        yield
    finally:
        for step in reversed(undo):
            step()
        _STATE.last_dtype = None


def autocast_is_enabled() -> bool:
    """Return whether meta tensors are under autocast here."""
    return _STATE.active_dtype() is not None


def autocast_dtype() -> Any:
    """Return what meta tensors are cast to here, or None."""
    return _STATE.active_dtype()


def _replace(holder: Any, name: str, cast: Callable[[Any], Any]) -> Callable[[], None]:
    inherited = name not in vars(holder)
    original = getattr(holder, name)
    setattr(holder, name, _wrap(original, cast, name in _WITH_DTYPE))
    if inherited:
        return lambda: delattr(holder, name)
    return lambda: setattr(holder, name, original)


@contextlib.contextmanager
def autocast_context(dtype: Any) -> Iterator[None]:
    """What `torch.autocast("cuda", dtype)` is to CUDA tensors, for meta tensors.

    None switches autocast off inside, as `enabled=False` does. The cache of casts ends with the
    outermost context.
    """
    outer, outer_off = _STATE.dtype, _STATE.off
    _STATE.dtype, _STATE.off = dtype, dtype is None
    try:
        yield
    finally:
        _STATE.dtype, _STATE.off = outer, outer_off
        if outer is None and not outer_off:
            _STATE.cache.clear()
