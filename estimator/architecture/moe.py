"""Formulas of mixtures of experts: the router, the experts, and experts that all tokens share.

Source: transformers/models/{mixtral,qwen2_moe,qwen3_moe,olmoe}/modeling_*.py.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.expert_adapters import router_weight
from estimator.architecture.experts import experts
from estimator.architecture.feed_forward import mlp
from estimator.architecture.parts import add, cast, linear
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Mlp, Moe


def feed_forward(tape: Tape, x: Tensor, spec: Mlp | Moe, ctx: Context) -> Tensor:
    """Play an MLP or a mixture of experts on `x` ([B, Q, hidden], borrowed)."""
    return mixture(tape, x, spec, ctx) if isinstance(spec, Moe) else mlp(tape, x, spec, ctx)


def mixture(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Play the block on `x` ([B, Q, hidden], borrowed): [B, Q, hidden]."""
    rows = tape.view(x, x.count)
    shared = None
    if spec.shared is not None and spec.shared_first:
        shared = mlp(tape, rows, spec.shared, ctx)
    held, scores = route(tape, rows, spec, ctx)
    out = experts(tape, rows, scores, spec, ctx)
    if shared is not None:
        out, own = _with_shared(tape, rows, out, shared, spec, ctx), out
        tape.drop(own, shared)
    tape.drop(*held, scores, rows)
    return out


def route(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> tuple[tuple[Tensor, ...], Tensor]:
    """Choose k experts a token, with scores computed in fp32.

    Returns:
        what the block still holds (logits, [T, experts], and indices, [T, k] int64), and the
        scores, [T, k].
    """
    weight = router_weight(tape, spec, ctx)
    saves = tuple(t for t, other in ((x, weight), (weight, x)) if other.grad)
    logits = tape.op(ctx.tokens * spec.experts, ctx.width, (weight, x), saves)
    tape.drop(weight)
    if spec.router == "top_softmax":
        return _top_softmax(tape, logits, spec, ctx)
    probabilities = _softmax(tape, logits, spec, ctx)
    pairs = ctx.tokens * spec.active
    indices = tape.new(pairs, 8)
    values = tape.op(pairs, 4, (probabilities,), (indices,))
    tape.drop(probabilities)
    if spec.normed:
        values = _normed(tape, values, ctx)
    scores = values if spec.scores_fp32 else cast(tape, values, ctx.width)
    if scores is not values:
        tape.drop(values)
    return (logits, indices), scores


def _top_softmax(
    tape: Tape, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The best logits' softmax in fp32, cast to the weights' dtype.

    Source: transformers/models/granitemoe/modeling_granitemoe.py, `GraniteMoeTopKRouter`.
    """
    wide = cast(tape, logits, 4)
    tape.drop(logits)
    pairs = ctx.tokens * spec.active
    indices = tape.new(pairs, 8)
    best = tape.op(pairs, 4, (wide,), (indices,))
    probabilities = tape.op(pairs, 4, (best,), saves_out=True)
    scores = cast(tape, probabilities, ctx.width)
    tape.drop(best, probabilities)
    return (wide, indices), scores


def _softmax(tape: Tape, logits: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Softmax in fp32; where it is asked for its dtype, fp16 needs no copy."""
    if ctx.half == "float16" and not spec.scores_fp32:
        return tape.op(logits.count, 4, (logits,), saves_out=True)
    wide = cast(tape, logits, 4)
    out = tape.op(logits.count, 4, (wide,), saves_out=True)
    tape.drop(wide)
    return out


def _normed(tape: Tape, values: Tensor, ctx: Context) -> Tensor:
    """`values /= values.sum()`: in place, but backward needs the values as they were."""
    total = tape.op(ctx.tokens, 4, (values,), grads=(PASS,))
    if not (values.grad and tape.recording):
        tape.drop(total)
        return values
    out = tape.op(values.count, 4, (total, values), (values, total))
    tape.drop(values, total)
    return out


def _with_shared(
    tape: Tape, x: Tensor, out: Tensor, shared: Tensor, spec: Moe, ctx: Context
) -> Tensor:
    """out + sigmoid(gate(x)) * shared, where the shared expert has a gate."""
    if spec.shared_gate is None:
        return add(tape, out, shared)
    gate = linear(tape, x, spec.shared_gate, ctx, viewed=False)
    opened = tape.op(gate.count, gate.width, (gate,), saves_out=True)
    tape.drop(gate)
    temporaries = (shared.size,) if opened.grad else ()
    saves = tuple(t for t, other in ((opened, shared), (shared, opened)) if other.grad)
    product = tape.op(shared.count, shared.width, (opened, shared), saves, temporaries=temporaries)
    tape.drop(opened)
    result = add(tape, out, product)
    tape.drop(product)
    return result
