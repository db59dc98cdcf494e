"""Formulas of attention whose scores are biased by the distance of tokens: Bloom and MPT.

Neither calls sdpa; scores are S**2 tensors, a head, a layer.

Source: transformers/models/bloom/modeling_bloom.py (`BloomBlock.forward`),
mpt/modeling_mpt.py (`MptAttention.forward`).
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.eager_attention import add_mask, laid_out, operand, softmax
from estimator.architecture.moe import feed_forward
from estimator.architecture.norms import norm
from estimator.architecture.parts import add, cast, dropout, linear, operands, product_input, scale
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import Attention, Layer


def bloom_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """`BloomBlock.forward`: attention and MLP add their outputs to the residual themselves."""
    normed = norm(tape, x, spec.input_norm, ctx)
    h, probabilities = _bloom_attention(tape, normed, x, spec, ctx)
    before, normed = normed, norm(tape, h, spec.post_norm, ctx)
    tape.drop(before)
    out = _added(tape, feed_forward(tape, normed, spec.mlp, ctx), h, spec, ctx)
    tape.drop(normed, h, probabilities)
    return out


def _added(tape: Tape, x: Tensor, residual: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """`dropout_add`; `x` is consumed."""
    dropped = dropout(tape, x, spec.dropout, ctx)
    out = add(tape, residual, dropped)
    tape.drop(dropped, x)
    return out


def _bloom_attention(
    tape: Tape, x: Tensor, residual: Tensor, layer: Layer, ctx: Context
) -> tuple[Tensor, Tensor]:
    """One product of biases, queries and keys (`baddbmm`); the softmax is in fp32."""
    spec = layer.attention
    assert spec.fused is not None
    fused = linear(tape, x, spec.fused, ctx)
    # Each of the three is a selection of its own, whose backward makes zeros of the whole.
    count = fused.count // 3
    query, key, value = (tape.view(fused, count, fused.size) for _ in range(3))
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx, consumes=True)
    copied = ctx.batch > 1 and ctx.queries > 1
    q_mat = laid_out(tape, query, query.count) if copied else tape.alias(query)
    k_mat, v_mat = (
        laid_out(tape, part, part.count) if copied and not ctx.cached else tape.alias(part)
        for part in (key, value)
    )
    tape.drop(query)
    if not ctx.stores_all:
        tape.drop(key, value)
    scores_count = ctx.batch * spec.heads * ctx.queries * ctx.keys
    # Each gradient is multiplied by the scale: there is one more of its size for a moment.
    biases = None
    if ctx.amp is not None:
        biases = tape.new(ctx.batch * spec.heads * ctx.keys, ctx.amp_width)
    q_read, k_read = product_input(tape, q_mat, ctx), product_input(tape, k_mat, ctx)
    saves = operands(q_read, k_read)
    scores = tape.op(
        scores_count, q_read.width, (k_read, q_read), saves, temporaries=(k_read.size,)
    )
    tape.drop(biases, q_read, k_read)
    masked = add_mask(tape, scores, ctx.width)
    probabilities = softmax(tape, masked, spec, ctx, q_mat.width)
    weights = dropout(tape, probabilities, spec.dropout, ctx)
    tape.drop(probabilities)
    w_read, v_read = product_input(tape, weights, ctx), product_input(tape, v_mat, ctx)
    product = tape.op(q_mat.count, w_read.width, (w_read, v_read), operands(w_read, v_read))
    tape.drop(w_read, v_read)
    tape.probabilities_width = weights.width
    merged = _merged(tape, product, ctx)
    result = _added(tape, linear(tape, merged, spec.output, ctx), residual, layer, ctx)
    tape.drop(merged, fused, q_mat, scores, masked)
    if not ctx.stores_all:
        tape.drop(k_mat, v_mat)
    return result, weights


def mpt_attention(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """The biases are fp32, and so are the scores from then on."""
    assert spec.fused is not None
    fused = linear(tape, x, spec.fused, ctx)
    count = fused.count // 3
    query, key, value = tape.split(fused, (count, count, count), fused.size)
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx, consumes=True)
    copied = ctx.batch > 1 and ctx.queries > 1
    q_mat = operand(tape, query, ctx, copied)
    copied_keys = copied and not ctx.cached
    k_mat = operand(tape, key, ctx, copied_keys)
    scores_count = ctx.batch * spec.heads * ctx.queries * ctx.keys
    raw = tape.op(scores_count, q_mat.width, (q_mat, k_mat), operands(q_mat, k_mat))
    tape.drop(q_mat, k_mat)
    scaled = scale(tape, raw)
    tape.drop(raw)
    biased = tape.op(scores_count, 4, (scaled,), grads=(PASS if scaled.width == 4 else NEW,))
    tape.drop(scaled)
    scores = scale(tape, biased)
    tape.drop(biased)
    wide = tape.op(scores_count, 4, (scores,), saves_out=True)
    probabilities = cast(tape, wide, value.width)
    tape.drop(wide)
    weights = dropout(tape, probabilities, spec.dropout, ctx)
    tape.drop(probabilities)
    v_mat = operand(tape, value, ctx, copied_keys)
    product = tape.op(query.count, v_mat.width, (weights, v_mat), operands(weights, v_mat))
    tape.drop(v_mat)
    tape.probabilities_width = weights.width
    merged = _merged(tape, product, ctx)
    result = linear(tape, merged, spec.output, ctx)
    tape.drop(merged, fused, query, scores)
    if not ctx.stores_all:
        tape.drop(key, value)
    return result, weights


def _merged(tape: Tape, product: Tensor, ctx: Context) -> Tensor:
    """Heads side by side again, [B, Q, heads * d]: a copy, except of a single token."""
    if ctx.queries == 1:
        return product
    merged = tape.op(product.count, product.width, (product,), grads=(PASS,))
    tape.drop(product)
    return merged
