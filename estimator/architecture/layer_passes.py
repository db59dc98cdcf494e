"""A training step of each kind of layer: what its forward and its backward pass make and leave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from estimator.architecture import layer as blocks
from estimator.architecture import older, shared_layers
from estimator.architecture.autograd import run_backward
from estimator.architecture.context import Context
from estimator.architecture.events import Storage
from estimator.architecture.inventory import Held
from estimator.architecture.outside import (
    Outside,
    outside_of,
    pending,
    tensors,
)
from estimator.architecture.rotary import table_bytes
from estimator.architecture.run import Pass
from estimator.architecture.sparse_latent import release_choice
from estimator.architecture.stretches import distinct_layers, layer_numbers
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Layer, ModelSpec


@dataclass(frozen=True, slots=True)
class LayerPasses:
    """Forward and backward of one kind of layer.

    `out_grad` is whether its output requires grad, `out_width` the bytes of an element of it (which
    may be promoted), `keeps_input` whether backward needs its input; `release` frees autocast's
    copies when forward ends, `unshare` what checkpointed layers named for others when the last of
    them is done, `unpin` what lives as long as the graph.
    """

    forward: Pass
    backward: Pass
    out_grad: bool
    out_width: int
    keeps_input: bool
    release: Pass
    unshare: Pass
    unpin: Pass
    probabilities_width: int | None
    lingering: Held
    """What stays from the layer's backward to its next forward pass."""
    outside: tuple[Outside, ...]


@dataclass(slots=True)
class Kinds:
    passes: dict[tuple[int, bool, int], LayerPasses]
    order: list[tuple[int, bool, int]]
    cached: Storage | None


def layer_passes(
    spec: ModelSpec, ctx: Context, first: Tensor, embedding: Tape, accumulates: bool
) -> Kinds:
    """Play each kind of layer once; the first layers may see an input without gradient, or, under
    autocast, of another type."""
    kinds = Kinds({}, [], older.cached_projection(spec, ctx))
    grad, width, outside = first.grad, first.width, outside_of(embedding)
    key: tuple[int, bool, int] | None = None
    for number in layer_numbers(spec):
        if key == (number, grad, width):
            # As the one before, whose output is like its input.
            kinds.order.append(key)
            continue
        key = (number, grad, width)
        if key not in kinds.passes:
            played = _play_layer(spec, number, ctx, grad, width, accumulates, outside)
            if kinds.cached is not None:
                events = [*played.forward.events, (kinds.cached, 1)]
                played = replace(played, forward=Pass.of(events, played.forward.label))
            kinds.passes[key] = played
        kinds.order.append(key)
        grad, width = kinds.passes[key].out_grad, kinds.passes[key].out_width
        # A layer like an earlier one was played before others named what theirs read.
        known = {one.name for one in outside}
        outside += tuple(one for one in kinds.passes[key].outside if one.name not in known)
    return kinds


