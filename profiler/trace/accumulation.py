"""Autograd's in-place sums of gradients, which it does not do for meta tensors.

Where a tensor is used twice, the engine adds the second gradient into the first in place if it
holds the only reference to it. For meta tensors, and while a dispatch mode is active, it makes
a new tensor instead, which a CUDA run would not; a trace has to answer as CUDA would.

Source: torch/csrc/autograd/input_buffer.cpp, `can_accumulate_inplace`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import _prims_common
from torch.utils._python_dispatch import TorchDispatchMode

_ADD = torch.ops.aten.add.Tensor

# The first name is that of torch 2.13, the second that of releases before.
_is_dense = (
    getattr(_prims_common, "is_non_overlapping_and_dense_or_false", None)
    or _prims_common.is_non_overlapping_and_dense
)
_PUTS = {
    torch.ops.aten.index_put.default,
    torch.ops.aten.scatter.src,
    torch.ops.aten.scatter_add.default,
}


def is_in_place(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a backward operation is one that CUDA would do in place on its first input.

    Sums of gradients, and the gradients of indexing, which are put into new zeros: with a dispatch
    mode active those are copied once more (torch/csrc/autograd/FunctionsManual.cpp,
    `index_backward`, `gather_backward` and `value_selecting_reduction_backward`).
    """
    if torch._C._current_graph_task_id() == -1 or torch.is_grad_enabled():
        return False
    if func in _PUTS:
        return True
    if func is not _ADD or kwargs:
        return False
    old, new = args[0], args[1]
    if not isinstance(new, torch.Tensor) or old.shape != new.shape or old.dtype != new.dtype:
        return False
    if not _is_dense(old):
        return False
    return _counts(old) == unshared_counts()


def _counts(tensor: Any) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return int(tensor._use_count()), int(torch._C._storage_Use_Count(storage._cdata))


class _Probe(TorchDispatchMode):  # type: ignore[misc]
    counts: tuple[int, int] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is _ADD and torch._C._current_graph_task_id() != -1:
            self.counts = self._look(args[0])
        return out

    def _look(self, old: Any) -> tuple[int, int]:
        # The same depth of calls, hence of references, as in `is_in_place`.
        return _counts(old)


@cache
def unshared_counts() -> tuple[int, int]:
    """The reference counts of a gradient that only the engine holds, as seen from a mode.

    They depend on torch's bindings, so they are read off a sum that is known to be unshared.
    Call it once before a mode is active: inside one, autograd is off.
    """
    probe = _Probe()
    with torch.enable_grad(), probe:
        tensor = torch.empty(4, device="meta", requires_grad=True) * 2
        (tensor * 3 + tensor * 5).backward(torch.empty(4, device="meta"))
    if probe.counts is None:
        raise AssertionError("autograd summed no gradients in the probe")
    return probe.counts
