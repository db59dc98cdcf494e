"""Formulas of sigmoid routers whose scores are divided by their sum out of place.

Source: transformers/models/{afmoe,laguna,hy_v3}/modeling_*.py, `AfmoeTokenChoiceRouter.forward`,
`LagunaTopKRouter.forward`, `HYV3TopKRouter.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import capped, cast, scale
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Moe


def divided_sigmoid(
    tape: Tape, logits: Tensor, x: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Scores of the logits (consumed), chosen by their sum with a bias: see `route`.

    They are multiplied by a number, or cast to x's type where logits were (Laguna).
    """
    wide = logits
    if spec.router != "sigmoid_fp32":
        wide = cast(tape, logits, 4)
        tape.drop(logits)
    if spec.logits_capped:
        wide = capped(tape, wide)
    scores = tape.op(wide.count, wide.width, (wide,), saves_out=True)
    biased = tape.new(wide.count, 4)
    pairs = ctx.tokens * spec.active
    best, indices = tape.new(pairs, 4), tape.new(pairs, 8)
    if spec.router == "sigmoid_linear":
        tape.drop(biased)
    chosen = tape.op(pairs, scores.width, (scores,), (indices,), grads=(scores.size,))
    total = tape.op(ctx.tokens, 4, (chosen,), grads=(PASS,))
    if spec.router != "sigmoid_cast":
        before, total = total, tape.op(ctx.tokens, 4, (total,), grads=(PASS,))
        tape.drop(before)
    width = promoted(chosen.width, 4)
    share = tape.op(pairs, width, (total, chosen), (chosen, total), temporaries=(4 * pairs,) * 2)
    tape.drop(chosen, total)
    out = cast(tape, share, x.width) if spec.router == "sigmoid_cast" else scale(tape, share)
    tape.drop(share, scores, best)
    if spec.router != "sigmoid_linear":
        tape.drop(biased)
    return (wide, indices), out
