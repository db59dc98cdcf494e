"""Formulas of a gated short convolution in attention's place, without causal-conv1d's kernels.

Source: transformers/models/lfm2/modeling_lfm2.py, `Lfm2ShortConv.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.convolution import convolved
from estimator.architecture.parts import linear, multiply
from estimator.architecture.tape import Tape, Tensor
from estimator.spec import Attention, ShortConv


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, None]:
    """Return the block's output; there are no probabilities."""
    short = spec.mixer
    assert isinstance(short, ShortConv)
    both = linear(tape, x, short.projection, ctx)
    before, after, value = tape.split(both, (both.count // 3,) * 3, both.size)
    mixed = multiply(tape, before, value)
    before_it, mixed = mixed, convolved(tape, mixed, short.channels, short.kernel, short.bias, ctx)
    tape.drop(before_it)
    gated = multiply(tape, after, mixed)
    result = linear(tape, gated, spec.output, ctx)
    tape.drop(gated, mixed, before, after, value, both)
    return result, None
