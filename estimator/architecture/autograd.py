"""Backward over a tape: autograd's order, the gradients each node makes, and their sums.

Nodes run newest first; a gradient that meets another of the same tensor is added to it, in place
where nobody else reads that.

Source: torch/csrc/autograd/engine.cpp and input_buffer.cpp.
"""

from __future__ import annotations

from estimator.architecture.events import Storage
from estimator.architecture.tape import NEW, PASS, Tape, Tensor


def run_backward(
    tape: Tape,
    out: Tensor,
    grad: Storage,
    reached: dict[int, Storage] | None = None,
    reached_views: bool = True,
) -> dict[int, Storage]:
    """Play the backward pass from `out`, whose gradient is `grad` (one reference, consumed).

    Args:
        reached: gradients that reached tensors in another tape, as it returned them.
        reached_views: whether they are views, into which no other is summed in place.

    Returns:
        the gradients that reached tensors made by no node of this tape (a block's input),
        by `id` of the tensor; the caller owns one reference to each.
    """
    tape.stopped = False
    unpacked = False
    buffers: dict[int, tuple[Storage, bool]] = {
        key: (storage, reached_views) for key, storage in (reached or {}).items()
    }
    buffers[id(out)] = (grad, False)
    for outs, inputs, kinds, saved, temporaries, new_viewed, saving in reversed(tape.nodes):
        if len(outs) == 1:
            buffer = buffers.pop(id(outs[0]), None)
            known = [] if buffer is None else [buffer]
        else:
            known = [buffers.pop(key) for out in outs if (key := id(out)) in buffers]
        region = tape.regions.get(id(saved)) if saving and tape.regions else None
        if not known:
            tape.forget(saved)
            if region is not None:
                region.release(tape)
            continue
        if saving and not unpacked:
            unpacked, tape.first_unpack = True, len(tape.events)
        if region is not None:
            region.unpack(tape)
        incoming, viewed = known[0]
        held = [tape.allocate(size) for size in temporaries] if temporaries else ()
        made: list[tuple[Tensor, Storage, bool]] = []
        for tensor, kind in zip(inputs, kinds, strict=True):
            if not tensor.grad:
                continue
            if kind == PASS:
                incoming.refs += 1
                made.append((tensor, incoming, viewed or new_viewed))
            else:
                size = tensor.count * tensor.width if kind == NEW else kind
                name = "logits" if _is_logits(tensor) else None
                made.append((tensor, tape.allocate(size, name), new_viewed))
        for storage in held:
            tape.release(storage)
        for storage, _ in known:
            tape.release(storage)
        tape.forget(saved)
        if region is not None:
            region.release(tape)
        for tensor, storage, viewed in made:
            if tensor.parameter:
                tape.keep_gradient(storage, tensor.sharing)
            elif id(tensor) in buffers:
                _sum(tape, buffers, tensor, storage)
            else:
                buffers[id(tensor)] = (storage, viewed)
    tape.nodes.clear()
    return {key: storage for key, (storage, _) in buffers.items()}


def _sum(
    tape: Tape, buffers: dict[int, tuple[Storage, bool]], tensor: Tensor, storage: Storage
) -> None:
    """Add a gradient to the one that is there: in place, if nobody else reads that."""
    old, old_viewed = buffers[id(tensor)]
    if old.refs == 1 and not old_viewed:
        tape.release(storage)
        return
    total = tape.allocate(tensor.size)
    tape.release(old)
    tape.release(storage)
    buffers[id(tensor)] = (total, False)


def _is_logits(tensor: Tensor) -> bool:
    return tensor.storage is not None and tensor.storage.component == "logits"
