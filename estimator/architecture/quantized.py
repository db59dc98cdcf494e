"""Formulas of bitsandbytes' quantized linears, alone and under an adapter, and of what they hold.

Source: bitsandbytes/autograd/_functions.py (`MatMul4Bit`, `MatMul8bitLt`), nn/modules.py
(`Linear4bit.forward`), backends/cuda/ops.py; peft/tuners/lora/bnb.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from estimator.architecture.context import Context
from estimator.architecture.parts import adapter, add, cast, dropout, scale
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Linear
from estimator.units import ceil_div

BLOCK_4BIT = 64
"""Weights that share a scale."""

BLOCK_NESTED = 256
"""Scales that share a scale, with double quantization."""

KERNEL_ROWS = 4
"""Up to so many rows a kernel reads the packed weight; above, it is dequantized whole."""


def quantized_linear(
    tape: Tape,
    x: Tensor,
    spec: Linear,
    ctx: Context,
    viewed: bool = True,
    strided: bool = False,
) -> Tensor:
    """A quantized linear, with its adapter where the case puts one; borrows `x`.

    `viewed` is whether an adapter's gradients are views, `strided` whether the input lies otherwise
    in memory, as for `linear`.
    """
    product = _linear_8bit if ctx.quantization == "int8" else _linear_4bit
    result = product(tape, x, spec, ctx, strided and ctx.batch > 1)
    if not ctx.targets(spec):
        return result
    if ctx.quantization != "int8":
        # peft clones a 4-bit result before it adds to it.
        clone = tape.op(result.count, result.width, (result,), grads=(PASS,))
        tape.drop(result)
        result = clone
    return _adapted(tape, x, result, spec, ctx, viewed, strided)


def _linear_4bit(tape: Tape, x: Tensor, spec: Linear, ctx: Context, strided: bool) -> Tensor:
    """Dequantizes the whole weight, in forward and again in backward; saves no input."""
    rows = x.count // spec.inputs
    computed = _laid_out(tape, cast(tape, x, ctx.compute_width), strided and x.grad)
    weight = spec.weight_count * ctx.compute_width
    scales = 4 * ceil_div(spec.weight_count, BLOCK_4BIT) if ctx.double_quantization else 0
    whole = (weight, scales) if scales else (weight,)
    if ctx.half == "float16" and ctx.compute_width == 4:
        # It is dequantized to what it was loaded in, and then cast.
        whole = (2 * spec.weight_count, *whole)
    out = tape.op(
        rows * spec.outputs,
        ctx.compute_width,
        (computed,),
        scratch=whole if rows > KERNEL_ROWS else (),
        temporaries=whole,
    )
    result = cast(tape, out, x.width)
    tape.drop(out, computed)
    return result


def _linear_8bit(tape: Tape, x: Tensor, spec: Linear, ctx: Context, strided: bool) -> Tensor:
    """Quantizes its input row by row, multiplies in int8, and keeps the input for backward.

    It keeps it on its context and not through `save_for_backward`, so checkpointing keeps it too.
    The search for outliers makes the input's absolute values and a mask of one byte an element,
    beside the values and scales that are there already.
    """
    rows = x.count // spec.inputs
    x = _laid_out(tape, tape.alias(x), strided)
    half = None if ctx.is_fp16(x.width) else tape.new(x.count, 2)
    row_scales = tape.new(rows, 4)
    values = tape.new(x.count, 1)
    absolute = tape.new(x.count, 2)
    mask = tape.new(x.count, 1)
    tape.drop(absolute, mask, half)
    outputs = rows * spec.outputs
    extra = (4 * outputs, 2 * outputs) if not ctx.is_fp16(x.width) else (4 * outputs,)
    out = tape.op(
        outputs,
        x.width,
        (x,),
        pins=(x,),
        scratch=extra,
        temporaries=(spec.weight_count * x.width,),
        viewed=True,
    )
    tape.drop(values, row_scales, x)
    return out


def _laid_out(tape: Tape, x: Tensor, copies: bool) -> Tensor:
    """A copy of rows that lie otherwise in memory, where one is made; `x` is consumed."""
    if not copies:
        return x
    out = tape.op(x.count, x.width, (x,), grads=(PASS,))
    tape.drop(x)
    return out


def _adapted(
    tape: Tape,
    x: Tensor,
    result: Tensor,
    spec: Linear,
    ctx: Context,
    viewed: bool,
    strided: bool,
) -> Tensor:
    """LoRA on a quantized base: the adapter's output is cast before it is added.

    Source: peft/tuners/lora/bnb.py, `Linear4bit.forward`.
    """
    lora = ctx.lora
    assert lora is not None
    rows = x.count // spec.inputs
    # Under autocast peft leaves the casts to it.
    wide = cast(tape, x, x.width if ctx.amp else ctx.adapter_width)
    if lora.use_dora:
        from estimator.architecture.dora import dora_sum

        given = result.width
        total = dora_sum(tape, wide, result, spec, ctx, viewed=True)
        out = cast(tape, total, total.width if ctx.amp else given)
        tape.drop(total, wide)
        return out
    dropped = dropout(tape, wide, lora.lora_dropout, ctx)
    down = adapter(tape, dropped, rows, spec.inputs, lora.r, ctx, viewed, strided=strided)
    tape.drop(dropped)
    up = adapter(tape, down, rows, lora.r, spec.outputs, ctx, viewed)
    tape.drop(down)
    scaled = scale(tape, up)
    tape.drop(up)
    output = cast(tape, scaled, scaled.width if ctx.amp else result.width)
    tape.drop(scaled)
    out = add(tape, result, output)
    tape.drop(output, result, wide)
    return out


def quantized_blocks(spec: Linear, quantization: str, double: bool) -> Iterator[int]:
    """Yield the bytes of each tensor that a quantized weight is made of.

    4-bit: two weights a byte, an fp32 scale a block of 64 and a table of 16 values; with double
    quantization a byte a scale, an fp32 scale a block of 256 of those, an fp32 offset, and a copy
    of the table of 256 values (bitsandbytes/functional.py, `quantize_blockwise`).
    int8: a byte a weight and an fp32 scale an output row.
    """
    count = spec.weight_count
    if quantization == "int8":
        yield count
        yield 4 * spec.outputs
        return
    yield ceil_div(count, 2)
    scales = ceil_div(count, BLOCK_4BIT)
    if double:
        yield scales
        yield 4 * ceil_div(scales, BLOCK_NESTED)
        yield 4
        yield 4 * 256
    else:
        yield 4 * scales
    yield 64
