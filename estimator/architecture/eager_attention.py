"""Eager attention: scores, mask, softmax and the weighted sum, each a tensor of its own.

Source: `eager_attention_forward` and `repeat_kv` of transformers' models;
aten/src/ATen/native/LinearAlgebra.cpp, `matmul`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import capped, cast, dropout, operands, product_input, scale
from estimator.architecture.sinks import shifted_softmax, softmax_with_sinks
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention


def repeat_heads(tape: Tape, x: Tensor, spec: Attention) -> Tensor:
    """repeat_kv: a copy for every query head; backward sums over the group."""
    return tape.op(x.count * spec.groups, x.width, (x,), grads=(x.size,))


def expand_head(tape: Tape, x: Tensor, spec: Attention) -> Tensor:
    """repeat_kv of a single head is a view; the kernel's gradient is that of all query heads."""
    return tape.view(x, x.count * spec.groups, grad=x.size)


def eager_attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    by_head: bool = False,
) -> tuple[Tensor, Tensor]:
    """Scores, mask, softmax and the weighted sum, each a tensor of its own: S**2 a head."""
    B, Q, K, a, d = ctx.batch, ctx.queries, ctx.keys, spec.heads, spec.head_dim
    out_count, v_count = (B * n * a * spec.value_size for n in (Q, K))
    scores_count = B * a * Q * K
    # repeat_kv of a single head is a view; matmul of four dimensions then copies it, as it does
    # whatever is not laid out head by head.
    repeated = spec.groups > 1 and spec.kv_heads > 1
    keys, values = key, value
    if spec.groups > 1:
        repeat = repeat_heads if repeated else expand_head
        keys, values = repeat(tape, key, spec), repeat(tape, value, spec)
    fused = spec.groups == 1 and not by_head and key.storage is query.storage
    copied = B > 1 or fused
    copy_queries = copied and not by_head
    width = ctx.width if ctx.amp is None else ctx.amp_width
    q_read, k_read = product_input(tape, query, ctx), product_input(tape, keys, ctx)
    q_mat = laid_out(tape, q_read, B * Q * a * d) if copy_queries else tape.alias(q_read)
    copy_values = copied and not repeated and not (ctx.cached and spec.groups == 1)
    copy_keys = copy_values and not by_head
    k_mat = laid_out(tape, k_read, B * K * a * d) if copy_keys else tape.alias(k_read)
    raw = tape.op(scores_count, width, (q_mat, k_mat), operands(q_mat, k_mat))
    tape.drop(q_mat, k_mat, q_read, k_read)
    scores = scale(tape, raw)
    tape.drop(raw)
    if spec.softcap:
        scores = capped(tape, scores)
    if not spec.bidirectional and (ctx.queries > 1 or ctx.cached):
        biased = add_mask(tape, scores, ctx.mask_like)
        tape.drop(scores)
        scores = biased
    held: tuple[Tensor, ...] = ()
    if spec.eager == "shifted":
        probabilities = shifted_softmax(tape, scores, spec, ctx)
    else:
        if spec.sinks:
            probabilities, held = softmax_with_sinks(tape, scores, spec, ctx)
        else:
            probabilities = softmax(tape, scores, spec, ctx, query.width)
        if spec.eager == "plain_named":
            held = (scores,)
        else:
            tape.drop(scores)
    if spec.eager == "plain_cast":
        wide, probabilities = probabilities, cast(tape, probabilities, value.width)
        tape.drop(wide)
    weights = dropout(tape, probabilities, spec.dropout, ctx)
    if spec.eager == "shifted":
        wide, weights = weights, cast(tape, weights, value.width)
        tape.drop(wide)
    tape.probabilities_width = weights.width
    tape.drop(probabilities)
    w_read, v_read = product_input(tape, weights, ctx), product_input(tape, values, ctx)
    v_mat = laid_out(tape, v_read, v_count) if copy_values else tape.alias(v_read)
    product = tape.op(out_count, width, (w_read, v_mat), operands(w_read, v_mat))
    tape.drop(v_mat, w_read, v_read)
    out = tape.op(out_count, width, (product,), grads=(PASS,))
    tape.drop(product, *held)
    if spec.groups > 1:
        tape.drop(keys, values)
    return out, weights


def laid_out(tape: Tape, x: Tensor, count: int) -> Tensor:
    """matmul's copy into [B * heads, rows, d]; the gradient of an expanded source is summed."""
    return tape.op(count, x.width, (x,), grads=(PASS if count == x.count else x.size,))


def operand(tape: Tape, x: Tensor, ctx: Context, copied: bool) -> Tensor:
    """What a batched product reads of `x`: in half precision under autocast, laid out if asked."""
    read = product_input(tape, x, ctx)
    if not copied:
        return read
    out = laid_out(tape, read, read.count)
    tape.drop(read)
    return out


def fp32_softmax(tape: Tape, scores: Tensor, ctx: Context) -> Tensor:
    """Softmax in fp32, which saves its output: fp16 is read by the kernel itself, bf16 is copied
    to fp32 before."""
    fused = ctx.is_fp16(scores.width)
    read = tape.alias(scores) if fused else cast(tape, scores, 4)
    out = tape.op(scores.count, 4, (read,), saves_out=True)
    tape.drop(read)
    return out


def add_mask(tape: Tape, scores: Tensor, mask_width: int = 0) -> Tensor:
    """`scores + mask`: a new tensor that passes its gradient on, cast where the mask is wider."""
    width = promoted(scores.width, mask_width)
    grads = (PASS if width == scores.width else NEW,)
    return tape.op(scores.count, width, (scores,), grads=grads)


def softmax(
    tape: Tape, scores: Tensor, spec: Attention, ctx: Context, width: int | None = None
) -> Tensor:
    """Softmax saves its output; in fp32 and cast back where the family asks for it.

    Under autocast it is in fp32 for all, and cast to `width`, the queries', where the family asks.
    """
    plain = spec.eager != "fp32_softmax"
    if ctx.amp is None and (plain or ctx.width == 4):
        return tape.op(scores.count, scores.width, (scores,), saves_out=True)
    wide = fp32_softmax(tape, scores, ctx)
    if plain:
        return wide
    out = cast(tape, wide, ctx.width if width is None or ctx.amp is None else width)
    tape.drop(wide)
    return out
