"""Inference as instants: prefill of the prompt, then the last decode step, the largest.

Source: GenerationMixin._sample; `logits_to_keep` is 1.
"""

from __future__ import annotations

from collections import Counter

from estimator.allocator import expected_block
from estimator.architecture import layer as blocks
from estimator.architecture.context import (
    WIDTHS,
    Context,
    inference_context,
    layer_context,
)
from estimator.architecture.embeddings import embeddings
from estimator.architecture.events import Storage
from estimator.architecture.inventory import Held, Inventory, position_table, weights
from estimator.architecture.masks import attention_masks, distance_bytes
from estimator.architecture.parts import cast
from estimator.architecture.quantized_cache import RESIDUAL, Past
from estimator.architecture.run import Pass, Run
from estimator.architecture.stretches import distinct_layers, layer_numbers, stretches
from estimator.architecture.tape import Tape, Tensor
from estimator.architecture.training import (
    block_input,
    probabilities,
    rotary_tables,
)
from estimator.case import Case
from estimator.gpus import workspace_bytes
from estimator.spec import Layer, Mixer, ModelSpec


def play_inference(case: Case, spec: ModelSpec, items: Inventory) -> Run:
    """Return the run of an inference case."""
    assert case.max_new_tokens is not None
    run = Run()
    base = weights(case, items)
    B, S = case.batch_size, case.sequence_length
    run.begin("load")
    run.change("weights", base.allocated_bytes, base.requested_bytes)
    # The ids and the mask.
    run.change("temporaries", 2 * 8 * B * S)
    run.change("workspace", workspace_bytes(case.gpu))
    run.phases["load"] = [base.allocated_bytes, base.allocated_bytes]
    run.begin("prefill")
    if items.table_cast:
        _cast_table(run, case, items)
    ctx = inference_context(case, S, S)
    _forward(run, spec, ctx)
    steps = case.max_new_tokens - 1
    if steps:
        run.begin("decode")
    after = _cache(spec, case, S)
    # The last step is the largest, but the first replaces the whole prompt of sliding layers, and
    # an older generate still names the prompt's logits.
    slides = case.cache == "dynamic" and any(
        layer.attention.window is not None for layer in distinct_layers(spec)
    )
    shown = {0 if slides or ctx.stack.full_logits else steps - 1, steps - 1}
    if case.cache == "quantized" and steps >= RESIDUAL:
        # The last step that quantizes anew is not the last of all.
        shown.add(steps // RESIDUAL * RESIDUAL - 1)
    for index in sorted(shown) if steps else ():
        before = _cache(spec, case, S + index)
        run.change(
            "kv_cache",
            before.allocated_bytes - after.allocated_bytes,
            before.requested_bytes - after.requested_bytes,
        )
        grown = 2 * 8 * B * (index + 1)
        run.change("temporaries", grown)
        _forward(run, spec, inference_context(case, 1, S + index + 1, S + index))
        run.change("temporaries", -grown)
        if ctx.stack.tuple_cache:
            run.change("kv_cache", -before.allocated_bytes, -before.requested_bytes)
        if ctx.stack.full_logits and index == 0:
            held = Storage(spec.vocab_size * ctx.tokens * 4, "logits")
            run.change("logits", -held.allocated, -held.requested)
        after = _cache(spec, case, S + index + 1)
    return run


def _cast_table(run: Run, case: Case, items: Inventory) -> None:
    """The first forward pass casts a table of positions; before it there is no workspace yet."""
    old, new = (position_table(case, items, loaded=loaded) for loaded in (True, False))
    if old == new:
        return
    missing = workspace_bytes(case.gpu)
    both = new.allocated_bytes - missing, new.requested_bytes - missing
    run.spike("weights", *both, "a table of positions is cast")
    run.exchange("weights", old, new)


def _forward(run: Run, spec: ModelSpec, ctx: Context) -> None:
    # generate's copy of the new ids, which the model's caller holds, and their positions.
    ids, positions = 8 * ctx.tokens, 8 * ctx.queries
    run.change("temporaries", ids + positions)
    tape = Tape(recording=False)
    hidden, held = embeddings(tape, spec, ctx)
    run.play(Pass.of(tape.take_events(), "embeddings"))
    assert hidden.storage is not None
    also_held = Held() if held else Held(hidden.storage.requested, hidden.storage.allocated)
    run.change("temporaries", also_held.allocated_bytes, also_held.requested_bytes)
    shared = rotary_tables(spec, ctx) + sum(attention_masks(spec, ctx).values())
    shared += distance_bytes(spec, ctx)
    run.change("temporaries", shared)
    numbers = layer_numbers(spec)
    passes: dict[int, tuple[Pass, Held]] = {}
    returned = Held()
    for stretch in stretches(numbers):
        number, layer = numbers[stretch[0]], spec.layers[stretch[0]]
        if number not in passes:
            seen = layer_context(layer, ctx)
            named = probabilities(spec, layer, seen) + _shared_states(layer, seen)
            passes[number] = _layer_pass(spec, layer, seen, _stream_width(spec, ctx)), named
        played, leaves = passes[number]
        count = len(stretch)
        if stretch.start == 0 and (spec.residual_fp32 or len(set(numbers)) > 1):
            # The first layer reads the embeddings themselves, and may be the highest.
            first = played
            if spec.residual_fp32:
                first = _layer_pass(spec, layer, layer_context(layer, ctx), ctx.width)
            run.exchange("temporaries", also_held, Held())
            run.play_layers(first, 1, returned, leaves)
            run.exchange("temporaries", Held(), also_held)
            returned = leaves
            count -= 1
        if count:
            run.play_layers(played, count, returned, leaves)
        returned = leaves
    x = block_input(spec.hidden_size, ctx, grad=False, width=_stream_width(spec, ctx))
    normed = blocks.final_norm(tape, x, spec, ctx)
    tape.drop(x, *held)
    run.play(Pass.of(tape.take_events(), "the final norm"))
    run.change("temporaries", -also_held.allocated_bytes, -also_held.requested_bytes)
    run.change("temporaries", -shared)
    run.exchange("temporaries", returned, Held())
    if ctx.stack.full_logits:
        _all_logits(run, tape, normed, spec, ctx)
        run.change("temporaries", -ids - positions)
        return
    scores = blocks.logits(tape, normed, spec, ctx, ctx.batch)
    tape.drop(normed)
    run.play(Pass.of(tape.take_events(), "the last token's logits"))
    run.change("temporaries", -ids)
    copy = tape.new(scores.count, 4, component="logits")
    tape.drop(scores, copy)
    run.play(Pass.of(tape.take_events(), "the last token's logits"))
    run.change("temporaries", -positions)


def _all_logits(run: Run, tape: Tape, normed: Tensor, spec: ModelSpec, ctx: Context) -> None:
    """Every token's logits and an fp32 copy of them; the loop names the prompt's a step longer.

    Source: LlamaForCausalLM.forward and GenerationMixin.greedy_search of transformers 4.35.
    """
    scores = blocks.logits(tape, normed, spec, ctx, ctx.tokens)
    copy = blocks.as_logits(cast(tape, scores, 4))
    tape.drop(scores, normed)
    if ctx.decoding:
        tape.drop(copy)
    run.play(Pass.of(tape.take_events(), "the logits of all tokens"))


def _shared_states(layer: Layer, ctx: Context) -> Held:
    """Return the bytes of keys and values that a layer leaves named, where they are not the
    cache's own: the layers after it (one, in Gemma 4's models) could share them."""
    if not layer.attention.shares_states or ctx.stores_all:
        return Held()
    tokens = ctx.keys if ctx.decoding else ctx.queries
    sizes = [ctx.batch * tokens * row * ctx.width for row in layer.attention.cached_features]
    return sum((Held(size, expected_block(size)) for size in sizes), Held())


def _stream_width(spec: ModelSpec, ctx: Context) -> int:
    """Return the bytes of an element of what flows from layer to layer."""
    return 4 if spec.residual_fp32 else ctx.width


def _layer_pass(spec: ModelSpec, layer: Layer, ctx: Context, width: int) -> Pass:
    tape = Tape(recording=False)
    x = block_input(spec.hidden_size, ctx, grad=False, width=width)
    blocks.decoder_layer(tape, x, layer, ctx)
    tape.drop(x)
    return Pass.of(tape.events, "a layer with its keys and values")


def _cache(spec: ModelSpec, case: Case, tokens: int) -> Held:
    """Return the bytes of the cache's tensors after `tokens` tokens."""
    total = Held()
    seen = inference_context(case, 1, tokens + 1, tokens)
    width = WIDTHS[case.dtype]
    for number, copies in Counter(layer_numbers(spec)).items():
        layer = distinct_layers(spec)[number]
        now = layer_context(layer, seen)
        if layer.attention.mixer is not None:
            total += _states(layer.attention.mixer, case, copies)
            continue
        for features in layer.attention.cached_features:
            row = case.batch_size * features
            sizes: tuple[int, ...] = ((now.slots or now.held_keys) * row * width,)
            if case.cache == "quantized":
                past = Past.after(case.sequence_length, tokens - case.sequence_length)
                sizes = past.sizes(row, width)
            for size in sizes:
                kept = Storage(size, None)
                total += Held(copies * kept.requested, copies * kept.allocated)
    return total


def _states(mixer: Mixer, case: Case, copies: int) -> Held:
    """Return the bytes of what a mixer keeps in the cache."""
    width = WIDTHS[case.dtype]
    kept = [
        Storage(case.batch_size * state.count * (4 if state.fp32 else width), None)
        for state in mixer.states
    ]
    return Held(
        copies * sum(storage.requested for storage in kept),
        copies * sum(storage.allocated for storage in kept),
    )
