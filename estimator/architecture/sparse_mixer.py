"""Formulas of the SparseMixer router: two experts a token, one after the other, with sampling.

Source: https://arxiv.org/abs/2409.12136; transformers/models/phimoe/modeling_phimoe.py,
`sparsemixer` and `PhimoeMultiplier`.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.architecture.context import Context
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Moe


@dataclass(slots=True)
class _Choice:
    """One expert a token: its multiplier and index, [T, 1], and what the code still names."""

    multiplier: Tensor
    index: Tensor
    held: tuple[Tensor, ...]


def sparse_mixer(
    tape: Tape, logits: Tensor, spec: Moe, ctx: Context
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return what the block still holds (logits and indices), and the multipliers, [T, 2]."""
    T = ctx.tokens
    first = _choice(tape, logits, logits, spec, ctx)
    # The chosen expert's score is overwritten before the second is chosen.
    rest = tape.op(logits.count, logits.width, (logits,), (first.index,))
    second = _choice(tape, rest, logits, spec, ctx)
    pair = (first.multiplier, second.multiplier)
    multipliers = tape.op(2 * T, logits.width, pair, grads=(PASS, PASS))
    indices = tape.new(2 * T, 8)
    tape.drop(rest, *pair, first.index, second.index, *first.held, *second.held)
    return (logits, indices), multipliers


def _choice(tape: Tape, scores: Tensor, logits: Tensor, spec: Moe, ctx: Context) -> _Choice:
    T, width, count = ctx.tokens, scores.width, scores.count
    threshold, best = tape.new(T, width), tape.new(T, 8)
    absolute = tape.new(count, width)
    factor = tape.new(count, width)
    tape.drop(absolute)
    distance = tape.new(count, width)
    relative = tape.new(count, width)
    tape.drop(distance)
    far = tape.new(count, 1)
    tape.drop(relative, threshold)
    masked = tape.op(count, width, (scores,), (far,))
    index = best
    if ctx.training:
        index = _sampled(tape, masked, T)
    gates = tape.op(count, width, (masked,), saves_out=True)
    tape.drop(masked)
    chosen = tape.op(T, width, (gates,), (index,))
    if not ctx.training:
        return _Choice(chosen, index, (factor, far, gates))
    highest = tape.op(T, width, (gates,), aux=(8 * T,))
    agrees = tape.new(T, width)
    held = (factor, far, gates, chosen, highest, agrees, best)
    # Heun's rule: the gradient reaches the logits alone, past gates and masks.
    multiplier = tape.op(
        T,
        width,
        (logits,),
        (chosen, index, gates),
        temporaries=(T * width, T * width),
    )
    return _Choice(multiplier, index, held)


def _sampled(tape: Tape, masked: Tensor, tokens: int) -> Tensor:
    """Gumbel noise on the scores; the highest's index."""
    noise = tape.new(masked.count, masked.width)
    logarithm = tape.new(masked.count, masked.width)
    tape.drop(noise)
    noisy = tape.new(masked.count, masked.width)
    tape.drop(logarithm)
    values, index = tape.new(tokens, masked.width), tape.new(tokens, 8)
    tape.drop(noisy, values)
    return index
