"""Formulas of Mamba's selective state space in heads, as Zamba's own code runs it.

Each head selects with weights of its own, [heads, rank + 2 N, I / heads], and is scanned by itself.
Symbols as in selective_scan.py.

Source: transformers/models/zamba/modeling_zamba.py, `ZambaMambaMixer.forward`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.convolution import activated_convolution
from estimator.architecture.parts import (
    cast,
    half_weight,
    linear,
    operands,
    parameter,
    product_input,
)
from estimator.architecture.selective_scan import rates, scanned, step
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Attention, HeadScan


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, None]:
    """Return the block's output; there are no probabilities."""
    scan = spec.mixer
    assert isinstance(scan, HeadScan)
    both = linear(tape, x, scan.projection, ctx)
    half = both.count // 2
    value, gate = tape.split(both, (half, half), both.size)
    copied = tape.op(half, value.width, (value,), grads=(PASS,))
    tape.drop(value)
    mixed = activated_convolution(tape, copied, scan.channels, scan.kernel, scan.conv_bias, ctx)
    tape.drop(copied)
    selected = _product_by_head(tape, mixed, scan.selection_count, scan, ctx)
    parts = tuple(ctx.tokens * scan.heads * n for n in (scan.rank, scan.state, scan.state))
    chosen, inner, outer = tape.split(selected, parts, selected.size)
    time = _product_by_head(tape, chosen, scan.steps_count, scan, ctx, ordered=True)
    tape.drop(chosen)
    bias = cast(tape, parameter(scan.channels, ctx.width, ctx.full), 4)
    decays = rates(tape, parameter(scan.rates, 4, ctx.full))
    states = (mixed, time, decays, inner, outer, gate, bias)
    outs = []
    last: list[Tensor] = []
    for _ in range(scan.heads):
        own = tuple(tape.view(part, part.count // scan.heads, part.size) for part in states)
        if ctx.decoding:
            outs.append(step(tape, own, scan.head, ctx))
        else:
            out, state = scanned(tape, own, scan.head, ctx)
            outs.append(out)
            last.append(state)
        tape.drop(*own)
    joined = tape.op(
        sum(out.count for out in outs), outs[0].width, tuple(outs), grads=(PASS,) * len(outs)
    )
    if ctx.cached and not ctx.decoding:
        tape.drop(tape.new(ctx.batch * scan.channels * scan.state, 4))
        tape.new(ctx.batch * scan.channels * scan.state, 4, component="kv_cache")
    narrow = cast(tape, joined, x.width)
    result = linear(tape, narrow, spec.output, ctx, strided=True)
    tape.drop(narrow, both, gate, mixed, selected, inner, outer, time, bias, decays, joined)
    tape.drop(*outs, *last)
    return result, None


def _product_by_head(
    tape: Tape, x: Tensor, weights: int, scan: HeadScan, ctx: Context, ordered: bool = False
) -> Tensor:
    """`weight @ x` with a weight a head, which is copied for each sequence.

    Args:
        weights: elements of all heads' weights.
        ordered: whether x lies head by head already; else it is copied so.
    """
    several = ctx.batch > 1
    weight = half_weight(tape, parameter(weights, ctx.width, ctx.full), ctx)
    if several:
        given, weight = (
            weight,
            tape.op(ctx.batch * weights, weight.width, (weight,), grads=(weight.size,)),
        )
        tape.drop(given)
    read = product_input(tape, x, ctx)
    if several and scan.heads > 1 and not ordered:
        before, read = read, tape.op(read.count, read.width, (read,), grads=(PASS,))
        tape.drop(before)
    inputs = x.count // (ctx.tokens * scan.heads)
    count = ctx.tokens * (weights // inputs)
    out = tape.op(count, read.width, (weight, read), operands(read, weight))
    tape.drop(weight, read)
    return out
