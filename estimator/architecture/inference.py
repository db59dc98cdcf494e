"""Inference as instants: prefill of the prompt, then the last decode step, the largest.

Source: GenerationMixin._sample; `logits_to_keep` is 1.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from estimator.allocator import expected_block
from estimator.architecture import layer as blocks
from estimator.architecture.context import (
    WIDTHS,
    Context,
    inference_context,
    layer_context,
    with_embeddings,
)
from estimator.architecture.embeddings import embeddings
from estimator.architecture.events import Storage
from estimator.architecture.inventory import Held, Inventory, position_table, weights
from estimator.architecture.kernels import kernel
from estimator.architecture.layer_passes import (
    block_input,
    probabilities,
    rotary_tables,
)
from estimator.architecture.masks import attention_masks, distance_bytes
from estimator.architecture.outside import state_names
from estimator.architecture.parts import cast
from estimator.architecture.quantized_cache import RESIDUAL, Past
from estimator.architecture.run import Growth, Pass, Run
from estimator.architecture.sparse_latent import held_choice
from estimator.architecture.stretches import distinct_layers, layer_numbers, stretches
from estimator.architecture.tape import Tape, Tensor
from estimator.case import Case
from estimator.gpus import workspace_bytes
from estimator.spec import Layer, Mixer, ModelSpec, Moe


@dataclass(frozen=True, slots=True)
class _LayerPass:
    """A layer's forward, the release of what autocast remembers of it, and the bytes of an element
    of the keys and of the values that it caches, and of what it returns; what it leaves named for
    later layers beside the cache, and all tensors that these find."""

    forward: Pass
    release: Pass
    widths: tuple[int, ...]
    out_width: int
    probabilities_width: int | None
    states: Held
    outside: dict[str, Tensor]


def play_inference(case: Case, spec: ModelSpec, items: Inventory, run: Run) -> Run:
    """Play an inference case on a run that has not begun, and return it."""
    assert case.max_new_tokens is not None
    base = weights(case, items)
    B, S = case.batch_size, case.sequence_length
    run.begin("load")
    run.change("weights", base.allocated_bytes, base.requested_bytes)
    # The ids and the mask, which generate's caller keeps.
    run.change("temporaries", 2 * 8 * B * S)
    loaded = run.total
    run.phases["load"] = [loaded, loaded]
    run.begin("prefill")
    ctx = with_embeddings(inference_context(case, S, S), spec)
    kept = _kept_bytes(spec, ctx, S, 0)
    run.change("temporaries", kept)
    if items.table_cast:
        _cast_table(run, case, spec, items, ctx)
    workspace = workspace_bytes(case.gpu)
    if not _head_multiplies_first(spec, ctx):
        run.change("workspace", workspace)
        workspace = 0
    widths = _forward(run, spec, ctx, workspace)
    scores = Storage(spec.vocab_size * B * 4, "logits")
    if not ctx.stack.tuple_cache:
        # The newest token's stay until the next one's are there.
        run.change("logits", scores.allocated, scores.requested)
    steps = case.max_new_tokens - 1
    kept = _keep(run, kept, _kept_bytes(spec, ctx, S, 1))
    if steps:
        run.begin("decode")
    after = _cache(spec, case, S, widths)

    def growth(first: int, last: int) -> Growth:
        sizes = partial(_cache_sizes, spec, case, widths)
        return Growth(first, last, sizes, at_once=ctx.stack.tuple_cache)

    # The last step is the largest, but the first replaces the whole prompt of sliding layers, and
    # an older generate still names the prompt's logits.
    slides = case.cache == "dynamic" and any(
        layer.attention.window is not None for layer in distinct_layers(spec)
    )
    shown = {0 if slides or ctx.stack.full_logits else steps - 1, steps - 1}
    if run.thorough:
        shown |= {0, max(0, steps - 2)}
    if case.cache == "quantized" and steps >= RESIDUAL:
        # The last step that quantizes anew is not the last of all.
        shown.add(steps // RESIDUAL * RESIDUAL - 1)
    done = 0
    for index in sorted(shown) if steps else ():
        before = _cache(spec, case, S + index, widths)
        run.resize_cache(after, before, growth(S + done, S + index))
        kept = _keep(run, kept, _kept_bytes(spec, ctx, S, index + 1))
        step = inference_context(case, 1, S + index + 1, S + index)
        _forward(run, spec, with_embeddings(step, spec))
        if ctx.stack.tuple_cache:
            run.change("kv_cache", -before.allocated_bytes, -before.requested_bytes)
        if ctx.stack.full_logits and index == 0:
            held = Storage(spec.vocab_size * ctx.tokens * 4, "logits")
            run.change("logits", -held.allocated, -held.requested)
        done = index + 1
        after = _cache(spec, case, S + done, widths)
    if not ctx.stack.tuple_cache:
        run.change("logits", -scores.allocated, -scores.requested)
    # What generate returns.
    _keep(run, kept, 8 * B * (S + case.max_new_tokens))
    return run


def _kept_bytes(spec: ModelSpec, ctx: Context, prompt: int, tokens: int) -> int:
    """Return the bytes of what generate keeps beside the cache after so many new tokens, int64.

    Which sequences are unfinished, and the prompt's positions; with the first new token come ids, a
    mask and positions of all tokens, and the newest tokens.
    """
    B, length = ctx.batch, prompt + tokens
    if ctx.stack.tuple_cache:
        return 2 * 8 * B * tokens
    positions = int(spec.position_ids)
    first = 8 * B * (positions * prompt + 1)
    return first + (8 * B * ((2 + positions) * length + 1) if tokens else 0)


def _keep(run: Run, before: int, after: int) -> int:
    run.change("temporaries", after - before)
    return after


def _cast_table(run: Run, case: Case, spec: ModelSpec, items: Inventory, ctx: Context) -> None:
    """The first forward pass casts a table of positions, once it has looked the tokens up and made
    its masks; there is no workspace yet."""
    old, new = (position_table(case, items, loaded=loaded) for loaded in (True, False))
    if old == new:
        return
    beside = ctx.tokens * (8 + spec.hidden_size * ctx.width)
    beside += sum(attention_masks(spec, ctx).values())
    run.change("temporaries", beside)
    label = "a table of positions is cast"
    run.spike("weights", new.allocated_bytes, new.requested_bytes, label)
    run.change("temporaries", -beside)
    run.exchange("weights", old, new)


def _head_multiplies_first(spec: ModelSpec, ctx: Context) -> bool:
    """Whether the head's is the first product for which PyTorch makes a cuBLAS workspace.

    int8 products are bitsandbytes' own, whose handle has none of PyTorch's; rotary tables are a
    product, and so are adapters, mixtures and attention without a fused kernel.
    """
    if ctx.quantization != "int8" or ctx.lora is not None or spec.rope_tables:
        return False
    for layer in distinct_layers(spec):
        fused = kernel(layer.attention, layer_context(layer, ctx)) in ("flash", "efficient")
        if not fused or layer.attention.mixer is not None or isinstance(layer.mlp, Moe):
            return False
        if any(linear.own_class for linear in layer.linears):
            return False
    return True


def _forward(
    run: Run, spec: ModelSpec, ctx: Context, workspace: int = 0
) -> dict[int, tuple[int, ...]]:
    """Play a step, with a `workspace` that its head makes; return the widths of what each kind of
    layer caches."""
    # generate's copy of the new ids, and of their positions where those are not of all tokens.
    ids, positions = 8 * ctx.tokens, _position_copy(spec, ctx)
    run.change("temporaries", ids + positions)
    tape = Tape(recording=False)
    hidden, held = embeddings(tape, spec, ctx)
    run.play(Pass.of(tape.take_events(), "embeddings"))
    assert hidden.storage is not None
    also_held = Held(hidden.storage.requested, hidden.storage.allocated)
    # For a static cache generate makes the masks, whose arguments then name nothing here.
    unnamed = spec.embedding_named_for_masks and ctx.cache == "static"
    if unnamed or (held and not spec.embedding_cloned):
        also_held = Held()
    run.hold(also_held)
    shared = rotary_tables(spec, ctx) + sum(attention_masks(spec, ctx).values())
    shared += distance_bytes(spec, ctx)
    run.change("temporaries", shared)
    passes, order = _layer_passes(spec, ctx, hidden.width, tape.outside)
    returned = Held()
    named: list[Held] = []
    for stretch in stretches(order):
        played, layer = passes[order[stretch.start]], spec.layers[stretch.start]
        seen = layer_context(layer, ctx)
        count = len(stretch)
        leaves = probabilities(spec, layer, seen, played.probabilities_width)
        leaves += held_choice(layer, seen)
        if stretch.start == 0 and (spec.residual_fp32 or len(set(order)) > 1):
            # The first layer reads the embeddings themselves, and may be the highest.
            run.exchange("temporaries", also_held, Held())
            run.play_layers(played.forward, 1, returned, leaves)
            run.exchange("temporaries", Held(), also_held)
            returned = leaves
            count -= 1
        if count:
            run.play_layers(played.forward, count, returned, leaves)
        returned = leaves
        if layer.attention.shares_states:
            # Until the model's forward returns.
            states = played.states
            run.change("temporaries", states.allocated_bytes, states.requested_bytes)
            named.append(states)
    x = block_input(spec.stream_size, ctx, grad=False, width=passes[order[-1]].out_width)
    normed = blocks.final_norm(tape, x, spec, ctx)
    tape.drop(x, *held, *tape.outside.values())
    run.play(Pass.of(tape.take_events(), "the final norm"))
    run.let_go(also_held)
    run.change("temporaries", -shared)
    for states in named:
        run.change("temporaries", -states.allocated_bytes, -states.requested_bytes)
    run.exchange("temporaries", returned, Held())
    run.change("workspace", workspace)
    widths = {number: layer.widths for (number, _), layer in passes.items()}
    if ctx.stack.full_logits:
        _all_logits(run, tape, normed, spec, ctx)
        run.change("temporaries", -ids - positions)
        return widths
    scores = blocks.logits(tape, normed, spec, ctx, ctx.batch)
    tape.drop(normed)
    run.play(Pass.of(tape.take_events(), "the last token's logits"))
    if ctx.amp is not None:
        for key in order:
            run.play(passes[key].release)
        scores = _accelerated(run, tape, scores)
    tape.release_cached()
    run.change("temporaries", -ids)
    copy = tape.new(scores.count, 4, component="logits")
    tape.drop(scores, copy)
    run.play(Pass.of(tape.take_events(), "the last token's logits"))
    run.change("temporaries", -positions)
    return widths


def _accelerated(run: Run, tape: Tape, scores: Tensor) -> Tensor:
    """The autocast context ends, and accelerate casts the outputs to fp32; `scores` is consumed.

    Source: accelerate's `convert_outputs_to_fp32`.
    """
    tape.release_cached()
    wide = tape.new(scores.count, 4, component="logits")
    tape.drop(scores)
    run.play(Pass.of(tape.take_events(), "the last token's logits in fp32"))
    return wide


def _position_copy(spec: ModelSpec, ctx: Context) -> int:
    if ctx.stack.tuple_cache:
        return 8 * ctx.queries
    return 8 * ctx.tokens if ctx.decoding and spec.position_ids else 0


def _all_logits(run: Run, tape: Tape, normed: Tensor, spec: ModelSpec, ctx: Context) -> None:
    """Every token's logits and an fp32 copy of them; the loop names the prompt's a step longer.

    Source: LlamaForCausalLM.forward and GenerationMixin.greedy_search of transformers 4.35.
    """
    scores = blocks.logits(tape, normed, spec, ctx, ctx.tokens)
    copy = blocks.as_logits(cast(tape, scores, 4))
    tape.drop(scores, normed)
    tape.release_cached()
    if ctx.decoding:
        tape.drop(copy)
    run.play(Pass.of(tape.take_events(), "the logits of all tokens"))


def _shared_states(tape: Tape, layer: Layer, ctx: Context) -> Held:
    """Return the bytes of keys and values that a layer leaves named for later ones, where they are
    not the cache's own."""
    if not layer.attention.shares_states or ctx.stores_all:
        return Held()
    sizes = [tape.outside[name].size for name in state_names(layer.attention)]
    return sum((Held(size, expected_block(size)) for size in sizes), Held())


