"""Formulas of XGLM's attention: batched products, and scores kept above the dtype's smallest.

Source: transformers/models/xglm/modeling_xglm.py, `XGLMAttention.forward`.
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.eager_attention import add_mask, fp32_softmax, laid_out
from estimator.architecture.parts import cast, dropout, linear, operands, product_input, scale
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Attention


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output, and the probabilities that its caller still holds."""
    assert spec.query is not None
    assert spec.key is not None
    assert spec.value is not None
    projected = linear(tape, x, spec.query, ctx)
    query = scale(tape, projected)
    tape.drop(projected)
    key = linear(tape, x, spec.key, ctx)
    value = linear(tape, x, spec.value, ctx)
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx)
    copied = ctx.batch > 1 and ctx.queries > 1
    q_mat, k_mat, v_mat = (
        _matrix(tape, part, copied and (part is query or not ctx.cached))
        for part in (query, key, value)
    )
    count = ctx.batch * spec.heads * ctx.queries * ctx.keys
    q_read, k_read = product_input(tape, q_mat, ctx), product_input(tape, k_mat, ctx)
    raw = tape.op(count, q_read.width, (q_read, k_read), operands(q_read, k_read))
    tape.drop(q_read, k_read)
    masked = add_mask(tape, raw, ctx.width)
    tape.drop(raw)
    bounded = _maximum(tape, masked)
    tape.drop(masked)
    probabilities = _softmax(tape, bounded, ctx)
    weights = dropout(tape, probabilities, spec.dropout, ctx)
    read, v_read = product_input(tape, weights, ctx), product_input(tape, v_mat, ctx)
    product = tape.op(query.count, v_read.width, (read, v_read), operands(read, v_read))
    tape.drop(read, v_read)
    merged = product
    if ctx.queries > 1:
        merged = tape.op(product.count, product.width, (product,), grads=(PASS,))
        tape.drop(product)
    result = linear(tape, merged, spec.output, ctx)
    tape.drop(merged, weights, q_mat)
    if not ctx.cached:
        tape.drop(k_mat, v_mat)
    return result, probabilities


def _matrix(tape: Tape, x: Tensor, copied: bool) -> Tensor:
    """[B * heads, tokens, d]: a copy where heads do not lie apart; `x` is consumed if so."""
    if not copied:
        return x
    out = laid_out(tape, x, x.count)
    tape.drop(x)
    return out


def _maximum(tape: Tape, x: Tensor) -> Tensor:
    """`torch.max(x, smallest)`: saves x; backward halves the gradient where both are equal."""
    temporaries = (x.size, x.count, x.count)
    return tape.op(x.count, x.width, (x,), (x,), temporaries=temporaries)


def _softmax(tape: Tape, scores: Tensor, ctx: Context) -> Tensor:
    """In the model's dtype, but of fp16 in fp32; autocast's result is fp32, and stays so unless the
    scores are fp16. `scores` is consumed."""
    if ctx.is_fp16(scores.width):
        wide = fp32_softmax(tape, scores, ctx)
        out = cast(tape, wide, scores.width)
        tape.drop(wide)
    elif ctx.amp is not None:
        out = fp32_softmax(tape, scores, ctx)
    else:
        out = tape.op(scores.count, scores.width, (scores,), saves_out=True)
    tape.drop(scores)
    return out
