"""Inference as instants: prefill of the prompt, then the last decode step, the largest.

Source: GenerationMixin._sample; `logits_to_keep` is 1.
"""

from __future__ import annotations

from estimator.architecture import layer as blocks
from estimator.architecture.context import WIDTHS, Context, inference_context
from estimator.architecture.inventory import Inventory, weights
from estimator.architecture.run import Pass, Run
from estimator.architecture.tape import Storage, Tape, Tensor
from estimator.architecture.training import attention_masks, rotary_tables
from estimator.case import Case
from estimator.gpus import workspace_bytes
from estimator.spec import Layer, ModelSpec


def play_inference(case: Case, spec: ModelSpec, items: Inventory) -> Run:
    """Return the run of an inference case."""
    assert case.max_new_tokens is not None
    run = Run()
    base = weights(case, items)
    S = case.sequence_length
    run.begin("load")
    run.change("weights", base.allocated_bytes, base.requested_bytes)
    run.phases["load"] = [base.allocated_bytes, base.allocated_bytes]
    run.change("temporaries", 2 * 8 * case.batch_size * S)
    run.change("workspace", workspace_bytes(case.gpu))
    run.phases["load"] = [base.allocated_bytes, base.allocated_bytes]
    run.begin("prefill")
    _forward(run, spec, inference_context(case, S, S))
    if case.max_new_tokens > 1:
        run.begin("decode")
        last = S + case.max_new_tokens - 1
        # The cache as it is before the last step.
        _grow_cache(run, spec, case, last - 1)
        _forward(run, spec, inference_context(case, 1, last))
    return run


def _forward(run: Run, spec: ModelSpec, ctx: Context) -> None:
    tape = Tape(recording=False)
    hidden, held = blocks.embeddings(tape, spec, ctx)
    run.play(Pass.of(tape.take_events(), "embeddings"))
    assert hidden.storage is not None
    also_held = 0 if held else hidden.storage.allocated
    run.change("temporaries", also_held)
    shared = rotary_tables(spec, ctx) + attention_masks(spec, ctx)
    run.change("temporaries", shared)
    passes: dict[Layer, Pass] = {}
    for layer in spec.layers:
        if layer not in passes:
            passes[layer] = _layer_pass(spec, layer, ctx)
        run.play(passes[layer])
    size = ctx.tokens * spec.hidden_size
    x = Tensor(size, ctx.width, False, Storage(size * ctx.width, None))
    normed = blocks.final_norm(tape, x, spec, ctx)
    tape.drop(x, *held)
    run.play(Pass.of(tape.take_events(), "the final norm"))
    run.change("temporaries", -also_held)
    scores = blocks.logits(tape, normed, spec, ctx, ctx.batch)
    tape.drop(normed)
    copy = tape.new(scores.count, 4, component="logits")
    tape.drop(scores, copy)
    run.play(Pass.of(tape.events, "the last token's logits"))
    run.change("temporaries", -shared)


def _layer_pass(spec: ModelSpec, layer: Layer, ctx: Context) -> Pass:
    tape = Tape(recording=False)
    size = ctx.tokens * spec.hidden_size
    x = Tensor(size, ctx.width, False, Storage(size * ctx.width, None))
    blocks.decoder_layer(tape, x, layer, ctx)
    tape.drop(x)
    return Pass.of(tape.events, "a layer with its keys and values")


def _grow_cache(run: Run, spec: ModelSpec, case: Case, tokens: int) -> None:
    """Set the cache, which holds the prompt, to what it holds after `tokens` tokens."""
    allocated = requested = 0
    for layer in spec.layers:
        attention = layer.attention
        row = case.batch_size * attention.kv_heads * attention.head_dim * WIDTHS[case.dtype]
        prompt, grown = Storage(case.sequence_length * row, None), Storage(tokens * row, None)
        allocated += 2 * (grown.allocated - prompt.allocated)
        requested += 2 * (grown.requested - prompt.requested)
    run.change("kv_cache", allocated, requested)