@lru_cache(maxsize=128)
def _play_layer(
    spec: ModelSpec,
    number: int,
    ctx: Context,
    in_grad: bool,
    in_width: int,
    accumulates: bool,
    outside: tuple[Outside, ...],
) -> LayerPasses:
    layer = distinct_layers(spec)[number]
    read = tensors(outside)
    reentrant = ctx.checkpointing and ctx.stack.reentrant_checkpointing
    tape = Tape(recording=not reentrant, discard=ctx.checkpointing, accumulate=accumulates)
    tape.outside.update(read)
    x = block_input(spec.stream_size, ctx, in_grad, in_width)
    out = blocks.decoder_layer(tape, x, layer, ctx)
    assert x.storage is not None
    assert out.storage is not None
    if ctx.checkpointing:
        # Checkpointing keeps the layer's input for the second pass.
        x.storage.saved = True
    else:
        tape.drop(x)
    keeps_input = x.storage.refs > 0
    # A layer's output is the next one's input.
    out.storage.saved = out.storage.saved or keeps_input
    forward_events = tape.take_events()
    tape.release_cached()
    release = Pass.of(tape.take_events(), "autocast's copies of weights go")
    forward = Pass.of(forward_events, "a layer's forward")
    first_pass = tape
    if ctx.checkpointing:
        stop_after = None if reentrant else first_pass.saving_nodes
        tape = Tape(accumulate=accumulates, stop_after=stop_after, shared=first_pass.shared)
        tape.outside.update(read)
        first_pass.shared = []
        again = Tensor(x.count, x.width, in_grad or ctx.full, x.storage)
        out = blocks.decoder_layer(tape, again, layer, ctx)
        # The second pass has an autocast context of its own.
        tape.release_cached()
        label = "a layer's recomputation and backward"
    else:
        label = "a layer's backward"
    second_pass = tape.take_events()
    incoming = Storage(out.size, None)
    incoming.refs += reentrant
    viewed = shared_layers.is_viewed(layer)
    reached = run_backward(tape, out, incoming, pending(tape, layer), reached_views=viewed)
    if reentrant:
        # Its backward plays the whole block first, and names the block's output and the gradient
        # until it returns.
        tape.free(incoming)
        tape.release_pins()
        tape.events[:0] = second_pass
        tape.drop(out, x)
    elif ctx.checkpointing:
        # What needs no saved tensor (residuals, scalings) is differentiated before it.
        tape.events[tape.first_unpack : tape.first_unpack] = second_pass
        tape.drop(x)
        release_choice(tape, layer, ctx)
    tape.drop(*first_pass.arguments)
    if not in_grad:
        for storage in reached.values():
            storage.refs -= 1
    lingering = tape.lingering
    if lingering:
        # What the last step left goes when the layer's forward pass begins.
        goes = [(Storage(one.requested, None), one.allocated) for one in lingering]
        for storage, allocated in goes:
            storage.allocated, storage.saved = allocated, True
        forward = Pass.of([*((one, -1) for one, _ in goes), *forward_events], forward.label)
    backward = Pass.of(tape.take_events(), label)
    tape.unshare()
    unshare = Pass.of(tape.take_events(), "checkpointing's arguments go")
    first_pass.release_pins()
    unpin = Pass.of(first_pass.take_events(), "the graph goes")
    return LayerPasses(
        forward,
        backward,
        out.grad,
        out.width,
        keeps_input,
        release,
        unshare,
        unpin,
        first_pass.probabilities_width,
        sum((Held(one.requested, one.allocated) for one in lingering), Held()),
        outside_of(first_pass),
    )


def block_input(hidden_size: int, ctx: Context, grad: bool, width: int | None = None) -> Tensor:
    """Return a block's input [B, S, hidden], allocated by the block before."""
    size = ctx.tokens * hidden_size
    width = width or ctx.width
    return Tensor(size, width, grad, Storage(size * width, None))


def probabilities(spec: ModelSpec, layer: Layer, ctx: Context, width: int | None) -> Held:
    """Return the bytes of the probabilities that a layer hands to the model's loop, which holds
    them until the next layer returns; without checkpointing autograd has them in training.

    Args:
        width: bytes of an element, where a layer returns any.
    """
    if not spec.returns_probabilities or width is None:
        return Held()
    size = ctx.batch * layer.attention.heads * ctx.queries * ctx.keys * width
    kept = Storage(size, None)
    return Held(kept.requested, kept.allocated)


def rotary_tables(spec: ModelSpec, ctx: Context) -> int:
    """Return the bytes of cos and sin, which all layers share."""
    return sum(table_bytes(spec, ctx, features) for features in spec.table_features)


def position_bytes(spec: ModelSpec, ctx: Context) -> int:
    """Return the bytes of positions: [1, Q], or [B, Q] where they are counted from the mask."""
    if ctx.sp_size > 1:
        # They are in the batch.
        return 0
    own = spec.positions_counted and ctx.training
    return 8 * (ctx.tokens if own else ctx.queries)
