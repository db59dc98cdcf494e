"""Records the life of every storage that a run makes on the meta device.

A `TorchDispatchMode` sees each operation; the first time a storage comes out of one, it is an
allocation, and a weak reference on it tells when it is freed. Frees come in the order in which
CUDA's allocator would see them, because the reference counts are the same. With each allocation
goes the operation that made it and the module that ran it.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass

from profiler.trace import accumulation, scratch
from profiler.trace.answers import Answers
from profiler.trace.bitsandbytes_paths import ANSWERS, MANAGED
from profiler.trace.modules import Modules
from profiler.trace.repeats import Repeats
from profiler.trace.timeline import Timeline

_MATMULS = {
    torch.ops.aten.mm.out,
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
}


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Writes a `Timeline` while it is active. It is the observer of the loops, too.

    Args:
        timeline: where events go.
        vocab_size: tensors whose last dimension this is are logits or loss buffers.
        workspace_bytes: cuBLAS workspace a handle; the first matrix product of the forward and
            the first of the backward pass allocate one each (autograd's thread has its own handle).
        modules: tells which module runs.
        padded: whether sequences differ in length.
        without: names of scratch terms to leave out.
    """

    def __init__(
        self,
        timeline: Timeline,
        vocab_size: int,
        workspace_bytes: int,
        modules: Modules,
        padded: bool = False,
        without: Collection[str] = (),
    ) -> None:
        super().__init__()
        accumulation.unshared_counts()
        self.timeline = timeline
        self._vocab_size = vocab_size
        self._workspace_bytes = workspace_bytes
        self.modules = modules
        self._running: Any = None
        self._workspaces: set[bool] = set()
        self._alive: dict[int, tuple[int, weakref.ref[Any]]] = {}
        self.answers = Answers(self._handle_of, padded)
        self._without = frozenset(without)
        self._repeats = Repeats()

    def phase(self, name: str) -> None:
        """Begin a phase."""
        self.timeline.begin_phase(name)

    def step(self, index: int) -> None:
        """Begin a training step, or the run's generate."""
        self.timeline.begin_step(index)

    def register(self, tensors: Iterable[Any], component: str) -> None:
        """Count tensors that were made before, or name the component of those already seen."""
        for tensor in tensors:
            if tensor.device.type != "meta":
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in MANAGED:
                continue
            if key not in self._alive:
                self._add(storage, None)
            self.timeline.name(self._alive[key][0], component)

    def place(self, tensors: Iterable[Any], module: str) -> None:
        """Say which module tensors belong to, where none made them."""
        for tensor in tensors:
            known = self._alive.get(tensor.untyped_storage()._cdata)
            if known is not None:
                self.timeline.place(known[0], module)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._running = func
        if func in _MATMULS or scratch.multiplies(func, args):
            self._matmul()
        handles = self._scratch(func, args)
        if accumulation.is_in_place(func, args, kwargs):
            for handle in handles:
                self.timeline.free(handle)
            return args[0]
        out = self._run(func, args, kwargs or {})
        self._see_all(out)
        self.answers.learn(func, args, out)
        for handle in handles:
            self.timeline.free(handle)
        return out

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        out = self.answers.answer(func, args, kwargs)
        if out is not NotImplemented:
            return out
        if func.namespace == "quanto":
            # Python code, whose own operations allocate.
            key = torch._C.DispatchKey.CompositeExplicitAutograd
            with self:
                return func._op_dk(key, *args, **kwargs)
        if func is torch.ops.aten.addmm.dtype_out:
            # It writes in place and allocates nothing; torch 2.11 cannot run it on meta tensors.
            return kwargs["out"]
        answer = ANSWERS.get(func.name())
        return self._repeats.run(func, args, kwargs) if answer is None else answer(args)

    def _handle_of(self, tensor: Any) -> int | None:
        known = self._alive.get(tensor.untyped_storage()._cdata)
        return None if known is None else known[0]

    def _scratch(self, func: Any, args: Any) -> list[int]:
        return [
            self._allocate(size, name) for name, size in scratch.before(func, args, self._without)
        ]

    def _allocate(self, size_bytes: int, component: str | None = None) -> int:
        """Record an allocation that the running operation makes."""
        module, operation = self.modules.current(), operation_name(self._running)
        return self.timeline.allocate(size_bytes, component, module, operation)

    def _see_all(self, out: Any) -> None:
        if isinstance(out, torch.Tensor):
            self._see(out)
        elif isinstance(out, (tuple, list)):
            for item in out:
                if isinstance(item, torch.Tensor):
                    self._see(item)

    def _see(self, tensor: Any) -> None:
        if tensor.device.type != "meta" or is_traceable_wrapper_subclass(tensor):
            # A wrapper (quanto's) has no memory of its own: what it wraps was seen before.
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self._alive and storage._cdata not in MANAGED:
            self._add(storage, tensor)

    def _add(self, storage: Any, tensor: Any) -> None:
        key = storage._cdata
        size = storage.nbytes()
        handle = self.timeline.allocate(size) if tensor is None else self._allocate(size)
        if tensor is not None:
            # Autocast's copy of a transposed head has the vocabulary last too, but lies otherwise.
            wide = tensor.dim() > 1 and tensor.shape[-1] == self._vocab_size
            if wide and tensor.is_contiguous():
                self.timeline.name(handle, "logits")
            elif torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled():
                # A forward operation inside backward: checkpointing plays a block again.
                self.timeline.mark_recomputed(handle)
        alive, timeline = self._alive, self.timeline

        def freed(_: Any) -> None:
            del alive[key]
            timeline.free(handle)

        alive[key] = (handle, weakref.ref(storage, freed))

    def _matmul(self) -> None:
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward not in self._workspaces:
            self._workspaces.add(in_backward)
            self._allocate(self._workspace_bytes, "workspace")


@cache
def operation_name(func: Any) -> str:
    """Return an operation's name without its overload: `aten.mm`, `bitsandbytes.gemm_4bit`."""
    name: str = func._schema.name
    return name.replace("::", ".")
