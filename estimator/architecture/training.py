"""A training step as instants: forward, backward block by block, optimizer step.

Read from the second step on, when the optimizer's states and both cuBLAS workspaces exist.
"""

from __future__ import annotations

from estimator.allocator import expected_block, round_block
from estimator.architecture import layer as blocks
from estimator.architecture import shared_layers
from estimator.architecture.autograd import run_backward
from estimator.architecture.context import Context, training_context, with_embeddings
from estimator.architecture.embeddings import embeddings
from estimator.architecture.events import Storage
from estimator.architecture.head_loss import head_loss, tied_table
from estimator.architecture.inventory import Held, Inventory, held, idle, trainable, weights
from estimator.architecture.layer_passes import (
    block_input,
    layer_passes,
    position_bytes,
    probabilities,
    rotary_tables,
)
from estimator.architecture.masks import attention_masks, distance_bytes, kept_masks
from estimator.architecture.optimizer import optimizer_memory, optimizer_sizes
from estimator.architecture.outside import (
    EMBEDDED,
    TOKEN_INPUTS,
)
from estimator.architecture.rotary import table_bytes, tables_saved
from estimator.architecture.run import Pass, Run
from estimator.architecture.sparse_latent import held_choice
from estimator.architecture.stretches import distinct_layers, stretches
from estimator.architecture.tape import Tape
from estimator.case import Case
from estimator.gpus import workspace_bytes
from estimator.spec import ModelSpec


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
    kinds = layer_passes(spec, ctx, hidden, embedding, accumulates)
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
