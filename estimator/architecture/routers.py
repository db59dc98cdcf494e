"""Formulas of routers: which experts a token goes to, and with which scores.

Source: transformers/models/{mixtral,qwen2_moe,granitemoe,deepseek_v3,glm4_moe}/modeling_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.architecture.context import Context
from estimator.architecture.eager_attention import fp32_softmax
from estimator.architecture.expert_adapters import router_weight
from estimator.architecture.parts import (
    cast,
    half_weight,
    linear,
    operands,
    parameter,
    product_input,
    scale,
)
from estimator.architecture.sigmoid_router import divided_sigmoid
from estimator.architecture.sparse_mixer import sparse_mixer
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Linear, Moe


def route(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> tuple[tuple[Tensor, ...], Tensor]:
    """Choose k experts a token, with scores computed in fp32.

    Returns:
        what the block still holds (logits, [T, experts], and indices, [T, k] int64), and the
        scores, [T, k].
    """
    if spec.router_linear is not None and spec.router == "linear_softmax":
        return _linear_softmax(tape, x, spec, ctx)
    if spec.router_linear is not None and spec.router == "sigmoid_linear":
        logits = _folded_or_linear(tape, x, spec.router_linear, spec, ctx)
        return divided_sigmoid(tape, logits, x, spec, ctx)
    if spec.router_linear is not None:
        logits = linear(tape, x, spec.router_linear, ctx, viewed=False)
        return _softmax_scores(tape, logits, spec, ctx)
    weight = router_weight(tape, spec, ctx)
    if spec.router == "sigmoid_fp32":
        logits = _logits_fp32(tape, x, weight, spec, ctx)
        return divided_sigmoid(tape, logits, x, spec, ctx)
    if spec.router in _FP32_ROUTERS:
        return _FP32_ROUTERS[spec.router](tape, x, weight, spec, ctx)
    logits = _logits(tape, x, weight, spec, ctx)
    tape.drop(weight)
    if spec.router == "sigmoid_cast":
        return divided_sigmoid(tape, logits, x, spec, ctx)
    if spec.router == "top_softmax_half":
        return _top_softmax_half(tape, logits, spec, ctx)
    if spec.router in ("top_softmax_cast", "top_sigmoid"):
        return _top_logits(tape, x, logits, spec, ctx)
    if spec.router == "top_softmax":
        return _top_softmax(tape, x, logits, spec, ctx)
    if spec.router == "sparse_mixer":
        return sparse_mixer(tape, logits, spec, ctx)
    if spec.router == "sigmoid":
        return _sigmoid(tape, logits, spec, ctx)
    if spec.router == "sigmoid_half":
        return _sigmoid_half(tape, logits, spec, ctx)
    return _softmax_scores(tape, logits, spec, ctx)


def _folded_or_linear(tape: Tape, x: Tensor, linear_: Linear, spec: Moe, ctx: Context) -> Tensor:
    """A linear by the name of other families' stacked parameter (AFMoE): peft folds an adapter into
    its weight, as into theirs, unless it is quantized."""
    if ctx.quantization is not None:
        return linear(tape, x, linear_, ctx, viewed=False)
    weight = router_weight(tape, spec, ctx, adapted=ctx.targets(linear_))
    logits = _logits(tape, x, weight, spec, ctx)
    tape.drop(weight)
    return logits


def _softmax_scores(
    tape: Tape, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The best of a softmax over all experts."""
    probabilities = softmax_fp32(tape, logits, spec, ctx)
    pairs = ctx.tokens * spec.active
    indices = tape.new(pairs, 8)
    values = tape.op(pairs, 4, (probabilities,), (indices,))
    tape.drop(probabilities)
    if spec.normed:
        values = divided_by_sum(tape, values, ctx)
    scores = values if spec.scores_fp32 else cast(tape, values, logits.width)
    if scores is not values:
        tape.drop(values)
    return (logits, indices), scores


