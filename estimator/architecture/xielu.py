"""Formulas of xIELU, an activation with two trained numbers, as its Python version computes it.

Source: transformers/activations.py, `XIELUActivation._xielu_python` (Apertus).
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import add, multiply, operands, parameter, scale
from estimator.architecture.tape import PASS, Tape, Tensor


def xielu(tape: Tape, x: Tensor, ctx: Context) -> Tensor:
    """where(x > 0, a x x + b x, (expm1(min(x, eps)) - x) c + b x), operation by operation."""
    alpha_p = tape.op(1, x.width, (parameter(1, x.width, ctx.full),))
    alpha_n = tape.op(1, x.width, (parameter(1, x.width, ctx.full),))
    positive = tape.new(x.count, 1)
    scaled = _times_number(tape, x, alpha_p)
    square = multiply(tape, scaled, x)
    tape.drop(scaled)
    linear = scale(tape, x)
    upper = add(tape, square, linear)
    tape.drop(square, linear)
    clipped = tape.op(x.count, x.width, (x,), (x,), temporaries=(x.count,))
    grown = tape.op(x.count, x.width, (clipped,), saves_out=True, temporaries=(x.size,))
    tape.drop(clipped)
    below = tape.op(x.count, x.width, (grown, x), grads=(PASS, x.size))
    tape.drop(grown)
    scaled = _times_number(tape, below, alpha_n)
    tape.drop(below)
    linear = scale(tape, x)
    lower = add(tape, scaled, linear)
    tape.drop(scaled, linear)
    out = tape.op(x.count, x.width, (upper, lower), (positive,))
    tape.drop(positive, upper, lower, alpha_p, alpha_n)
    return out


def _times_number(tape: Tape, x: Tensor, number: Tensor) -> Tensor:
    """`number * x` for a number that may train: its gradient is a full product, summed."""
    temporaries = (x.size,) if number.grad else ()
    return tape.op(x.count, x.width, (number, x), operands(x, number), temporaries=temporaries)
