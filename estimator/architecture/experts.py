"""Formulas of a mixture's experts, whose weights are stacked: one tensor for all of a layer.

S = T * k pairs of tokens and experts are sorted by expert, go through two grouped matrix products
and are added up again; which expert gets how many of them changes no tensor's size. Decoding
gathers the chosen experts' weights instead, a copy a pair.

Source: transformers/integrations/moe.py (`grouped_mm_experts_forward`,
`batched_mm_experts_forward`); GenerationMixin._optimize_model_for_decode.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.expert_adapters import (
    Factors,
    cast_factors,
    drop_factors,
    stacked_weight,
)
from estimator.architecture.gates import gated
from estimator.architecture.parts import cast, parameter, product_input
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Moe


def experts(tape: Tape, x: Tensor, scores: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Return the weighted sum of the chosen experts' outputs, [T, hidden].

    Args:
        x: [T, hidden], borrowed.
        scores: [T, k] in fp32 or in x's dtype, borrowed.
    """
    factors = cast_factors(tape, spec, ctx)
    run = _batched if ctx.decoding else _grouped
    out = run(tape, x, scores, spec, ctx, factors)
    drop_factors(tape, factors)
    return out


def _grouped(
    tape: Tape, x: Tensor, scores: Tensor, spec: Moe, ctx: Context, factors: Factors
) -> Tensor:
    pairs = ctx.tokens * spec.active
    by_expert, order = tape.new(pairs, 8), tape.new(pairs, 8)
    tokens = tape.new(pairs, 8)
    selected = gather(tape, x, pairs * spec.hidden, tokens)
    own_scores = gather(tape, scores, pairs, order)
    counts = [tape.new(pairs, 4), tape.new(spec.experts, 4), tape.new(spec.experts, 4)]
    mask = tape.new(pairs, 1)
    # Rows without an expert are set to zero in place.
    filled = tape.view(selected, selected.count, selected.size)
    tape.drop(tokens, selected)
    first = stacked_weight(tape, spec, "gate_up", ctx, factors)
    bias = _biases(tape, spec, spec.up_features, ctx, by_expert)
    inner = _product(tape, filled, first, pairs * spec.up_features, bias)
    inner = _masked(tape, inner, mask)
    hidden = gated(tape, inner, spec, ctx)
    tape.drop(inner)
    second = stacked_weight(tape, spec, "down", ctx, factors)
    last_bias = _biases(tape, spec, spec.hidden, ctx, by_expert)
    tape.drop(bias)
    out = _product(tape, hidden, second, pairs * spec.hidden, last_bias)
    tape.drop(hidden)
    out = _masked(tape, out, mask)
    rows = weighted(tape, out, own_scores, ctx)
    back = tape.new(pairs, 8)
    numbers = tape.new(pairs, 8)
    tape.drop(numbers)
    restored = gather(tape, rows, rows.count, back)
    tape.drop(rows)
    result = _summed(tape, restored, x, ctx, spec)
    tape.drop(by_expert, order, filled, own_scores, *counts, mask, first, second, out, back)
    tape.drop(restored, last_bias)
    return result


def _batched(
    tape: Tape, x: Tensor, scores: Tensor, spec: Moe, ctx: Context, factors: Factors
) -> Tensor:
    """The chosen experts' weights are copied for each pair: [S, 2 I, hidden], then [S, hidden, I].

    The second copy is made while the first is still named.
    """
    pairs = ctx.tokens * spec.active
    selected = tape.new(pairs * spec.hidden, x.width)
    ids = tape.new(pairs, 8)
    weights = [stacked_weight(tape, spec, name, ctx, factors) for name in ("gate_up", "down")]
    first = tape.new(pairs * spec.up_features * spec.hidden, weights[0].width)
    bias = _biases(tape, spec, spec.up_features, ctx, ids)
    inner = _batched_product(tape, first, selected, pairs * spec.up_features, ctx)
    hidden = gated(tape, inner, spec, ctx)
    tape.drop(inner)
    second = tape.new(pairs * spec.width * spec.hidden, weights[1].width)
    tape.drop(first)
    last_bias = _biases(tape, spec, spec.hidden, ctx, ids)
    tape.drop(bias)
    out = _batched_product(tape, second, hidden, pairs * spec.hidden, ctx)
    tape.drop(hidden)
    rows = weighted(tape, out, scores, ctx)
    result = _summed(tape, rows, x, ctx, spec)
    tape.drop(selected, ids, second, last_bias, out, rows, *weights)
    return result


