"""Formulas of a mixture whose experts all see all tokens, which scores then scale (Llama 4).

Source: transformers/models/llama4/modeling_llama4.py, `Llama4TextMoe.forward`, `Llama4Router`,
`Llama4TextExperts`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.feed_forward import mlp
from estimator.architecture.parts import activation, cast, multiply, operands, parameter
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
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
    routed = tape.op(every, rows.width, (column, repeated), saves, temporaries=temporaries)
    tape.drop(repeated, column)
    outputs = _experts(tape, routed, spec, ctx)
    shared = mlp(tape, rows, spec.shared, ctx, viewed=False)
    # The sum's gradient is expanded, and copied where it is reshaped to rows.
    summed = tape.op(rows.count, rows.width, (outputs,))
    out = tape.op(rows.count, rows.width, (shared, summed), grads=(PASS, PASS), into=shared)
    tape.drop(shared, summed, outputs, routed, logits, scores, rows)
    return out


def _scores(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> tuple[Tensor, Tensor]:
    """The best logits' sigmoid in fp32; of all others' it is 0."""
    T, E = ctx.tokens, spec.experts
    weight = parameter(spec.stacked("router"), ctx.width, ctx.full)
    logits = tape.op(T * E, x.width, (weight, x), operands(x, weight))
    indices = tape.new(T * spec.active, 8)
    best = tape.op(T * spec.active, x.width, (logits,), (indices,), grads=(logits.size,))
    blank = tape.new(T * E, x.width)
    spread = tape.op(T * E, x.width, (best,), (indices,), grads=(NEW,), into=blank)
    tape.drop(blank)
    wide = cast(tape, spread, 4)
    opened = tape.op(T * E, 4, (wide,), saves_out=True)
    if wide is not spread:
        tape.drop(wide)
    scores = cast(tape, opened, x.width)
    tape.drop(opened, spread, best, indices)
    return logits, scores


def _experts(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Two batched products of all experts, [experts, T, ...]."""
    rows = x.count // spec.hidden
    first = parameter(spec.stacked("gate_up"), ctx.width, ctx.full)
    both = tape.op(rows * spec.up_features, x.width, (first, x), operands(x, first))
    gate, up = tape.split(both, (both.count // 2,) * 2, both.size)
    activated = activation(tape, gate, spec.activation, ctx)
    product = multiply(tape, up, activated)
    tape.drop(activated)
    second = parameter(spec.stacked("down"), ctx.width, ctx.full)
    out = tape.op(rows * spec.hidden, x.width, (second, product), operands(product, second))
    tape.drop(product, both, gate, up)
    return out
