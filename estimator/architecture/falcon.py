"""Formulas of Falcon's layers: one fused projection split three ways, a mask that is always made.

Source: transformers/models/falcon/modeling_falcon.py (`FalconAttention.forward`,
`FalconDecoderLayer.forward`).
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.eager_attention import add_mask, laid_out, operand
from estimator.architecture.kernels import attend
from estimator.architecture.moe import feed_forward
from estimator.architecture.norms import norm
from estimator.architecture.parts import add, cast, dropout, linear, operands, product_input
from estimator.architecture.rotary import rotate_states
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Attention, Layer

_States = tuple[Tensor, Tensor, Tensor]


def falcon_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """Attention and MLP side by side (7B, 40B, 11B) or one after the other (RW)."""
    normed = norm(tape, x, spec.input_norm, ctx)
    if not spec.parallel:
        return _sequential(tape, x, normed, spec, ctx)
    # The 40B's MLP has a norm of its own, which is there before the attention runs.
    given = norm(tape, x, spec.post_norm, ctx) if spec.post_norm else tape.alias(normed)
    attended, probabilities = falcon_attention(tape, normed, spec.attention, ctx)
    fed = feed_forward(tape, given, spec.mlp, ctx)
    out = _added(tape, tape.add_in_place(fed, attended), x, spec.dropout, ctx)
    tape.drop(attended, normed, given, probabilities)
    return out


def _sequential(tape: Tape, x: Tensor, normed: Tensor, spec: Layer, ctx: Context) -> Tensor:
    attended, probabilities = falcon_attention(tape, normed, spec.attention, ctx)
    # The attention's dropout stands here, too.
    dropped = dropout(tape, attended, spec.attention.dropout, ctx)
    h = add(tape, x, dropped)
    tape.drop(dropped)
    given = norm(tape, h, spec.post_norm, ctx)
    fed = feed_forward(tape, given, spec.mlp, ctx)
    out = _added(tape, fed, h, spec.dropout, ctx)
    tape.drop(attended, normed, given, h, probabilities)
    return out


def _added(tape: Tape, x: Tensor, residual: Tensor, p: float, ctx: Context) -> Tensor:
    """`dropout_add`; `x` is consumed."""
    dropped = dropout(tape, x, p, ctx)
    out = add(tape, residual, dropped)
    tape.drop(dropped, x)
    return out


def falcon_attention(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    assert spec.fused is not None
    fused = linear(tape, x, spec.fused, ctx)
    query, key, value = _split(tape, fused, spec, ctx)
    if spec.rotary:
        rotated = rotate_states(tape, query, key, spec, ctx)
        tape.drop(query, key)
        query, key = rotated.query, rotated.key
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx, consumes=True)
    held: tuple[Tensor, ...] = ()
    probabilities: Tensor | None
    if ctx.attention == "eager":
        out, probabilities, held = _eager(tape, query, key, value, spec, ctx, x.width)
    else:
        out, probabilities = attend(tape, query, key, value, spec, ctx)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, fused, query, *held)
    if not ctx.stores_all:
        tape.drop(key, value)
    return result, probabilities


def _split(tape: Tape, fused: Tensor, spec: Attention, ctx: Context) -> _States:
    """Queries are a slice, whose gradient is copied into zeros of the whole; a single key and
    value head are copies (an index of one), and groups of heads are copied out in full."""
    assert spec.fused is not None
    d = spec.head_dim
    rows = ctx.tokens * d
    count = rows * spec.heads
    together = spec.fused.outputs // d - spec.heads
    if together == 2 * spec.heads:
        query, key, value = (tape.view(fused, count, fused.size) for _ in range(3))
        return query, key, value
    single = together // 2 * rows
    query = tape.view(fused, count, fused.size)
    key, value = (tape.op(single, fused.width, (fused,), grads=(fused.size,)) for _ in range(2))
    if spec.kv_heads == 1:
        return query, key, value
    made = [tape.op(count, fused.width, (query,), grads=(PASS,))]
    made += [tape.op(count, x.width, (x,), grads=(x.size,)) for x in (key, value)]
    tape.drop(query, key, value)
    return made[0], made[1], made[2]


def _eager(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    width: int,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """The output, the probabilities, and what is named until the attention's end.

    Scores are scaled in place; with distances (`alibi`) they are fp32 until the softmax.

    Args:
        width: bytes of an element of the attention's input, and so of the probabilities.
    """
    B, Q, K, a, d = ctx.batch, ctx.queries, ctx.keys, spec.heads, spec.head_dim
    # What was rotated lies as the projection does, and so do slices; the cache lies by head.
    copied = B > 1 and Q > 1
    q_mat = operand(tape, query, ctx, copied)
    expands = spec.kv_heads == 1 and a > 1

    def matrix(x: Tensor) -> Tensor:
        read = product_input(tape, x, ctx)
        if B > 1 and (expands or not ctx.cached):
            out = laid_out(tape, read, B * K * a * d)
        elif expands:
            out = tape.view(read, B * K * a * d, read.size)
        else:
            return read
        tape.drop(read)
        return out

    k_mat = matrix(key)
    count = B * a * Q * K
    raw = tape.op(count, q_mat.width, (q_mat, k_mat), operands(q_mat, k_mat))
    tape.drop(q_mat, k_mat)
    held: tuple[Tensor, ...] = (raw,)
    scores = raw
    if not spec.rotary:
        wide = cast(tape, raw, 4)
        biased = tape.op(count, 4, (wide,), grads=(PASS,))
        held = (raw, wide, biased)
        scores = biased
    masked = add_mask(tape, scores, ctx.width)
    fused = ctx.is_fp16(masked.width) and width == 4
    narrow = tape.alias(masked) if fused else cast(tape, masked, width)
    probabilities = tape.op(count, width, (narrow,), saves_out=True)
    tape.drop(masked, narrow)
    if spec.rotary:
        tape.drop(*held)
        held = ()
    weights = probabilities
    if not spec.rotary:
        weights = dropout(tape, probabilities, spec.dropout, ctx)
        tape.drop(probabilities)
    tape.probabilities_width = weights.width
    w_read, v_mat = product_input(tape, weights, ctx), matrix(value)
    product = tape.op(B * Q * a * d, v_mat.width, (w_read, v_mat), operands(w_read, v_mat))
    tape.drop(w_read, v_mat)
    out = product
    if Q > 1:
        out = tape.op(product.count, product.width, (product,), grads=(PASS,))
        tape.drop(product)
    return out, weights, held
