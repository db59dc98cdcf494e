"""Bytes of the real tensors that a run holds, by storage: what is shared is counted once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from estimator.report import Parameters
from estimator.units import round_up

BLOCK_BYTES = 512
"""The allocator rounds every block up to this."""


def storage_bytes(tensors: Iterable[Any], device_type: str) -> int:
    """Return the allocated bytes behind tensors on a device type: each storage once, in blocks."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        if tensor.device.type == device_type:
            storage = tensor.untyped_storage()
            sizes[storage._cdata] = storage.nbytes()
    return sum(round_up(size, BLOCK_BYTES) for size in sizes.values())


def model_tensors(model: Any) -> Iterator[Any]:
    """Yield parameters and buffers, and what bitsandbytes hangs on quantized ones."""
    import torch

    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is None:
                continue
            yield tensor
            yield from (
                extra
                for name in ("CB", "SCB")
                if isinstance(extra := getattr(tensor, name, None), torch.Tensor)
            )
            state = getattr(tensor, "quant_state", None)
            while state is not None:
                yield from (t for t in vars(state).values() if isinstance(t, torch.Tensor))
                state = getattr(state, "state2", None)


def gradients(model: Any) -> Iterator[Any]:
    """Yield the gradients that are there now."""
    return (p.grad for p in model.parameters() if p.grad is not None)


def optimizer_tensors(optimizer: Any) -> Iterator[Any]:
    """Yield the tensors of an optimizer's states, without the parameters."""
    import torch

    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def cache_tensors(cache: Any) -> Iterator[Any]:
    """Yield the tensors of what a model carries from step to step.

    A transformers cache layer by layer (keys and values, convolution and recurrent states), or a
    model's own state: tensors in lists, tuples and dictionaries.
    """
    import torch
    from torch.utils._python_dispatch import is_traceable_wrapper_subclass

    if is_traceable_wrapper_subclass(cache):
        # A wrapper (quanto's) has no memory of its own.
        names, _ = cache.__tensor_flatten__()
        yield from cache_tensors([getattr(cache, name) for name in names])
    elif isinstance(cache, torch.Tensor):
        yield cache
    elif isinstance(cache, dict):
        yield from cache_tensors(list(cache.values()))
    elif isinstance(cache, (list, tuple)):
        for item in cache:
            yield from cache_tensors(item)
    elif type(cache).__module__.startswith("transformers."):
        yield from cache_tensors([value for key, value in vars(cache).items() if key != "config"])


def count_parameters(model: Any, training: bool = True) -> Parameters:
    """Return parameter counts, tied ones once; a 4-bit weight counts its elements, not bytes.

    Nothing trains in inference, whatever requires grad.
    """
    total = trainable = 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        count = parameter.numel() if state is None else state.shape.numel()
        total += count
        trainable += count if training and parameter.requires_grad else 0
    return Parameters(total=total, trainable=trainable)
