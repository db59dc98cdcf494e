"""Formulas of normalizations, by the code that computes them (`Norm.kind`).

A function that takes `x` borrows it: the caller keeps its reference; what is returned belongs to
the caller.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import cast, operands, parameter
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Norm


def norm(tape: Tape, x: Tensor, spec: Norm | None, ctx: Context) -> Tensor:
    """Normalize the last dimension of `x` ([rows, spec.size] elements); without a norm, `x`."""
    if spec is None:
        return tape.alias(x)
    if spec.kind.startswith("layer"):
        return _layer_norm(tape, x, spec, ctx)
    if spec.kind == "centered":
        return _centered(tape, x, spec, ctx)
    rows = x.count // spec.size
    if ctx.stack.fused_kernels and spec.kind == "rms":
        weight = parameter(spec.size, x.width, ctx.full)
        return tape.op(x.count, x.width, (weight, x), (x,), aux=(4 * rows,), grads=(NEW, PASS))
    if spec.kind in ("rms_pow", "rms_pow_unweighted"):
        return _by_power(tape, x, spec, ctx)
    x32 = cast(tape, x, 4)
    variance = _mean_square(tape, x32, rows)
    rstd = tape.op(rows, 4, (variance,), saves_out=True)
    if spec.kind in ("rms_fp32_scale", "rms_unnamed", "l2"):
        tape.drop(variance)
        if spec.kind != "rms_fp32_scale":
            return _unnamed(tape, x, x32, rstd, spec, ctx)
        return _scaled_in_fp32(tape, x, x32, rstd, spec, ctx)
    # The product's gradient for rstd is a full product before it is summed.
    normed = _times_rows(tape, x32, rstd)
    tape.drop(x32)
    if spec.kind in ("rms_scaled_before_cast", "rms_fp32_weight"):
        out = _scaled_before_cast(tape, x, normed, spec, ctx)
    elif spec.kind == "rms_unweighted":
        tape.drop(variance, rstd)
        out = cast(tape, normed, x.width)
        tape.drop(normed)
        return out
    else:
        back = cast(tape, normed, x.width)
        # A norm in fp32 makes what it is given fp32.
        width = _weight_width(x, ctx) if ctx.loaded_width is None else ctx.width
        weight = parameter(spec.size * spec.groups, width, ctx.full, spec.sharing)
        out = _times_weight(tape, back, weight)
        tape.drop(back)
    tape.drop(normed, variance, rstd)
    return out


def _weight_width(x: Tensor, ctx: Context) -> int:
    """Bytes of an element of a norm's weight, whatever autocast made of its input."""
    return x.width if ctx.amp is None else ctx.width


def norm_in_place_of(tape: Tape, x: Tensor, spec: Norm | None, ctx: Context) -> Tensor:
    """Return `x` normalized; `x` itself is consumed, as by `x = self.norm(x)`."""
    out = norm(tape, x, spec, ctx)
    tape.drop(x)
    return out


