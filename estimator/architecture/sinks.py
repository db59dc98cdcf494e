"""Formulas of attention sinks: a learned score a head beside the keys', in eager attention.

Source: `eager_attention_forward` in transformers/models/{gpt_oss,mimo_v2_flash}/modeling_*.py.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import parameter
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention


def softmax_with_sinks(
    tape: Tape, scores: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Join the sinks to the scores, subtract the highest, and cut the sinks off the softmax.

    Returns:
        the probabilities of the keys, a view, and what the attention's code still names.
    """
    rows = ctx.batch * spec.heads * ctx.queries
    width = scores.width
    sink = parameter(spec.heads, ctx.width, ctx.full)
    spread = tape.view(sink, rows, sink.size)
    joined = tape.op(rows * (ctx.keys + 1), width, (scores, spread), grads=(PASS, PASS))
    highest = tape.op(rows, width, (joined,), aux=(8 * rows,), grads=(joined.size,))
    shifted = tape.op(joined.count, width, (joined, highest), grads=(PASS, NEW))
    tape.drop(joined, highest)
    probabilities = tape.op(shifted.count, width, (shifted,), saves_out=True)
    cut = tape.view(probabilities, scores.count, probabilities.size)
    return cut, (shifted, probabilities)


def shifted_softmax(tape: Tape, scores: Tensor, spec: Attention, ctx: Context) -> Tensor:
    """MiMo's softmax of the scores (consumed), less the highest, in their own dtype.

    Sinks, where the layer has them, are joined to the scores and cut off again.
    """
    rows = ctx.batch * spec.heads * ctx.queries
    given = scores
    if spec.sinks:
        sink = parameter(spec.heads, ctx.width, ctx.full)
        spread = tape.view(sink, rows, sink.size)
        width = promoted(given.width, spread.width)
        grads = tuple(PASS if one.width == width else NEW for one in (given, spread))
        joined = tape.op(rows * (ctx.keys + 1), width, (given, spread), grads=grads)
        tape.drop(given)
        given = joined
    highest = tape.op(rows, given.width, (given,), aux=(8 * rows,), grads=(given.size,))
    shifted = tape.op(given.count, given.width, (given, highest), grads=(PASS, NEW))
    tape.drop(given, highest)
    probabilities = tape.op(shifted.count, shifted.width, (shifted,), saves_out=True)
    tape.drop(shifted)
    if not spec.sinks:
        return probabilities
    cut = tape.view(probabilities, scores.count, probabilities.size)
    tape.drop(probabilities)
    return cut
