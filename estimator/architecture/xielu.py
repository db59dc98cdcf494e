"""Formulas of xIELU, an activation with two trained numbers, as its Python version computes it.

Source: transformers/activations.py, `XIELUActivation._xielu_python` (Apertus).
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import add, cast, multiply, operands, parameter, scale
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.architecture.widths import promoted


def xielu(tape: Tape, x: Tensor, ctx: Context) -> Tensor:
    """where(x > 0, a x x + b x, (expm1(min(x, eps)) - x) c + b x), operation by operation.

    Under autocast softplus and expm1 are in fp32, and what is computed with them.
    """
    wide = x.width if ctx.amp is None else 4
    alpha_p = tape.op(1, wide, (parameter(1, ctx.width, ctx.full),))
    alpha_n = tape.op(1, wide, (parameter(1, ctx.width, ctx.full),))
    positive = tape.new(x.count, 1)
    scaled = _times_number(tape, x, alpha_p)
    square = multiply(tape, scaled, x)
    tape.drop(scaled)
    linear = scale(tape, x)
    upper = add(tape, square, linear)
    tape.drop(square, linear)
    clipped = tape.op(x.count, x.width, (x,), (x,), temporaries=(x.count,))
    read = cast(tape, clipped, wide)
    grown = tape.op(x.count, wide, (read,), saves_out=True, temporaries=(read.size,))
    tape.drop(clipped, read)
    below = tape.op(x.count, wide, (grown, x), grads=(PASS, x.size), temporaries=_narrowed(x, wide))
    tape.drop(grown)
    scaled = _times_number(tape, below, alpha_n)
    tape.drop(below)
    linear = scale(tape, x)
    lower = add(tape, scaled, linear)
    tape.drop(scaled, linear)
    out = tape.op(x.count, wide, (upper, lower), (positive,))
    tape.drop(positive, upper, lower, alpha_p, alpha_n)
    return out


def _times_number(tape: Tape, x: Tensor, number: Tensor) -> Tensor:
    """`number * x` for a number that may train: its gradient is a full product, summed."""
    width = promoted(x.width, number.width)
    temporaries = (x.count * width,) if number.grad else _narrowed(x, width)
    return tape.op(x.count, width, (number, x), operands(x, number), temporaries=temporaries)


def _narrowed(x: Tensor, width: int) -> tuple[int, ...]:
    """The gradient in `width` bytes an element, before it is cast to that of `x`."""
    return (x.count * width,) if width != x.width else ()