def norm_by_head(tape: Tape, x: Tensor, spec: Norm, heads: int, ctx: Context) -> Tensor:
    """A norm module a head: views of the heads, one small norm each, joined again.

    Source: transformers/models/stablelm/modeling_stablelm.py, `StableLmLayerNormPerHead.forward`.
    """
    parts = tape.split(x, (x.count // heads,) * heads, x.size)
    normed = tuple(norm(tape, part, spec, ctx) for part in parts)
    out = tape.op(x.count, normed[0].width, normed, grads=(PASS,) * heads)
    tape.drop(*parts, *normed)
    return out


def _mean_square(tape: Tape, x32: Tensor, rows: int) -> Tensor:
    """`x.pow(2).mean(-1)`: pow saves x; its backward makes x**1 and its double first."""
    squares = tape.op(x32.count, 4, (x32,), (x32,), temporaries=(4 * x32.count, 4 * x32.count))
    variance = tape.op(rows, 4, (squares,))
    tape.drop(squares)
    return variance


def _scaled_in_fp32(
    tape: Tape, x: Tensor, x32: Tensor, rstd: Tensor, spec: Norm, ctx: Context
) -> Tensor:
    """Gemma: (x * rstd) * (1 + weight) in fp32, then the cast.

    Source: transformers/models/gemma/modeling_gemma.py, `GemmaRMSNorm.forward`.
    """
    normed = _times_rows(tape, x32, rstd)
    tape.drop(rstd, x32)
    weight = parameter(spec.size, _weight_width(x, ctx), ctx.full)
    weight32 = tape.op(spec.size, 4, (weight,))
    scaled = _times_weight(tape, normed, weight32)
    tape.drop(weight32, normed)
    out = cast(tape, scaled, x.width)
    tape.drop(scaled)
    return out


def _by_power(tape: Tape, x: Tensor, spec: Norm, ctx: Context) -> Tensor:
    """Gemma 4: x * (mean square + eps) ** -0.5 * weight in fp32, then the cast.

    Source: transformers/models/gemma4/modeling_gemma4.py, `Gemma4RMSNorm.forward`.
    """
    rows = x.count // spec.size
    x32 = cast(tape, x, 4)
    mean = _mean_square(tape, x32, rows)
    shifted = tape.op(rows, 4, (mean,), grads=(PASS,))
    tape.drop(mean)
    rstd = tape.op(rows, 4, (shifted,), (shifted,), temporaries=(4 * rows,))
    normed = _times_rows(tape, x32, rstd)
    tape.drop(rstd, shifted, x32)
    if spec.shapes:
        weight = cast(tape, parameter(spec.size, x.width, ctx.full), 4)
        scaled = _times_weight(tape, normed, weight)
        tape.drop(weight, normed)
        normed = scaled
    out = cast(tape, normed, x.width)
    tape.drop(normed)
    return out


def _unnamed(tape: Tape, x: Tensor, x32: Tensor, rstd: Tensor, spec: Norm, ctx: Context) -> Tensor:
    """Llama 4: the fp32 product is gone before the weight scales its cast; `l2` has no weight.

    Source: transformers/models/llama4/modeling_llama4.py, `Llama4TextRMSNorm`, `Llama4TextL2Norm`.
    """
    normed = _times_rows(tape, x32, rstd)
    tape.drop(rstd, x32)
    back = cast(tape, normed, x.width)
    tape.drop(normed)
    if spec.kind == "l2":
        return back
    out = _times_weight(tape, back, parameter(spec.size, _weight_width(x, ctx), ctx.full))
    tape.drop(back)
    return out


def _scaled_before_cast(tape: Tape, x: Tensor, normed: Tensor, spec: Norm, ctx: Context) -> Tensor:
    """OLMo 2: weight * (x * rstd) in fp32, then the cast; the product's factor is still named.

    Source: transformers/models/olmo2/modeling_olmo2.py, `Olmo2RMSNorm.forward`.
    """
    weight = parameter(spec.size * spec.groups, _weight_width(x, ctx), ctx.full)
    if spec.kind == "rms_fp32_weight":
        weight = cast(tape, weight, 4)
    scaled = _times_weight(tape, normed, weight)
    out = cast(tape, scaled, x.width)
    tape.drop(scaled, weight)
    return out


def _centered(tape: Tape, x: Tensor, spec: Norm, ctx: Context) -> Tensor:
    """Cohere: (x - mean) * rstd * weight in fp32; the difference is computed twice.

    Source: transformers/models/cohere/modeling_cohere.py, `CohereLayerNorm.forward`.
    """
    rows = x.count // spec.size
    x32 = cast(tape, x, 4)
    mean = tape.op(rows, 4, (x32,))
    difference = _minus_rows(tape, x32, mean)
    variance = _mean_square(tape, difference, rows)
    tape.drop(difference)
    difference = _minus_rows(tape, x32, mean)
    rstd = tape.op(rows, 4, (variance,), saves_out=True)
    normed = _times_rows(tape, difference, rstd)
    tape.drop(difference, rstd, x32)
    weight = cast(tape, parameter(spec.size * spec.groups, x.width, ctx.full), 4)
    scaled = _times_weight(tape, normed, weight)
    tape.drop(normed, weight)
    out = cast(tape, scaled, x.width)
    tape.drop(scaled, mean, variance)
    return out


def _minus_rows(tape: Tape, x: Tensor, rows: Tensor) -> Tensor:
    """`x - rows` with one number a row; backward negates in full before it sums for the rows."""
    return tape.op(x.count, x.width, (x, rows), grads=(PASS, NEW), temporaries=(x.size,))


def _times_rows(tape: Tape, x: Tensor, rows: Tensor) -> Tensor:
    """`x * rows` with one number a row; backward sums a full product for the rows."""
    return tape.op(
        x.count,
        x.width,
        (rows, x),
        (x, rows),
        grads=(NEW, NEW),
        temporaries=(x.size,) if rows.grad else (),
    )


def _times_weight(tape: Tape, x: Tensor, weight: Tensor) -> Tensor:
    """`weight * x` with one number a column; saves x where the weight trains."""
    width = promoted(x.width, weight.width)
    temporaries = (x.count * width,) if weight.grad or width != x.width else ()
    return tape.op(x.count, width, (x, weight), operands(x, weight), temporaries=temporaries)


def _layer_norm(tape: Tape, x: Tensor, spec: Norm, ctx: Context) -> Tensor:
    """torch's LayerNorm: saves its input, mean and rstd (fp32, one a row).

    Source: aten/src/ATen/native/cuda/layer_norm_kernel.cu; `Nemotron1PLayerNorm` adds 1 to the
    weight, `OlmoLayerNorm` has none and computes in fp32.
    """
    rows = x.count // spec.size
    # Autocast has it computed, and handed on, in fp32; Nemotron's casts what it is given itself.
    width = 4 if spec.kind == "layer_fp32" or ctx.amp is not None else x.width
    if ctx.amp is not None and spec.kind == "layer_plus_one":
        width = ctx.amp_width
    given = cast(tape, x, width)
    affine = [parameter(size, _weight_width(x, ctx), ctx.full) for size in spec.shapes]
    plus_one = None
    if spec.kind == "layer_plus_one":
        plus_one = tape.op(spec.size, affine[0].width, (affine[0],))
        affine[0] = plus_one
    affine = [cast(tape, tensor, width) for tensor in affine]
    inputs = (given, *affine)
    out = tape.op(x.count, given.width, inputs, inputs[:2], aux=(4 * rows, 4 * rows))
    tape.drop(*inputs, plus_one)
    if spec.kind != "layer_fp32":
        return out
    back = cast(tape, out, x.width)
    tape.drop(out)
    return back
