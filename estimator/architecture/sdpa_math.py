"""sdpa's math path: what runs where no fused kernel takes the case, with S**2 scores.

Source: aten/src/ATen/native/transformers/attention.cpp, `_scaled_dot_product_attention_math`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import cast, dropout, operands, scale
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Attention


def math_attention(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    masked: bool,
    by_head: bool = False,
) -> Tensor:
    """Return [B, Q, heads * value size]. Half precision is computed in fp32.

    Grouped heads are repeated first where the caller says so (`enable_gqa`); a single head that
    is not is expanded by the products. `masked` is whether the caller gives a boolean mask,
    `by_head` whether keys and values lie in memory head by head.
    """
    B, Q, K, a = ctx.batch, ctx.queries, ctx.keys, spec.heads
    repeats = spec.groups > 1 and spec.enable_gqa
    bias = tape.new(B * Q * K, ctx.width) if masked else None
    q_wide, k_wide, v_wide = (cast(tape, x, 4) for x in (query, key, value))
    q_scaled = scale(tape, q_wide)
    keys, values = (
        tape.op(x.count * spec.groups, 4, (x,), grads=(x.size,)) if repeats else tape.alias(x)
        for x in (k_wide, v_wide)
    )
    if Q > 1 and not masked:
        bias = tape.new(Q * K, 4)
    k_scaled = scale(tape, keys)
    q_mat = _laid_out(tape, q_scaled, q_scaled.count) if B > 1 else tape.alias(q_scaled)
    # What was repeated, and what comes from a cache, lies head by head, too.
    apart = B > 1 and not ctx.cached and not by_head
    expanded = not repeats and spec.groups > 1

    def matrix(x: Tensor) -> Tensor:
        if B > 1 and (expanded or (apart and not repeats)):
            return _laid_out(tape, x, x.count * (spec.groups if expanded else 1))
        return tape.view(x, x.count * spec.groups, x.size) if expanded else tape.alias(x)

    k_mat = matrix(k_scaled)
    scores = tape.op(B * a * Q * K, 4, (q_mat, k_mat), operands(q_mat, k_mat))
    tape.drop(q_mat, k_mat, k_scaled)
    if bias is not None:
        before, scores = scores, tape.op(scores.count, 4, (scores,), grads=(PASS,))
        tape.drop(before)
    probabilities = tape.op(scores.count, 4, (scores,), saves_out=True)
    tape.drop(scores)
    if spec.dropout and ctx.training:
        kept, probabilities = probabilities, dropout(tape, probabilities, spec.dropout, ctx)
        tape.drop(kept)
    # The probabilities are handed back, too, in the caller's dtype.
    returned = cast(tape, probabilities, ctx.width)
    v_mat = matrix(values)
    out_count = B * Q * a * spec.value_size
    product = tape.op(out_count, 4, (probabilities, v_mat), operands(probabilities, v_mat))
    narrow = cast(tape, product, ctx.width)
    tape.drop(product, v_mat, probabilities, q_scaled, keys, values, q_wide, k_wide, v_wide)
    tape.drop(returned, bias)
    out = tape.op(narrow.count, ctx.width, (narrow,), grads=(PASS,))
    tape.drop(narrow)
    return out


def _laid_out(tape: Tape, x: Tensor, count: int) -> Tensor:
    """matmul's copy into [B * heads, rows, d]; the gradient of an expanded source is summed."""
    return tape.op(count, x.width, (x,), grads=(PASS if count == x.count else x.size,))
