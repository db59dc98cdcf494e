"""CUDA's autocast for meta tensors, which torch.autocast does not know.

Functions are replaced by ones that cast first, as the autocast kernels do: matrix products and
attention to the half type, norms, losses and powers to fp32; softmax and sums give fp32. Casts of
leaf weights that require grad are cached until the context ends, with gradients or without (torch
asks the weight, not the mode); casts of frozen weights are not.

Source: aten/src/ATen/autocast_mode.h (the lists), autocast_mode.cpp (`cached_cast`).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.utils.checkpoint

_HALF_FUNCTIONS = (
    (torch.nn.functional, ("linear", "conv1d", "scaled_dot_product_attention")),
    (torch, ("matmul", "mm", "bmm", "mv", "addmm", "addmv", "baddbmm", "addbmm", "einsum")),
    (torch.Tensor, ("matmul", "__matmul__", "mm", "bmm", "mv", "addmm", "addmv", "baddbmm")),
)
_FP32_ELEMENTWISE = ("pow", "square", "rsqrt", "reciprocal", "exp", "expm1", "log", "log1p")
"""square is made of pow, which autocast sees."""

_FP32_FUNCTIONS = (
    (torch.nn.functional, ("layer_norm", "rms_norm", "group_norm", "cross_entropy", "softplus")),
    (torch, ("layer_norm", "rms_norm", "logsumexp", *_FP32_ELEMENTWISE)),
    (torch.Tensor, ("__pow__", "logsumexp", *_FP32_ELEMENTWISE)),
)
_FP32_RESULTS = (
    (torch.nn.functional, ("softmax", "log_softmax")),
    (torch, ("softmax", "log_softmax", "cumsum", "cumprod", "sum", "prod")),
    (torch.Tensor, ("softmax", "log_softmax", "cumsum", "cumprod", "sum", "prod")),
    (torch.linalg, ("vector_norm",)),
)
"""They are asked for an fp32 result and given the half-precision tensor, unless the caller names
a dtype (`fp32_set_opt_dtype`)."""


_HALVES = (torch.float16, torch.bfloat16)


class _State:
    """The context that is active now: its half type, and the casts that it caches."""

    def __init__(self) -> None:
        self.dtype: Any = None
        self.cache: dict[int, tuple[Any, Any]] = {}
        self.last_dtype: Any = None
        self.off = False
        self.recomputing = 0

    def active_dtype(self) -> Any:
        """The half type; also while checkpointing plays a block again in backward."""
        if self.dtype is not None or self.off:
            return self.dtype
        in_backward = torch._C._current_graph_task_id() != -1
        recomputing = in_backward and (self.recomputing or torch.is_grad_enabled())
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
    if isinstance(value, torch.Tensor) and value.dtype in _HALVES:
        return value.to(torch.float32)
    return value


def _casting(original: Any, cast: Callable[[Any], Any]) -> Any:
    def cast_all(value: Any) -> Any:
        return type(value)(map(cast, value)) if type(value) in (list, tuple) else cast(value)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if _STATE.active_dtype() is None:
            return original(*args, **kwargs)
        # What the caller hands over stays alive as long as the function runs.
        given = tuple(cast_all(arg) for arg in args)
        return original(*given, **{key: cast_all(value) for key, value in kwargs.items()})

    return wrapped


def _asking_for_fp32(original: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else kwargs.get("input")
        named = kwargs.get("dtype") is not None or any(isinstance(a, torch.dtype) for a in args)
        half = isinstance(first, torch.Tensor) and first.dtype in _HALVES
        if _STATE.active_dtype() is not None and half and not named:
            kwargs["dtype"] = torch.float32
        return original(*args, **kwargs)

    return wrapped


@contextlib.contextmanager
def replaced_functions(dtype: Any) -> Iterator[None]:
    """Make torch's functions follow autocast to `dtype` inside `autocast_context`, for a run."""
    _STATE.last_dtype = dtype
    undo: list[Callable[[], None]] = []
    tables: tuple[tuple[Any, Callable[[Any], Any]], ...] = (
        (_HALF_FUNCTIONS, lambda function: _casting(function, _to_half)),
        (_FP32_FUNCTIONS, lambda function: _casting(function, _to_fp32)),
        (_FP32_RESULTS, _asking_for_fp32),
    )
    for table, wrap in tables:
        for holder, names in table:
            undo += [_replace(holder, name, wrap) for name in names]
    undo.append(_replace(torch.utils.checkpoint, "_recomputation_hook", _counted))
    for module in _callers_of_maybe_autocast():
        undo.append(_replace(module, "maybe_autocast", lambda _: _maybe_autocast))
    try:
        yield
    finally:
        for step in reversed(undo):
            step()
        _STATE.last_dtype = None


def _counted(hook: Any) -> Any:
    """Tell that checkpointing plays a block again, also where the block switches autograd off."""

    class Counted(hook):  # type: ignore[misc]
        def __enter__(self) -> None:
            _STATE.recomputing += 1
            super().__enter__()

        def __exit__(self, *reason: object) -> None:
            _STATE.recomputing -= 1
            super().__exit__(*reason)

    return Counted


def _callers_of_maybe_autocast() -> list[Any]:
    """Models' modules that switch autocast by a function that leaves meta tensors alone.

    Source: transformers/utils/generic.py, `maybe_autocast`.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith("transformers.")]
    return [module for module in modules if "maybe_autocast" in vars(module)]


def _maybe_autocast(
    device_type: str, dtype: Any = None, enabled: bool = True, cache_enabled: bool | None = None
) -> contextlib.AbstractContextManager[None]:
    """Switch it for meta tensors as for others: mostly off, around rotary positions and norms."""
    if not enabled and not autocast_is_enabled():
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[None] = torch.autocast(
        device_type, dtype=dtype, enabled=enabled, cache_enabled=cache_enabled
    )
    return context


def autocast_is_enabled() -> bool:
    """Return whether meta tensors are under autocast here."""
    return _STATE.active_dtype() is not None


def autocast_dtype() -> Any:
    """Return what meta tensors are cast to here, or None."""
    return _STATE.active_dtype()


def _replace(holder: Any, name: str, wrap: Callable[[Any], Any]) -> Callable[[], None]:
    inherited = name not in vars(holder)
    original = getattr(holder, name)
    setattr(holder, name, wrap(original))
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