def _layer_passes(
    spec: ModelSpec, ctx: Context, width: int, outside: dict[str, Tensor]
) -> tuple[dict[tuple[int, int], _LayerPass], list[tuple[int, int]]]:
    """Play each kind of layer once; under autocast the first may see an input of another type.

    Returns:
        the passes by the kind of layer and the bytes of an element of its input, and these keys
        in the order of the layers.
    """
    passes: dict[tuple[int, int], _LayerPass] = {}
    order = []
    for number in layer_numbers(spec):
        key = number, width
        if key not in passes:
            layer = distinct_layers(spec)[number]
            passes[key] = _layer_pass(spec, layer, layer_context(layer, ctx), width, outside)
            outside = passes[key].outside
        order.append(key)
        width = passes[key].out_width
    return passes, order


def _layer_pass(
    spec: ModelSpec, layer: Layer, ctx: Context, width: int, outside: dict[str, Tensor]
) -> _LayerPass:
    tape = Tape(recording=False)
    # What is there is held by the model's loop.
    tape.outside = {
        name: Tensor(one.count, one.width, False, None) for name, one in outside.items()
    }
    x = block_input(spec.stream_size, ctx, grad=False, width=width)
    out = blocks.decoder_layer(tape, x, layer, ctx)
    tape.drop(x)
    forward = Pass.of(tape.take_events(), "a layer with its keys and values")
    tape.release_cached()
    release = Pass.of(tape.take_events(), "autocast's copies of weights go")
    widths = tape.cache_widths or (ctx.width, ctx.width)
    states = _shared_states(tape, layer, ctx)
    return _LayerPass(
        forward, release, widths, out.width, tape.probabilities_width, states, tape.outside
    )


