"""Formulas of a mixture whose experts all see all tokens, which scores then scale (Llama 4).

Source: transformers/models/llama4/modeling_llama4.py, `Llama4TextMoe.forward`, `Llama4Router`,
`Llama4TextExperts`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.feed_forward import mlp
from estimator.architecture.parts import (
    activation,
    cast,
    half_weight,
    multiply,
    operands,
    parameter,
    product_input,
)
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Moe


def dense_mixture(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Play the block on `x` ([B, Q, hidden], borrowed): [B, Q, hidden]."""
    assert spec.shared is not None
    rows = tape.view(x, x.count)
    logits, scores = _scores(tape, rows, spec, ctx)
    every = spec.experts * rows.count
    repeated = tape.op(every, rows.width, (rows,))
    column = tape.op(scores.count, scores.width, (scores,), grads=(PASS,))
    saves = operands(repeated, column)
    temporaries = (repeated.size,) if column.grad else ()
    width = promoted(repeated.width, column.width)
    routed = tape.op(every, width, (column, repeated), saves, temporaries=temporaries)
    tape.drop(repeated, column)
    outputs = _experts(tape, routed, spec, ctx)
    shared = mlp(tape, rows, spec.shared, ctx, viewed=False)
    # The sum's gradient is expanded, and copied where it is reshaped to rows.
    summed = tape.op(rows.count, outputs.width if ctx.amp is None else 4, (outputs,))
    kinds = (PASS, PASS if summed.width == shared.width else NEW)
    out = tape.op(rows.count, shared.width, (shared, summed), grads=kinds, into=shared)
    tape.drop(shared, summed, outputs, routed, logits, scores, rows)
    return out


def _scores(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> tuple[Tensor, Tensor]:
    """The best logits' sigmoid in fp32; of all others' it is 0."""
    T, E = ctx.tokens, spec.experts
    weight = half_weight(tape, parameter(spec.stacked("router"), ctx.width, ctx.full), ctx)
    read = product_input(tape, x, ctx)
    logits = tape.op(T * E, read.width, (weight, read), operands(read, weight))
    tape.drop(weight, read)
    indices = tape.new(T * spec.active, 8)
    width = logits.width
    best = tape.op(T * spec.active, width, (logits,), (indices,), grads=(logits.size,))
    blank = tape.new(T * E, width)
    spread = tape.op(T * E, width, (best,), (indices,), grads=(NEW,), into=blank)
    tape.drop(blank)
    wide = cast(tape, spread, 4)
    opened = tape.op(T * E, 4, (wide,), saves_out=True)
    if wide is not spread:
        tape.drop(wide)
    scores = cast(tape, opened, width)
    tape.drop(opened, spread, best, indices)
    return logits, scores


def _experts(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Two batched products of all experts, [experts, T, ...]."""
    rows = x.count // spec.hidden
    both = _product(tape, x, spec, "gate_up", rows * spec.up_features, ctx)
    gate, up = tape.split(both, (both.count // 2,) * 2, both.size)
    activated = activation(tape, gate, spec.activation, ctx)
    product = multiply(tape, up, activated)
    tape.drop(activated)
    out = _product(tape, product, spec, "down", rows * spec.hidden, ctx)
    tape.drop(product, both, gate, up)
    return out


def _product(tape: Tape, x: Tensor, spec: Moe, name: str, count: int, ctx: Context) -> Tensor:
    weight = half_weight(tape, parameter(spec.stacked(name), ctx.width, ctx.full), ctx)
    read = product_input(tape, x, ctx)
    out = tape.op(count, read.width, (weight, read), operands(read, weight))
    tape.drop(weight, read)
    return out
