"""A tape of allocations and frees: what a block's forward and backward pass do to memory.

The formulas of a block are written as the operations that transformers' code runs, with the bytes
each makes and saves; the tape derives from them what is alive when, by reference counts, and notes
the nodes that backward will run (autograd.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from estimator.allocator import expected_block
from estimator.architecture.events import Event, Storage

if TYPE_CHECKING:
    from estimator.architecture.recomputation import Region

NEW = -1
"""A gradient that is a new tensor of its input's size."""

PASS = -2
"""A gradient that is the incoming one itself."""


ROUNDS_AT_ENDS = 4
"""Rounds of a long loop that are played at its beginning and at its end. Later than in the second
round, and in the third of backward, no round differs from the one before."""


class Tensor:
    """A tensor of `count` elements of `width` bytes; `storage` is None for parameters.

    `grad` is whether it requires grad; `parameter` whether it is a leaf that keeps its gradient,
    `sharing` which of the layers that share it this is.
    """

    __slots__ = ("count", "grad", "parameter", "sharing", "storage", "width")

    def __init__(
        self,
        count: int,
        width: int,
        grad: bool,
        storage: Storage | None,
        parameter: bool = False,
        sharing: str = "",
    ) -> None:
        self.count = count
        self.width = width
        self.grad = grad
        self.sharing = sharing
        self.storage = storage
        self.parameter = parameter

    @property
    def size(self) -> int:
        """Bytes of the tensor."""
        return self.count * self.width


Node = tuple[
    tuple[Tensor, ...],
    tuple[Tensor, ...],
    tuple[int, ...],
    list[Storage],
    tuple[int, ...],
    bool,
    bool,
]
"""An operation as autograd remembers it: its outputs, its inputs, a gradient's kind for each, what
is saved, temporaries, and whether gradients are views and whether it saves at all (see `Tape.op`).

A plain tuple, because a layer makes hundreds."""


