"""Formulas of attention whose output a gate scales, which the query's projection makes, too.

Source: transformers/models/qwen3_next/modeling_qwen3_next.py, `Qwen3NextAttention.forward`.
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.kernels import attend
from estimator.architecture.norms import norm
from estimator.architecture.parts import linear, multiply
from estimator.architecture.rotary import rotate_states
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Attention


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    assert spec.query is not None
    assert spec.key is not None
    assert spec.value is not None
    both = linear(tape, x, spec.query, ctx)
    # Head by head the queries lie beside the gate's features, which are copied together.
    raw, beside = tape.split(both, (both.count // 2,) * 2, both.size)
    tape.drop(both)
    gate = tape.op(beside.count, beside.width, (beside,), grads=(PASS,))
    tape.drop(beside)
    query = _normed(tape, raw, spec, ctx)
    key = _normed(tape, linear(tape, x, spec.key, ctx), spec, ctx)
    value = linear(tape, x, spec.value, ctx)
    rotated = rotate_states(tape, query, key, spec, ctx)
    tape.drop(query, key)
    query, key = rotated.query, rotated.key
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx)
    out, probabilities = attend(tape, query, key, value, spec, ctx, by_head=True)
    opened = tape.op(gate.count, gate.width, (gate,), saves_out=True)
    scaled = multiply(tape, out, opened)
    tape.drop(out, opened)
    result = linear(tape, scaled, spec.output, ctx)
    tape.drop(scaled, query, gate)
    if not ctx.cached:
        tape.drop(key, value)
    return result, probabilities


def _normed(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> Tensor:
    out = norm(tape, x, spec.qk_norm, ctx)
    tape.drop(x)
    return out