def _logits(tape: Tape, x: Tensor, weight: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """The router's product, [T, experts], in the weight's type, or in autocast's."""
    read, matrix = product_input(tape, x, ctx), half_weight(tape, weight, ctx)
    inputs: tuple[Tensor, ...] = (matrix, read)
    if spec.biased:
        inputs = (parameter(spec.experts, ctx.width, ctx.full), matrix, read)
    width = weight.width if ctx.amp is None else read.width
    logits = tape.op(ctx.tokens * spec.experts, width, inputs, operands(read, matrix))
    tape.drop(read)
    if matrix is not weight:
        tape.drop(matrix)
    return logits


def _sigmoid(
    tape: Tape, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Sigmoid scores in fp32, chosen by their sum with a bias.

    Source: transformers/models/minimax_m2/modeling_minimax_m2.py, `MiniMaxM2TopKRouter`.
    """
    wide = cast(tape, logits, 4)
    scores = tape.op(logits.count, 4, (wide,), saves_out=True)
    tape.drop(wide)
    biased = tape.new(logits.count, 4)
    pairs = ctx.tokens * spec.active
    best, indices = tape.new(pairs, 4), tape.new(pairs, 8)
    chosen = tape.op(pairs, 4, (scores,), (indices,), grads=(scores.size,))
    if spec.normed:
        chosen = divided_by_sum(tape, chosen, ctx)
    tape.drop(scores, biased, best)
    return (logits, indices), chosen


def _sigmoid_half(
    tape: Tape, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Sigmoid scores in the weights' dtype, chosen by their fp32 sum with a bias, and scaled.

    Source: transformers/models/lfm2_moe/modeling_lfm2_moe.py, `Lfm2MoeTopKRouter`.
    """
    T, pairs = ctx.tokens, ctx.tokens * spec.active
    scores = tape.op(logits.count, logits.width, (logits,), saves_out=True)
    biased = tape.new(logits.count, 4)
    best, indices = tape.new(pairs, 4), tape.new(pairs, 8)
    chosen = tape.op(pairs, scores.width, (scores,), (indices,), grads=(scores.size,))
    if spec.normed:
        # Autocast sums in fp32.
        width = 4 if ctx.amp else scores.width
        total = tape.op(T, width, (chosen,), grads=(PASS if width == chosen.width else NEW,))
        raised = tape.op(T, width, (total,), grads=(PASS,))
        tape.drop(total)
        before, chosen = chosen, tape.op(pairs, width, (raised, chosen), (chosen, raised))
        tape.drop(before, raised)
    scaled = scale(tape, chosen)
    tape.drop(chosen, scores, biased, best)
    return (logits, indices), scaled


def _top_softmax(
    tape: Tape, x: Tensor, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The best logits' softmax in fp32, cast to the input's dtype.

    Source: transformers/models/granitemoe/modeling_granitemoe.py, `GraniteMoeTopKRouter`.
    """
    wide = cast(tape, logits, 4)
    tape.drop(logits)
    pairs = ctx.tokens * spec.active
    indices = tape.new(pairs, 8)
    best = tape.op(pairs, 4, (wide,), (indices,))
    probabilities = tape.op(pairs, 4, (best,), saves_out=True)
    scores = cast(tape, probabilities, x.width)
    tape.drop(best, probabilities)
    return (wide, indices), scores


def _top_logits(
    tape: Tape, x: Tensor, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The best logits, as they are; their softmax in fp32, or their sigmoids, divided by their sum.

    Source: transformers/models/cohere2_moe/modeling_cohere2_moe.py, `Cohere2MoeTopKRouter`.
    """
    pairs = ctx.tokens * spec.active
    indices = tape.new(pairs, 8)
    best = tape.op(pairs, logits.width, (logits,), (indices,), grads=(logits.size,))
    if spec.router == "top_softmax_cast":
        scores = fp32_softmax(tape, best, ctx)
    else:
        scores = tape.op(pairs, best.width, (best,), saves_out=True)
    tape.drop(best)
    if spec.router == "top_sigmoid" and spec.normed:
        wide = 4 if ctx.amp is not None else scores.width
        total = tape.op(ctx.tokens, wide, (scores,), grads=(PASS,))
        width = promoted(scores.width, wide)
        before, scores = scores, tape.op(pairs, width, (total, scores), (scores, total))
        tape.drop(before, total)
    out = cast(tape, scores, x.width)
    tape.drop(scores)
    return (logits, indices), out


def _top_softmax_half(
    tape: Tape, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The best logits' softmax, all in the logits' dtype.

    Source: transformers/models/gpt_oss/modeling_gpt_oss.py, `GptOssTopKRouter`.
    """
    pairs = ctx.tokens * spec.active
    indices = tape.new(pairs, 8)
    best = tape.op(pairs, logits.width, (logits,), (indices,), grads=(logits.size,))
    scores = tape.op(pairs, logits.width, (best,), saves_out=True)
    tape.drop(best)
    return (logits, indices), scores


def softmax_fp32(tape: Tape, logits: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Return the softmax in fp32; where it is asked for its dtype, fp16 needs no copy."""
    if ctx.is_fp16(logits.width) and not spec.scores_fp32:
        return tape.op(logits.count, 4, (logits,), saves_out=True)
    wide = cast(tape, logits, 4)
    out = tape.op(logits.count, 4, (wide,), saves_out=True)
    tape.drop(wide)
    return out


def divided_by_sum(tape: Tape, values: Tensor, ctx: Context) -> Tensor:
    """Play `values /= values.sum()`: in place, but backward needs the values as they were."""
    total = tape.op(ctx.tokens, 4, (values,), grads=(PASS,))
    if not (values.grad and tape.recording):
        tape.drop(total)
        return values
    out = tape.op(values.count, values.width, (total, values), (values, total))
    tape.drop(values, total)
    return out


def _logits_fp32(tape: Tape, x: Tensor, weight: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """The router's product of fp32 copies, which autocast makes half; the weight is consumed."""
    x32, weight32 = cast(tape, x, 4), cast(tape, weight, 4)
    tape.drop(weight)
    read = product_input(tape, x32, ctx)
    matrix = half_weight(tape, weight32, ctx, viewed=weight32 is not weight)
    count = weight.count // spec.hidden * ctx.tokens
    logits = tape.op(count, read.width, (matrix, read), operands(read, matrix))
    tape.drop(x32, weight32, read)
    if matrix is not weight32:
        tape.drop(matrix)
    return logits


def _softmax_fp32(
    tape: Tape, x: Tensor, weight: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Softmax scores in fp32; `softmax_groups` masks all but the best groups' first.

    Source: transformers/models/deepseek_v2/modeling_deepseek_v2.py, `DeepseekV2TopkRouter`.
    """
    T, E, pairs = ctx.tokens, spec.experts, ctx.tokens * spec.active
    logits = _logits_fp32(tape, x, weight, spec, ctx)
    scores = fp32_softmax(tape, logits, ctx)
    held: tuple[Tensor, ...] = ()
    if spec.router == "softmax_groups":
        best, best_ids = tape.new(T * spec.groups, 4), tape.new(T * spec.groups, 8)
        tape.drop(best_ids)
        chosen = T * spec.active_groups
        best_groups, group_ids = tape.new(chosen, 4), tape.new(chosen, 8)
        tape.drop(best_groups)
        group_mask, mask = tape.new(T * spec.groups, 4), tape.new(T * E, 4)
        known, unknown = tape.new(T * E, 1), tape.new(T * E, 1)
        allowed = tape.op(T * E, 4, (scores,), (unknown,))
        tape.drop(known, unknown, scores)
        scores, held = allowed, (best, group_ids, group_mask, mask)
    indices = tape.new(pairs, 8)
    values = tape.op(pairs, 4, (scores,), (indices,), grads=(scores.size,))
    scaled = scale(tape, values)
    tape.drop(values, scores, *held)
    return (logits, indices), scaled


def _corrected_softmax(
    tape: Tape, x: Tensor, weight: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Softmax scores in fp32, chosen by their sum with a bias and divided by their clamped sum.

    Source: transformers/models/ernie4_5_moe/modeling_ernie4_5_moe.py, `Ernie4_5_MoeTopKRouter`.
    """
    T, E, pairs = ctx.tokens, spec.experts, ctx.tokens * spec.active
    # It switches autocast off.
    logits = _logits_fp32(tape, x, weight, spec, replace(ctx, amp=None))
    scores = tape.op(T * E, 4, (logits,), saves_out=True)
    corrected = tape.new(T * E, 4)
    best, indices = tape.new(pairs, 4), tape.new(pairs, 8)
    tape.drop(corrected)
    chosen = tape.op(pairs, 4, (scores,), (indices,), grads=(scores.size,))
    tape.drop(scores)
    total = tape.op(T, 4, (chosen,), grads=(PASS,))
    clamped = tape.op(T, 4, (total,), (total,), temporaries=(T,))
    tape.drop(total)
    share = tape.op(pairs, 4, (clamped, chosen), (chosen, clamped), temporaries=(4 * pairs,) * 2)
    tape.drop(chosen, clamped)
    out = cast(tape, share, x.width)
    tape.drop(share, best)
    return (logits, indices), out


def corrected_choice(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> tuple[Tensor, Tensor]:
    """LongCat's: softmax scores in fp32 by the weight of a linear, chosen by their sum with a bias.

    Returns:
        indices, [T, k] int64, and the scores, [T, k].
    """
    linear_ = spec.router_linear
    assert linear_ is not None
    pairs = ctx.tokens * spec.active
    weight = parameter(linear_.weight_count, ctx.width, ctx.full)
    logits = _logits_fp32(tape, x, weight, spec, ctx)
    scores = fp32_softmax(tape, logits, ctx)
    corrected = tape.new(scores.count, 4)
    best, indices = tape.new(pairs, 4), tape.new(pairs, 8)
    tape.drop(best, corrected)
    chosen = tape.op(pairs, scores.width, (scores,), (indices,), grads=(scores.size,))
    scaled = scale(tape, chosen)
    tape.drop(chosen, scores)
    out = cast(tape, scaled, logits.width)
    tape.drop(scaled, logits)
    return indices, out


def _linear_softmax(
    tape: Tape, x: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The best of a softmax, of a linear in fp32 unless it is quantized.

    Source: transformers/models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py, `HunYuanMoEV1Gate`.
    """
    assert spec.router_linear is not None
    pairs = ctx.tokens * spec.active
    given = tape.alias(x) if ctx.quantization else cast(tape, x, 4)
    logits = linear(tape, given, spec.router_linear, ctx, viewed=False)
    scores = fp32_softmax(tape, logits, ctx)
    indices = tape.new(pairs, 8)
    values = tape.op(pairs, 4, (scores,), (indices,), grads=(scores.size,))
    tape.drop(scores)
    shares = divided_by_sum(tape, values, ctx)
    out = cast(tape, shares, logits.width)
    tape.drop(shares, given)
    return (logits, indices), out


def _sigmoid_groups(
    tape: Tape, x: Tensor, weight: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Sigmoid scores in fp32, from the best groups of experts; all of it in fp32.

    Source: transformers/models/deepseek_v3/modeling_deepseek_v3.py, `DeepseekV3TopkRouter`.
    """
    T, E, pairs = ctx.tokens, spec.experts, ctx.tokens * spec.active
    logits = _logits_fp32(tape, x, weight, spec, ctx)
    scores = tape.op(T * E, logits.width, (logits,), saves_out=True)
    biased = tape.new(T * E, 4)
    # The best two of each group, their sums, the best groups and a mask of the others.
    best, best_ids = tape.new(2 * T * spec.groups, 4), tape.new(2 * T * spec.groups, 8)
    sums = tape.new(T * spec.groups, 4)
    tape.drop(best, best_ids)
    group_ids = tape.new(T * spec.active_groups, 8)
    group_mask, mask = tape.new(T * spec.groups, 4), tape.new(T * E, 4)
    known, unknown = tape.new(T * E, 1), tape.new(T * E, 1)
    allowed = tape.new(T * E, 4)
    tape.drop(biased, known, unknown)
    values, indices = tape.new(pairs, 4), tape.new(pairs, 8)
    tape.drop(values)
    chosen = tape.op(pairs, scores.width, (scores,), (indices,), grads=(scores.size,))
    if spec.normed:
        chosen = divided_by_sum(tape, chosen, ctx)
    scaled = scale(tape, chosen)
    tape.drop(chosen, scores, sums, group_ids, group_mask, mask, allowed)
    return (logits, indices), scaled


_FP32_ROUTERS = {
    "corrected_softmax": _corrected_softmax,
    "sigmoid_groups": _sigmoid_groups,
    "softmax_fp32": _softmax_fp32,
    "softmax_groups": _softmax_fp32,
}
"""Routers that compute their logits in fp32."""
