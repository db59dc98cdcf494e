"""Formulas of a causal convolution of each channel by itself, without causal-conv1d's kernels.

Source: `causal_conv1d_fn`, `causal_conv1d_update` of transformers/models/lfm2/modeling_lfm2.py and
its copies; cache_utils.py, `LinearAttentionLayer`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import cast, half_weight, parameter, product_input
from estimator.architecture.tape import Tape, Tensor


def convolution(
    tape: Tape, x: Tensor, channels: int, kernel: int, bias: bool, ctx: Context
) -> Tensor:
    """Convolve `x` ([B, channels, Q], borrowed): a view of what padding made longer."""
    cut = _cut_product(tape, x, channels, kernel, bias, ctx)
    result = cast(tape, cut, x.width)
    tape.drop(cut)
    return result


def _cut_product(
    tape: Tape, x: Tensor, channels: int, kernel: int, bias: bool, ctx: Context
) -> Tensor:
    """The convolution in the weight's dtype, or in half precision under autocast."""
    wide = cast(tape, x, ctx.width)
    read = product_input(tape, wide, ctx)
    tape.drop(wide)
    weight = half_weight(tape, parameter(channels * kernel, ctx.width, ctx.full), ctx)
    inputs: tuple[Tensor, ...] = (weight, read)
    if bias:
        inputs = (half_weight(tape, parameter(channels, ctx.width, ctx.full), ctx), *inputs)
    count = ctx.batch * channels * (ctx.queries + kernel - 1)
    # A convolution saves its input even where its weight does not train.
    out = tape.op(count, read.width, inputs, (read, weight))
    cut = tape.view(out, ctx.tokens * channels, out.size)
    tape.drop(out, *inputs)
    return cut


def convolution_step(tape: Tape, x: Tensor, channels: int, kernel: int, ctx: Context) -> Tensor:
    """One token's: `x` is joined to the cached columns."""
    joined = tape.new(ctx.batch * channels * (kernel + 1), x.width)
    out = tape.new(ctx.batch * channels * 2, x.width)
    tape.drop(joined)
    return out


def keep_columns(tape: Tape, channels: int, kernel: int, ctx: Context, width: int) -> None:
    """Prefill keeps the last columns in the cache."""
    tape.new(ctx.batch * channels * kernel, width, component="kv_cache")


def convolved(
    tape: Tape, x: Tensor, channels: int, kernel: int, biased: bool, ctx: Context
) -> Tensor:
    """Convolve `x`, which is borrowed, with what the cache keeps: its last columns."""
    if ctx.decoding:
        return convolution_step(tape, x, channels, kernel, ctx)
    if ctx.cached:
        keep_columns(tape, channels, kernel, ctx, x.width)
    return convolution(tape, x, channels, kernel, biased, ctx)


def activated_convolution(
    tape: Tape, x: Tensor, channels: int, kernel: int, biased: bool, ctx: Context
) -> Tensor:
    """Play a state-space layer's convolution and its activation, then the cast back to x's dtype;
    `x` is borrowed."""
    if ctx.decoding:
        out = convolution_step(tape, x, channels, kernel, ctx)
        active = tape.new(x.count, x.width)
        tape.drop(out)
        return active
    if ctx.cached:
        keep_columns(tape, channels, kernel, ctx, x.width)
    out = _cut_product(tape, x, channels, kernel, biased, ctx)
    active = tape.op(out.count, out.width, (out,), (out,))
    tape.drop(out)
    result = cast(tape, active, x.width)
    tape.drop(active)
    return result