def _cache(spec: ModelSpec, case: Case, tokens: int, widths: dict[int, tuple[int, ...]]) -> Held:
    """Return the bytes of the cache's tensors after `tokens` tokens.

    Args:
        widths: bytes of an element of keys and of values (and of an indexer's keys), by the kind of
            layer.
    """
    total = Held()
    caches = _layer_caches(spec, case, widths, tokens)
    for number, copies in Counter(layer_numbers(spec)).items():
        for size in caches[number]:
            kept = Storage(size, None)
            total += Held(copies * kept.requested, copies * kept.allocated)
    return total


def _cache_sizes(
    spec: ModelSpec, case: Case, widths: dict[int, tuple[int, ...]], tokens: int
) -> tuple[int, ...]:
    """Return the bytes of each of the cache's tensors after `tokens` tokens, layer by layer."""
    caches = _layer_caches(spec, case, widths, tokens)
    return tuple(size for number in layer_numbers(spec) for size in caches[number])


def _layer_caches(
    spec: ModelSpec, case: Case, widths: dict[int, tuple[int, ...]], tokens: int
) -> list[tuple[int, ...]]:
    """Return the bytes of each tensor of a layer's cache, for each kind of layer."""
    seen = with_embeddings(inference_context(case, 1, tokens + 1, tokens), spec)
    past = Past.after(case.sequence_length, tokens - case.sequence_length)
    caches = []
    for number, layer in enumerate(distinct_layers(spec)):
        if layer.attention.mixer is not None:
            caches.append(_states(layer.attention.mixer, case))
            continue
        own, now = widths[number], layer_context(layer, seen)
        sizes: tuple[int, ...] = ()
        if layer.beside is not None and layer.beside.mixer is not None:
            sizes = _states(layer.beside.mixer, case)
        times = 1 if layer.doubled is None else 2
        for index, features in enumerate(layer.attention.cached_features):
            row = case.batch_size * features
            if case.cache == "quantized":
                newest, *scales = past.widths(own[0], own[1], case.sequence_length)
                sizes += tuple(past.sizes(row, scales[index], newest))
            else:
                width = max(own[:2]) if index < 2 else own[index]
                sizes += ((now.slots or now.held_keys) * row * width,) * times
        caches.append(sizes)
    return caches


def _states(mixer: Mixer, case: Case) -> tuple[int, ...]:
    """Return the bytes of each tensor that a mixer keeps in the cache."""
    width = WIDTHS[case.dtype]
    return tuple(
        case.batch_size * state.count * (4 if state.fp32 else width) for state in mixer.states
    )
