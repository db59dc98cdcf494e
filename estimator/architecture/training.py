"""A training step as instants: forward, backward block by block, optimizer step.

Read from the second step on, when the optimizer's states and both cuBLAS workspaces exist.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from estimator.allocator import expected_block, round_block
from estimator.architecture import layer as blocks
from estimator.architecture import older, shared_layers
from estimator.architecture.autograd import run_backward
from estimator.architecture.context import Context, training_context, with_embeddings
from estimator.architecture.embeddings import embeddings
from estimator.architecture.events import Storage
from estimator.architecture.head_loss import head_loss, tied_table
from estimator.architecture.inventory import Held, Inventory, held, idle, trainable, weights
from estimator.architecture.masks import attention_masks, distance_bytes, kept_masks
from estimator.architecture.optimizer import optimizer_memory, optimizer_sizes
from estimator.architecture.outside import (
    EMBEDDED,
    TOKEN_INPUTS,
    Outside,
    outside_of,
    pending,
    tensors,
)
from estimator.architecture.rotary import table_bytes, tables_saved
from estimator.architecture.run import Pass, Run
from estimator.architecture.sparse_latent import held_choice, release_choice
from estimator.architecture.stretches import distinct_layers, layer_numbers, stretches
from estimator.architecture.tape import Tape, Tensor
from estimator.case import Case
from estimator.gpus import workspace_bytes
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


def play_training(case: Case, spec: ModelSpec, items: Inventory, run: Run) -> Run:
    """Play a training case on a run that has not begun, and return it."""
    ctx = with_embeddings(training_context(case), spec)
    trained, width = trainable(case, items)
    optimizer = optimizer_memory(case, trained, width, spec, idle(case, items))
    gradients = held(trained[::-1], width)
    accumulates = case.gradient_accumulation_steps > 1
    base, loaded = weights(case, items), weights(case, items, loaded=True).allocated_bytes
    run.begin("load")
    run.change("weights", base.allocated_bytes, base.requested_bytes)
    # Of shared sequences the loader makes the positions, too.
    batch = (3 if ctx.sp_size == 1 else 4) * 8 * ctx.tokens
    run.change("temporaries", batch)
    run.change(
        "optimizer_states", optimizer.states.allocated_bytes, optimizer.states.requested_bytes
    )
    run.change("workspace", 2 * workspace_bytes(case.gpu))
    if accumulates:
        # The last micro-step begins with the gradients of those before.
        run.change("gradients", gradients.allocated_bytes, gradients.requested_bytes)
    run.phases["load"] = [loaded + batch, loaded + batch]
    lingering = _forward_and_backward(run, spec, ctx, case)
    states = optimizer.states.allocated_bytes
    if case.lora is None and case.optimizer != "adagrad" and _left(run) > states:
        # The first step made them of what its activations left: cut from large blocks, they keep no
        # rests. Those of adapters are a small share.
        sizes = optimizer_sizes(case, trained, width, spec, idle(case, items)).states
        run.restate("optimizer_states", sum(round_block(size) for size in sizes) - states)
    run.begin("optimizer_step")
    # What backward left besides gradients, the loss and what modules keep is gone; the sum of the
    # gradients is exact.
    run.correct("activations", lingering.allocated_bytes)
    run.correct("temporaries", batch + expected_block(4))
    run.correct("gradients", gradients.allocated_bytes)
    standing = base + optimizer.states + gradients + lingering
    run.requested = standing.requested_bytes + batch + 4 + 2 * workspace_bytes(case.gpu)
    temporary = optimizer.temporary
    run.spike("temporaries", temporary.allocated_bytes, temporary.requested_bytes, optimizer.why)
    run.change("gradients", -gradients.allocated_bytes, -gradients.requested_bytes)
    return run


def _left(run: Run) -> int:
    """Return the bytes that the first step leaves in the cache when its gradients are there."""
    highest = max(run.instants[phase].allocated for phase in ("forward", "backward"))
    return highest - run.total


def _forward_and_backward(run: Run, spec: ModelSpec, ctx: Context, case: Case) -> Held:
    """Play both, and return what modules keep of them to the next step."""
    accumulates = case.gradient_accumulation_steps > 1
    run.begin("forward")
    embedding = Tape(accumulate=accumulates)
    hidden, held = embeddings(embedding, spec, ctx)
    own_inputs = embedding.outside.get(TOKEN_INPUTS)
    if own_inputs is not None and own_inputs.storage is not None:
        # Each layer keeps it for backward.
        own_inputs.storage.saved = True
    kinds = _layer_passes(spec, ctx, hidden, embedding, accumulates)
    keeps = kinds.passes[kinds.order[0]].keeps_input
    assert hidden.storage is not None
    hidden.storage.saved = hidden.storage.saved or keeps
    copied = embedding.outside.get(EMBEDDED)
    if copied is not None and copied.storage is not None:
        # Each layer is given it, which checkpointing keeps.
        copied.storage.saved = ctx.checkpointing
    run.play(Pass.of(embedding.take_events(), "embeddings"))
    lingering = sum((kinds.passes[key].lingering for key in kinds.order), Held())
    run.change("activations", lingering.allocated_bytes, lingering.requested_bytes)
    tables, positions = rotary_tables(spec, ctx), position_bytes(spec, ctx)
    shared = tables if ctx.checkpointing or tables_saved(spec) else 0
    # Checkpointing keeps every argument of a layer, and a learned table the indices as they are.
    learned = spec.position_rows and ctx.full and not spec.position_offset
    shared += positions if ctx.checkpointing or ctx.selective or learned else 0
    biases = distance_bytes(spec, ctx)
    shared += biases if ctx.checkpointing else 0
    run.change("activations", shared)
    masks = attention_masks(spec, ctx)
    kept = kept_masks(masks, spec, ctx)
    run.change("activations", sum(kept.values()))
    passing = tables + positions + biases - shared + sum(masks.values()) - sum(kept.values())
    run.change("temporaries", passing)
    # The model's forward holds the first layer's input to its end, whoever else lets go of it.
    also_held = (
        Held()
        if (held and not spec.embedding_cloned) or keeps
        else Held(hidden.storage.requested, hidden.storage.allocated)
    )
    run.hold(also_held)
    returned = Held()
    for stretch in stretches(kinds.order):
        key, layer = kinds.order[stretch[0]], spec.layers[stretch[0]]
        # Without checkpointing autograd holds what layers return.
        leaves = held_choice(layer, ctx)
        if ctx.checkpointing:
            leaves += probabilities(spec, layer, ctx, kinds.passes[key].probabilities_width)
        run.play_layers(kinds.passes[key].forward, len(stretch), returned, leaves)
        returned = leaves
        if stretch.stop < len(kinds.order):
            # Whether a layer's output is saved is for the next one to say.
            saved = kinds.passes[kinds.order[stretch.stop]].keeps_input
            stream = ctx.tokens * spec.stream_size * kinds.passes[key].out_width
            moved = expected_block(stream) * (saved - kinds.passes[key].keeps_input)
            run.rename("temporaries", "activations", moved)
    head = Tape(accumulate=accumulates)
    last = kinds.passes[kinds.order[-1]]
    x = block_input(spec.stream_size, ctx, last.out_grad, last.out_width)
    assert x.storage is not None
    x.storage.saved = last.keeps_input
    normed = blocks.final_norm(head, x, spec, ctx)
    head.drop(x)
    if x.storage.saved and not last.keeps_input:
        # The norm saves an input in fp32 itself, where the layers save copies.
        run.rename("temporaries", "activations", x.storage.allocated)
    norm_events = head.take_events()
    loss = head_loss(case, spec, ctx)
    loss_events, converted = loss.forward(head, normed)
    run.play(Pass.of(norm_events, "the final norm"))
    # The embeddings' own products may keep it for backward, too.
    kept_on = hidden.storage.held > 0
    run.let_go(also_held)
    if kept_on and not keeps:
        run.change("temporaries", also_held.allocated_bytes, also_held.requested_bytes)
    run.change("temporaries", -passing)
    run.exchange("temporaries", returned, Held())
    embedding.drop(*held, None if ctx.checkpointing else copied)
    run.play(Pass.of(embedding.take_events(), "the model's forward returns"))
    run.play(Pass.of(loss_events, loss.label))
    if kinds.cached is not None:
        layers = len(kinds.order)
        run.change("kv_cache", -layers * kinds.cached.allocated, -layers * kinds.cached.requested)
    _play_each(run, [kinds.passes[key].release for key in kinds.order])
    run.play(Pass.of(converted, loss.after))
    run.begin("backward")
    waiting = loss.backward(head, normed)
    run.play(Pass.of(head.take_events(), f"backward of {loss.label}"))
    freed = _freed_after(spec, ctx, kept)
    for stretch in reversed(list(stretches(kinds.order, freed))):
        run.play(kinds.passes[kinds.order[stretch[0]]].backward, len(stretch))
        run.change("activations", -freed.get(stretch[0], 0))
    embedding.drop(copied if ctx.checkpointing else None)
    run.play(Pass.of(embedding.take_events(), "checkpointing's arguments go"))
    run.change("activations", sum(freed.values()) - shared - sum(kept.values()))
    for key in kinds.order:
        if kinds.passes[key].unshare.events:
            run.play(kinds.passes[key].unshare)
    leaf_gradients: dict[int, Storage] = {}
    if kept_on:
        if keeps:
            run.change("activations", hidden.storage.allocated, hidden.storage.requested)
        embedding.drop(hidden)
    if own_inputs is not None:
        embedding.drop(own_inputs)
        run.play(Pass.of(embedding.take_events(), "the layers' own inputs go"))
    outs = [out for out in (hidden, own_inputs) if out is not None and out.grad]
    if outs:
        table = tied_table(embedding, spec) if ctx.full else None
        reached = {} if waiting is None else {id(table): waiting}
        reached.update((id(out), Storage(out.size, None)) for out in outs[1:])
        if spec.embedding_cloned:
            reached |= shared_layers.gradient_of_copy(spec, held[-1])
        incoming = Storage(outs[0].size, None)
        leaf_gradients = run_backward(embedding, outs[0], incoming, reached, loss.table_viewed)
        gradient = leaf_gradients.pop(id(table), None)
        if gradient is not None:
            embedding.keep_gradient(gradient)
        run.play(Pass.of(embedding.take_events(), "backward of the embeddings"))
    _play_each(run, [kinds.passes[key].unpin for key in kinds.order])
    # Adapters with checkpointing make the embeddings' output a leaf, with a gradient of its own.
    embedding.free(*leaf_gradients.values())
    embedding.release_pins()
    run.play(Pass.of(embedding.take_events(), "the graph goes"))
    kept_scores = loss.kept
    if kept_scores is not None:
        run.change("logits", -kept_scores.allocated, -kept_scores.requested)
    return lingering


def _play_each(run: Run, passes: list[Pass]) -> None:
    """What is let go of layer by layer."""
    for item in passes:
        if item.events:
            run.play(item)


def _freed_after(spec: ModelSpec, ctx: Context, kept: dict[int | None, int]) -> dict[int, int]:
    """Return what is freed after each layer's backward: masks, and tables of a kind of layer.

    The first layer that uses one is the last that needs it.
    """
    # Keys that a checkpointed layer shares keep the graph that made them, tables and all.
    keeps = ctx.checkpointing and any(
        layer.attention.shares_states for layer in distinct_layers(spec)
    )
    freed: dict[int, int] = {}
    seen: set[int | None] = set()
    for index, layer in enumerate(spec.layers):
        window = layer.attention.window
        # What keeps a state is given no mask.
        if window not in seen and layer.attention.mixer is None:
            seen.add(window)
            tables = 0
            if spec.rope_tables > 2 and not keeps:
                tables = table_bytes(spec, ctx, layer.attention.rotated_features)
            freed[index] = tables + kept.get(window, 0)
    return freed


@dataclass(slots=True)
class _Kinds:
    passes: dict[tuple[int, bool, int], LayerPasses]
    order: list[tuple[int, bool, int]]
    cached: Storage | None


def _layer_passes(
    spec: ModelSpec, ctx: Context, first: Tensor, embedding: Tape, accumulates: bool
) -> _Kinds:
    """Play each kind of layer once; the first layers may see an input without gradient, or, under
    autocast, of another type."""
    kinds = _Kinds({}, [], older.cached_projection(spec, ctx))
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