@dataclass(slots=True)
class Tape:
    """Records events while a block's operations are played.

    After backward, `first_unpack` is the event before which no saved tensor was needed:
    checkpointing's second pass begins there.

    Args:
        recording: whether autograd records (training, outside of checkpointing's first pass).
        keeping: whether operations keep what they save; else it is recomputed (recomputation.py).
        discard: count what saves, but keep nothing for backward: checkpointing's first pass.
        accumulate: parameters have gradients already, so that new ones are added and freed.
        stop_after: checkpointing's early stop: the number of saving nodes after which its second
            pass ends, before the operation runs (torch/utils/checkpoint.py, `early_stop`).
    """

    recording: bool = True
    keeping: bool = True
    discard: bool = False
    accumulate: bool = False
    stop_after: int | None = None
    events: list[Event] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    saving_nodes: int = 0
    first_unpack: int = 0
    shared: list[Storage] = field(default_factory=list)
    """What `share` holds."""
    lingering: list[Storage] = field(default_factory=list)
    """What `linger` holds."""
    aside: int | None = None
    """The first node of those beside the way to an attention's keys and values, where a layer plays
    some before the attention."""
    outside: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that layers read beside their input: made by the embeddings, or by another layer."""
    regions: dict[int, Region] = field(default_factory=dict)
    """The checkpoints inside of a layer, by the `id` of each of their nodes' saved tensors."""
    cache_widths: tuple[int, ...] | None = None
    """Bytes of an element of the keys and of the values that came into a cache, and of an
    indexer's keys."""
    arguments: list[Tensor] = field(default_factory=list)
    """What a checkpoint inside of a layer keeps by name until the backward of the layer is done."""
    probabilities_width: int | None = None
    """Bytes of an element of the attention's probabilities that a layer returns."""
    stopped: bool = False
    """Whether checkpointing's second pass has ended: what is made from then on takes no room."""
    _pinned: list[Storage] = field(default_factory=list)
    _passing: list[Tensor] = field(default_factory=list)
    """What custom functions of a second pass keep: its graph goes where it stops."""
    _cached: list[Tensor] = field(default_factory=list)

    def new(
        self, count: int, width: int, grad: bool = False, component: str | None = None
    ) -> Tensor:
        """Allocate a tensor."""
        return Tensor(count, width, grad, self.allocate(count * width, component))

    def new_many(self, count: int, width: int, copies: int) -> Tensor:
        """Allocate equal tensors that live and die together, as one; each is a block of its own."""
        many = self.new(count * copies, width)
        assert many.storage is not None
        many.storage.allocated = copies * expected_block(count * width)
        return many

    def alias(self, tensor: Tensor) -> Tensor:
        """Return another reference to a tensor, as `x.to(x.dtype)` does."""
        if tensor.storage is not None:
            tensor.storage.refs += 1
        return tensor

    def drop(self, *tensors: Tensor | None) -> None:
        """Let go of references; a storage without any is freed."""
        for tensor in tensors:
            if tensor is not None:
                storage = tensor.storage
                if storage is not None:
                    storage.refs -= 1
                    if storage.refs == 0 and not storage.dead:
                        self._free(storage)

    def op(
        self,
        count: int,
        width: int,
        inputs: tuple[Tensor, ...] = (),
        saves: tuple[Tensor, ...] = (),
        saves_out: bool = False,
        aux: tuple[int, ...] = (),
        grads: tuple[int, ...] | None = None,
        temporaries: tuple[int, ...] = (),
        viewed: bool = False,
        scratch: tuple[int, ...] = (),
        pins: tuple[Tensor, ...] = (),
        component: str | None = None,
        into: Tensor | None = None,
    ) -> Tensor:
        """Play one operation and return its output.

        Args:
            count, width: elements of the output, and bytes of each.
            inputs: tensors to which gradients flow.
            saves: tensors that backward needs; saved only if any input requires grad.
            saves_out: whether backward needs the output.
            aux: bytes of further outputs that only backward needs (masks, logsumexp).
            grads: for each input NEW, PASS, or the bytes of the tensor that backward makes.
            temporaries: bytes that backward holds while it makes the gradients.
            viewed: whether the gradients are views, into which no other is summed in place.
            scratch: bytes that the forward kernel holds while it runs.
            pins: tensors that a custom function keeps on its own, out of checkpointing's sight,
                as long as the graph lives: see `release_pins`.
            component: what the output is, where it is neither activation nor temporary.
            into: the tensor whose storage the output takes, of an operation in place.
        """
        needs = saving = stopping = False
        if self.recording:
            for tensor in inputs:
                if tensor.grad:
                    needs = True
                    break
            if needs and (saves or saves_out or aux):
                saving = True
                self.saving_nodes += 1
                stopping = self.stop_after == self.saving_nodes
                if stopping and not (saves_out or aux):
                    self._stop(saves)
        extra = [self.allocate(size) for size in scratch] if scratch else ()
        if into is None:
            storage: Storage | None = self.allocate(count * width, component)
        else:
            storage = self.alias(into).storage
        out = Tensor(count, width, needs, storage)
        extra_outputs = [self.allocate(size) for size in aux] if aux else ()
        for scratch_storage in extra:
            self.release(scratch_storage)
        if needs:
            if not self.discard:
                kept: list[Storage] = []
                if saving and self.keeping:
                    kept = [t.storage for t in saves if t.storage is not None]
                    if saves_out and storage is not None:
                        kept.append(storage)
                    kept += extra_outputs
                    for saved in kept:
                        saved.refs += 1
                        saved.held += 1
                        saved.saved = True
                kinds = grads if grads is not None else (NEW,) * len(inputs)
                self.nodes.append(((out,), inputs, kinds, kept, temporaries, viewed, saving))
            if pins and self.stop_after is None:
                self.pin(*pins)
            elif pins and not self.stopped:
                self._passing += [self.alias(tensor) for tensor in pins]
        for extra_storage in extra_outputs:
            self.release(extra_storage)
        if stopping and (saves_out or aux):
            self._stop(())
        return out

    def view(self, x: Tensor, count: int, grad: int = PASS) -> Tensor:
        """Return a view of `count` of x's elements: no bytes of its own.

        Args:
            grad: PASS for a view of the whole, or the bytes of the tensor of zeros into which
                backward of a slice copies its gradient.
        """
        return self.split(x, (count,), grad)[0]

    def add_in_place(self, x: Tensor, other: Tensor) -> Tensor:
        """Return `x` after `x += other`, which makes no tensor; `x` is consumed."""
        needs = self.recording and (x.grad or other.grad)
        out = Tensor(x.count, x.width, needs, x.storage)
        if needs:
            self.nodes.append(((out,), (x, other), (PASS, PASS), [], (), False, False))
        return out

    def split(self, x: Tensor, counts: tuple[int, ...], grad: int) -> tuple[Tensor, ...]:
        """Return views of one tensor, whose backward joins their gradients into `grad` bytes."""
        needs = self.recording and x.grad
        outs = tuple(Tensor(count, x.width, needs, self.alias(x).storage) for count in counts)
        if needs:
            self.nodes.append((outs, (x,), (grad,), [], (), False, False))
        return outs

    def rounds(self, count: int) -> Iterator[int]:
        """Yield the rounds of a loop that are to be played, out of `count` equal ones.

        Of a long loop some at both ends are played one by one; one between them stands for all the
        others: what it leaves for backward is counted so many times. What rounds keep or let go of
        adds up evenly, so that the highest instant is at either end.
        """
        between = count - 2 * ROUNDS_AT_ENDS
        if between <= 1:
            yield from range(count)
            return
        yield from range(ROUNDS_AT_ENDS)
        first = len(self.events)
        yield ROUNDS_AT_ENDS
        last = len(self.events)
        yield from range(count - ROUNDS_AT_ENDS, count)
        for storage, _ in self.events[first:last]:
            if storage.held and not storage.dead:
                storage.requested *= between
                storage.allocated *= between

    def abandon(self, first: int, last: int) -> None:
        """No gradient will come through nodes `first` to `last`: what they keep is let go."""
        for _, _, _, saved, *_ in self.nodes[first:last]:
            self.forget(saved)
        del self.nodes[first:last]

    def cache(self, tensor: Tensor) -> None:
        """Keep a reference until `release_cached`: a cast weight that autocast remembers, or what
        the model's forward names to its end."""
        self._cached.append(self.alias(tensor))

    def release_cached(self) -> None:
        """The forward pass ends: what autograd has not saved is freed."""
        self.drop(*self._cached)
        self._cached.clear()

    def free(self, *storages: Storage) -> None:
        """Let go of gradients that backward returned."""
        for storage in storages:
            self.release(storage)

    def release_pins(self) -> None:
        """The graph goes: what custom functions kept on their own is freed."""
        for storage in self._pinned:
            self.release(storage)
        self._pinned.clear()

    def unshare(self) -> None:
        """Let go of what `share` named."""
        earlier, self.shared = self.shared, []
        for storage in earlier:
            storage.held -= 1
            self.release(storage)

    def share(self, tensors: tuple[Tensor, ...], beside: range) -> None:
        """Name tensors where other layers find them, until `unshare`.

        What an earlier pass named there goes. With the tensors stays what autograd saved on the
        way to them: all that it has saved so far, but for the nodes `beside`.
        """
        nodes = self.nodes[: beside.start] + self.nodes[beside.stop :]
        saved = [storage for _, _, _, kept, *_ in nodes for storage in kept]
        named = [tensor.storage for tensor in tensors if tensor.storage is not None]
        found = [*dict.fromkeys(saved), *named]
        for storage in found:
            storage.refs += 1
            storage.held += 1
            storage.saved = True
        self.unshare()
        self.shared = found

    def linger(self, tensor: Tensor) -> None:
        """Keep a tensor beyond the step, with all that autograd saved on the way to it."""
        wanted = {id(tensor)}
        found = [] if tensor.storage is None else [tensor.storage]
        for outs, inputs, _, saved, *_ in reversed(self.nodes):
            if any(id(out) in wanted for out in outs):
                wanted.update(id(one) for one in inputs)
                found += saved
        for storage in dict.fromkeys(found):
            storage.refs += 1
            storage.held += 1
            storage.saved = True
            self.lingering.append(storage)

    def pin(self, *tensors: Tensor) -> None:
        """Keep tensors as long as the graph lives, and for it: they are activations."""
        for tensor in tensors:
            if tensor.storage is not None:
                tensor.storage.refs += 1
                tensor.storage.saved = True
                self._pinned.append(tensor.storage)

    def take_events(self) -> list[Event]:
        """Return the events so far and begin anew."""
        events, self.events = self.events, []
        return events

    def allocate(self, size: int, component: str | None = None) -> Storage:
        storage = Storage(size, component)
        if self.stopped:
            storage.dead = True
        else:
            self.events.append((storage, 1))
        return storage

    def release(self, storage: Storage) -> None:
        storage.refs -= 1
        if storage.refs == 0 and not storage.dead:
            self._free(storage)

    def _free(self, storage: Storage) -> None:
        storage.dead = True
        self.events.append((storage, -1))

    def forget(self, saved: list[Storage]) -> None:
        """A node lets go of what it saved."""
        for storage in saved:
            storage.held -= 1
            storage.refs -= 1
            if storage.refs == 0 and not storage.dead:
                self._free(storage)
        saved.clear()

    def keep_gradient(self, storage: Storage, sharing: str = "") -> None:
        """A parameter's gradient is complete: it stays, or is added to the one that is there.

        Of a parameter that layers share the sum is made first, which waits for the first layer.
        """
        if sharing in ("first", "between"):
            self.release(storage)
            if sharing == "first" and self.accumulate:
                self.release(Storage(storage.requested, None))
        elif self.accumulate and sharing != "last":
            self.release(storage)
        elif not self.accumulate:
            storage.component = "gradients"

    def _stop(self, saved_last: tuple[Tensor, ...]) -> None:
        """End the second pass: everything that only Python holds is freed."""
        self.drop(*self._passing)
        self._passing.clear()
        last = {tensor.storage for tensor in saved_last}
        for storage, _ in list(self.events):
            if not storage.dead and storage.held == 0 and storage not in last:
                self._free(storage)
        self.stopped = True