def _batched_product(tape: Tape, weights: Tensor, x: Tensor, count: int, ctx: Context) -> Tensor:
    """A product a pair; under autocast of copies in half precision."""
    matrix, read = (product_input(tape, part, ctx) for part in (weights, x))
    out = tape.new(count, read.width)
    tape.drop(matrix, read)
    return out


def _biases(
    tape: Tape, spec: Moe, features: int, ctx: Context, experts_of: Tensor
) -> Tensor | None:
    """Each pair's bias, [S, features], gathered by its expert; None without biases."""
    if not spec.biased:
        return None
    bias = parameter(spec.experts * features, ctx.width, ctx.full)
    return gather(tape, bias, ctx.tokens * spec.active * features, experts_of)


def gather(tape: Tape, x: Tensor, count: int, index: Tensor) -> Tensor:
    """Play `x[index]`: backward adds into zeros of x's size, with the indices sorted first.

    Source: aten/src/ATen/native/cuda/Indexing.cu, `index_put_with_sort_kernel`.
    """
    sort = (8 * index.count,) * 6
    return tape.op(count, x.width, (x,), (index,), grads=(x.size,), temporaries=sort)


def _product(
    tape: Tape, x: Tensor, weight: Tensor, count: int, bias: Tensor | None = None
) -> Tensor:
    """A grouped product; its gradient for the weights has the size of all experts.

    Autocast leaves it alone; its input is cast to the weights' dtype.
    """
    read = cast(tape, x, weight.width)
    saves = tuple(t for t, other in ((read, weight), (weight, read)) if other.grad)
    out = tape.op(count, weight.width, (weight, read), saves)
    tape.drop(read)
    if bias is None:
        return out
    product, out = out, tape.op(count, out.width, (out, bias), grads=(PASS, PASS), into=out)
    tape.drop(product)
    return out


def _masked(tape: Tape, x: Tensor, mask: Tensor) -> Tensor:
    """masked_fill: a copy."""
    out = tape.op(x.count, x.width, (x,), (mask,))
    tape.drop(x)
    return out


def weighted(tape: Tape, x: Tensor, scores: Tensor, ctx: Context) -> Tensor:
    """`x * scores`, one number a row: in fp32 where the scores are.

    Backward makes both products in full before the engine sums the scores' and casts x's, which it
    does before the node lets go of what it saved; checkpointing's nodes let go of it at once.
    """
    width = promoted(x.width, scores.width)
    if not ctx.checkpointing:
        casts = 1 if width != x.width else 0
        full = (x.count * width,) * ((1 if scores.grad else 0) + casts)
        saves = tuple(t for t, other in ((x, scores), (scores, x)) if other.grad)
        return tape.op(x.count, width, (scores, x), saves, temporaries=full)
    spread = tape.view(scores, x.count, scores.size)
    wide = tape.view(x, x.count, PASS if width == x.width else x.size)
    spread.width = wide.width = width
    saves = tuple(t for t, other in ((wide, spread), (spread, wide)) if other.grad)
    out = tape.op(x.count, width, (spread, wide), saves)
    tape.drop(spread, wide)
    return out


def _summed(tape: Tape, rows: Tensor, x: Tensor, ctx: Context, spec: Moe) -> Tensor:
    """Sum over each token's k rows, and cast to x's dtype."""
    width = rows.width if ctx.amp is None else 4
    total = tape.op(ctx.tokens * spec.hidden, width, (rows,))
    out = cast(tape, total, x.width)
    tape.drop(total)
    return out
