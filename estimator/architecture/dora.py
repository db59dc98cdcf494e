"""Formulas of DoRA: an adapter whose sum with the weight is scaled, row by row, to a learned norm.

Every pass makes the weight that the adapter adds up to, from an identity matrix, and takes the
norms of its rows; only the norms live on.

Source: peft/tuners/lora/dora.py (`DoraLinearLayer.forward`), variants.py (`DoraLinearVariant`).
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import (
    adapter,
    adapter_weight,
    add,
    cast,
    dropout,
    multiply,
    parameter,
    product_input,
    scale,
)
from estimator.architecture.quantized import BLOCK_4BIT
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Linear
from estimator.units import ceil_div


def dora_sum(
    tape: Tape, x: Tensor, result: Tensor, spec: Linear, ctx: Context, viewed: bool
) -> Tensor:
    """Return the base's result plus what DoRA adds to it.

    Args:
        x: the adapter's input [rows, in], in its dtype; borrowed.
        result: the base's [rows, out]; consumed.
        viewed: as for `parts.linear`.
    """
    assert ctx.lora is not None
    rows = x.count // spec.inputs
    read = dropout(tape, x, ctx.lora.lora_dropout, ctx)
    r = ctx.lora.r
    # Each is cast once, at its first product.
    a = adapter_weight(tape, spec.inputs, r, ctx)
    b = adapter_weight(tape, r, spec.outputs, ctx)
    first = len(tape.nodes)
    eye = tape.new(spec.inputs**2, ctx.adapter_width, component="temporaries")
    down = adapter(tape, eye, spec.inputs, spec.inputs, r, ctx, weight=a)
    up = adapter(tape, down, spec.inputs, r, spec.outputs, ctx, weight=b)
    tape.drop(down, eye)
    added = cast(tape, up, x.width)
    tape.drop(up)
    last = len(tape.nodes)
    weight = _whole_weight(tape, spec, ctx, x.width)
    norms = _row_norms(tape, added, weight, spec)
    magnitude = parameter(spec.outputs, ctx.adapter_width, ctx.training)
    factor = tape.op(spec.outputs, ctx.adapter_width, (magnitude,), (norms,))
    low = adapter(tape, read, rows, spec.inputs, r, ctx, viewed, a)
    learned = adapter(tape, low, rows, r, spec.outputs, ctx, viewed, b)
    tape.drop(low, a, b)
    base = _base_result(tape, read, result, weight, spec, ctx, viewed)
    extra = _scaled_parts(tape, factor, base, learned)
    tape.abandon(first, last)
    tape.drop(added, weight, norms, factor, learned, base, read)
    total = add(tape, result, extra)
    tape.drop(result, extra)
    return total


def _whole_weight(tape: Tape, spec: Linear, ctx: Context, width: int) -> Tensor:
    """The base's weight [out, in] in `width` bytes an element, dequantized where it must be.

    Source: peft/utils/integrations.py, `dequantize_module_weight`; bitsandbytes/functional.py.
    """
    count = spec.weight_count
    if ctx.quantization is None:
        return cast(tape, Tensor(count, ctx.width, False, None), width)
    if ctx.quantization == "int8":
        product = tape.new(count, 4)
        weight = scale(tape, product)
        tape.drop(product)
    else:
        scales = tape.new(ceil_div(count, BLOCK_4BIT), 4) if ctx.double_quantization else None
        weight = tape.new(count, ctx.compute_width)
        tape.drop(scales)
    out = cast(tape, weight, width)
    tape.drop(weight)
    return out


def _row_norms(tape: Tape, added: Tensor, weight: Tensor, spec: Linear) -> Tensor:
    """|W + scaling * BA| of each row [out]: nothing of it requires grad."""
    constant = Tensor(added.count, added.width, False, added.storage)
    scaled = scale(tape, constant)
    both = tape.op(scaled.count, promoted(scaled.width, weight.width))
    tape.drop(scaled)
    norms = tape.op(spec.outputs, both.width)
    tape.drop(both)
    return norms


def _base_result(
    tape: Tape, x: Tensor, result: Tensor, weight: Tensor, spec: Linear, ctx: Context, viewed: bool
) -> Tensor:
    """The base's result without its bias; computed anew from the input that dropout changed."""
    assert ctx.lora is not None
    if ctx.lora.lora_dropout and ctx.training:
        count = x.count // spec.inputs * spec.outputs
        read, matrix = product_input(tape, x, ctx), product_input(tape, weight, ctx)
        out = tape.op(count, read.width, (read,), (matrix,), viewed=viewed)
        tape.drop(read, matrix)
        return out
    if spec.bias:
        # A 4-bit linear casts its bias to what it computes in, an 8-bit one to its input's type.
        given = {None: ctx.width, "int8": result.width}.get(ctx.quantization, ctx.compute_width)
        width = promoted(result.width, given)
        kind = PASS if width == result.width else NEW
        return tape.op(result.count, width, (result,), grads=(kind,))
    return tape.alias(result)


def _scaled_parts(tape: Tape, factor: Tensor, base: Tensor, learned: Tensor) -> Tensor:
    """(factor - 1) * base + factor * learned * scaling, with factors [1, out] for all rows."""
    less_one = tape.op(factor.count, factor.width, (factor,), grads=(PASS,))
    first = _rows_multiplied(tape, less_one, base)
    tape.drop(less_one)
    second = _rows_multiplied(tape, factor, learned)
    scaled = scale(tape, second)
    tape.drop(second)
    total = add(tape, first, scaled)
    tape.drop(first, scaled)
    return total


def _rows_multiplied(tape: Tape, factor: Tensor, x: Tensor) -> Tensor:
    """`factor * x`: the gradients of both are as large as the product before they are reduced."""
    width = promoted(factor.width, x.width)
    wide = tape.view(x, x.count, x.size if x.width != width else PASS)
    repeated = tape.view(factor, x.count, factor.size)
    wide.width = repeated.width = width
    out = multiply(tape, repeated, wide)
    tape.drop(wide, repeated)
    return out
