"""Formulas of the small parts: casts, products, linears with adapters, dropout, activations.

Each plays on a tape what its source runs. A function that takes `x` borrows it: the caller keeps
its reference; what is returned belongs to the caller.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Linear


def parameter(count: int, width: int, trains: bool, sharing: str = "") -> Tensor:
    """Return a parameter: no bytes of its own on the tape, a gradient if it trains.

    `sharing` is as for `Linear`.
    """
    return Tensor(count, width, trains, None, parameter=True, sharing=sharing)


def operands(a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """Return what a product saves: each operand where the other requires grad."""
    return tuple(t for t, other in ((a, b), (b, a)) if other.grad)


def cast(tape: Tape, x: Tensor, width: int) -> Tensor:
    """`x.to(dtype)`: the tensor itself where the width is the same already."""
    if x.width == width:
        return tape.alias(x)
    return tape.op(x.count, width, (x,))


def add(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a + b`: saves nothing, passes the gradient to both, cast where one was promoted."""
    width = promoted(a.width, b.width)
    grads = tuple(PASS if t.width == width else NEW for t in (a, b))
    return tape.op(a.count, width, (a, b), grads=grads)


def half_weight(tape: Tape, weight: Tensor, ctx: Context, viewed: bool = False) -> Tensor:
    """The weight as a product under autocast reads it: a copy, if it is of another type.

    Copies of fp32 weights that require grad are kept until the context ends; others are made again
    each time, and so are those of views (`viewed`).
    Source: aten/src/ATen/autocast_mode.cpp, `cached_cast`.
    """
    if ctx.amp is None or weight.width == ctx.amp_width:
        return weight
    copy = tape.op(weight.count, ctx.amp_width, (weight,))
    remembered = weight.grad or (ctx.remembers and not viewed)
    if remembered and weight.width == 4 and tape.stop_after is None:
        tape.cache(copy)
    return copy


def product_input(tape: Tape, x: Tensor, ctx: Context) -> Tensor:
    """What a matrix product reads: under autocast a copy in half precision."""
    return tape.alias(x) if ctx.amp is None else cast(tape, x, ctx.amp_width)


def strided_input(tape: Tape, x: Tensor, ctx: Context) -> Tensor:
    """What a product reads of an input that lies otherwise in memory, [B, features, Q]: a copy,
    where it has rows of several sequences and backward reads it."""
    read = product_input(tape, x, ctx)
    if ctx.batch == 1 or not read.grad:
        return read
    out = tape.op(read.count, read.width, (read,), grads=(PASS,))
    tape.drop(read)
    return out


def multiply(tape: Tape, a: Tensor, b: Tensor) -> Tensor:
    """`a * b`, same shapes: saves each where the other requires grad.

    The gradient of a factor of another type than the product's is cast by the engine once it is
    made: before the node lets go of what it saved, but after checkpointing's nodes did.
    """
    width = promoted(a.width, b.width)
    narrower = (a.width != width) + (b.width != width)
    if narrower and tape.stop_after is not None:
        wide = tuple(_widened(tape, x, width) for x in (a, b))
        out = tape.op(a.count, width, wide[::-1], operands(*wide))
        tape.drop(*wide)
        return out
    temporaries = (a.count * width,) * narrower
    return tape.op(a.count, width, (b, a), operands(a, b), temporaries=temporaries)


def _widened(tape: Tape, x: Tensor, width: int) -> Tensor:
    """`x` as a node reads it that computes in `width`: its gradient is cast."""
    if x.width == width:
        return tape.alias(x)
    out = tape.view(x, x.count, x.size)
    out.width = width
    return out


def spread_product(tape: Tape, a: Tensor, b: Tensor, count: int, ctx: Context) -> Tensor:
    """`a * b` broadcast to `count` elements in fp32; backward makes a full product for what is
    smaller, and sums it.

    Where both are smaller the first goes once it is summed: the second sum finds its room. The
    sums are the engine's, which makes them before the node lets go of what it saved, but after
    checkpointing's nodes did.
    """
    if ctx.checkpointing and not ctx.stack.reentrant_checkpointing:
        wide = tuple(_spread(tape, x, count) for x in (a, b))
        out = tape.op(count, 4, wide, operands(*wide))
        tape.drop(*wide)
        return out
    smaller = sum(x.grad and x.count < count for x in (a, b))
    temporaries: tuple[int, ...] = (4 * count,) * smaller
    if smaller == 2:
        temporaries = (4 * count, 4 * (count - b.count))
    return tape.op(count, 4, (a, b), operands(a, b), temporaries=temporaries)


def _spread(tape: Tape, x: Tensor, count: int) -> Tensor:
    """A view of `count` elements, whose gradient is summed."""
    if x.count == count:
        return tape.alias(x)
    out = tape.view(x, count, x.size)
    out.width = 4
    return out


def scale(tape: Tape, x: Tensor) -> Tensor:
    """`x * number`: saves nothing."""
    return tape.op(x.count, x.width, (x,))


def capped(tape: Tape, x: Tensor, component: str | None = None) -> Tensor:
    """`tanh(x / cap) * cap`; `x` is consumed."""
    quotient = tape.op(x.count, x.width, (x,), component=component)
    tape.drop(x)
    tanh = tape.op(x.count, x.width, (quotient,), saves_out=True, component=component)
    tape.drop(quotient)
    out = tape.op(x.count, x.width, (tanh,), component=component)
    tape.drop(tanh)
    return out


def dropout(tape: Tape, x: Tensor, p: float, ctx: Context) -> Tensor:
    """CUDA's fused dropout: the output and a mask of one byte an element.

    Source: aten/src/ATen/native/cuda/Dropout.cu, `native_dropout_cuda`.
    """
    if p == 0 or not ctx.training:
        return tape.alias(x)
    return tape.op(x.count, x.width, (x,), aux=(x.count,))


def linear(
    tape: Tape, x: Tensor, spec: Linear, ctx: Context, viewed: bool = True, strided: bool = False
) -> Tensor:
    """`x @ weight.T`, with an adapter where the case puts one.

    Backward's gradient of a 3-D input is a view of a 2-D product (`viewed`), into which autograd
    sums nothing in place. `strided` is whether the input lies otherwise in memory: see
    `strided_input`.
    """
    if ctx.quantization is not None and spec.quantizable:
        from estimator.architecture.quantized import quantized_linear

        return quantized_linear(tape, x, spec, ctx, viewed, strided)
    rows = x.count // spec.inputs
    read = (strided_input if strided else product_input)(tape, x, ctx)
    out = _product(tape, read, spec, ctx, rows, viewed)
    if not ctx.targets(spec):
        return out
    return _adapted(tape, x, out, spec, ctx, rows, viewed, strided)


def low_rank_sum(
    tape: Tape, x: Tensor, result: Tensor, pair: tuple[Linear, ...], ctx: Context
) -> Tensor:
    """`result + up(down(x))` of linears of the model's own; `result` is consumed."""
    down, up = pair
    narrow = linear(tape, x, down, ctx)
    wide = linear(tape, narrow, up, ctx)
    tape.drop(narrow)
    out = add(tape, result, wide)
    tape.drop(wide, result)
    return out


def _product(
    tape: Tape, read: Tensor, spec: Linear, ctx: Context, rows: int, viewed: bool
) -> Tensor:
    """The product of what was read for it, which is consumed."""
    # A class of its own multiplies by its weight's transpose.
    table = parameter(spec.weight_count, 4 if spec.fp32 else ctx.width, ctx.full, spec.sharing)
    weight = half_weight(tape, table, ctx, viewed=spec.own_class)
    inputs: tuple[Tensor, ...] = (weight, read)
    if spec.bias and not spec.own_class:
        bias = parameter(spec.outputs, ctx.width, ctx.full, spec.sharing)
        bias = half_weight(tape, bias, ctx)
        inputs = (bias, weight, read)
    saves = operands(read, weight)
    out = tape.op(rows * spec.outputs, read.width, inputs, saves, viewed=viewed)
    tape.drop(*inputs)
    if spec.bias and spec.own_class:
        bias = parameter(spec.outputs, ctx.width, ctx.full)
        width = promoted(out.width, bias.width)
        kinds = (PASS if width == out.width else NEW, NEW)
        product, out = out, tape.op(out.count, width, (out, bias), grads=kinds)
        tape.drop(product)
    return out


def _adapted(
    tape: Tape,
    x: Tensor,
    result: Tensor,
    spec: Linear,
    ctx: Context,
    rows: int,
    viewed: bool,
    strided: bool,
) -> Tensor:
    """LoRA: result + B(A(dropout(x))) * scaling, in the adapter's dtype.

    Source: peft/tuners/lora/layer.py, `Linear.forward`.
    """
    lora = ctx.lora
    assert lora is not None
    width = ctx.adapter_width
    x32 = cast(tape, x, width)
    if lora.use_dora:
        from estimator.architecture.dora import dora_sum

        given = result.width
        total = dora_sum(tape, x32, result, spec, ctx, viewed)
        out = cast(tape, total, given)
        tape.drop(total, x32)
        return out
    dropped = dropout(tape, x32, lora.lora_dropout, ctx)
    down = adapter(tape, dropped, rows, spec.inputs, lora.r, ctx, viewed, strided=strided)
    tape.drop(dropped)
    up = adapter(tape, down, rows, lora.r, spec.outputs, ctx, viewed)
    tape.drop(down)
    scaled = scale(tape, up)
    tape.drop(up)
    # Where the base is in half precision, its gradient is cast back by the engine.
    given = result.width
    total = add(tape, result, scaled)
    tape.drop(scaled, result)
    out = cast(tape, total, given)
    tape.drop(total, x32)
    return out


def adapter(
    tape: Tape,
    x: Tensor,
    rows: int,
    inputs: int,
    outputs: int,
    ctx: Context,
    viewed: bool = True,
    weight: Tensor | None = None,
    strided: bool = False,
) -> Tensor:
    """One matrix of an adapter; `viewed` and `strided` as for `linear`, `weight` (borrowed) if it
    is there."""
    read = (strided_input if strided else product_input)(tape, x, ctx)
    own = adapter_weight(tape, inputs, outputs, ctx) if weight is None else tape.alias(weight)
    out = tape.op(rows * outputs, read.width, (own, read), (read, own), viewed=viewed)
    tape.drop(read, own)
    return out


def adapter_weight(tape: Tape, inputs: int, outputs: int, ctx: Context) -> Tensor:
    """What products with a matrix of an adapter read."""
    return half_weight(tape, parameter(inputs * outputs, ctx.adapter_width, ctx.training), ctx)


def activation(tape: Tape, x: Tensor, name: str, ctx: Context) -> Tensor:
    """The activation function of an MLP; under autocast powers are computed in fp32.

    Raises:
        KeyError: a name without a formula; `known_activation` tells beforehand.
    """
    if ctx.amp and name in _WITH_POWERS:
        return _WITH_POWERS[name](tape, x, 4)
    return _ACTIVATIONS[name](tape, x)


def known_activation(name: str) -> bool:
    """Whether an activation has a formula."""
    return name in _ACTIVATIONS or name == "xielu"


def _saves_input(tape: Tape, x: Tensor) -> Tensor:
    """silu, gelu and gelu_pytorch_tanh: one kernel that saves its input."""
    return tape.op(x.count, x.width, (x,), (x,))


def _saves_output(tape: Tape, x: Tensor) -> Tensor:
    """relu: one kernel that saves its output."""
    return tape.op(x.count, x.width, (x,), saves_out=True)


def _power(tape: Tape, x: Tensor, width: int | None) -> Tensor:
    """`x**n` in `width` bytes an element (None for its own): backward makes x**(n - 1), and n times
    it."""
    read = cast(tape, x, width or x.width)
    size = read.size
    out = tape.op(x.count, read.width, (read,), (read,), temporaries=(size, size))
    tape.drop(read)
    return out


def _relu2(tape: Tape, x: Tensor, power_width: int | None = None) -> Tensor:
    """relu(x)**2, both of whose steps save the relu.

    Source: transformers/activations.py, `ReLUSquaredActivation`.
    """
    positive = _saves_output(tape, x)
    out = _power(tape, positive, power_width)
    tape.drop(positive)
    return out


def _gelu_new(tape: Tape, x: Tensor, power_width: int | None = None) -> Tensor:
    """0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x**3))), operation by operation.

    Source: transformers/activations.py, `NewGELUActivation`.
    """
    half = scale(tape, x)
    cube = _power(tape, x, power_width)
    cube_scaled = scale(tape, cube)
    tape.drop(cube)
    inner = add(tape, x, cube_scaled)
    tape.drop(cube_scaled)
    inner_scaled = scale(tape, inner)
    tape.drop(inner)
    tanh = tape.op(inner_scaled.count, inner_scaled.width, (inner_scaled,), saves_out=True)
    tape.drop(inner_scaled)
    plus_one = tape.op(tanh.count, tanh.width, (tanh,), grads=(PASS,))
    tape.drop(tanh)
    out = multiply(tape, half, plus_one)
    tape.drop(half, plus_one)
    return out


def _gelu_fast(tape: Tape, x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(0.798 x (1 + 0.044715 x x))), operation by operation.

    Source: transformers/activations.py, `FastGELUActivation`.
    """
    half = scale(tape, x)
    linear_term = scale(tape, x)
    scaled = scale(tape, x)
    square = multiply(tape, scaled, x)
    tape.drop(scaled)
    plus_one = tape.op(x.count, x.width, (square,), grads=(PASS,))
    tape.drop(square)
    inner = multiply(tape, linear_term, plus_one)
    tape.drop(linear_term, plus_one)
    tanh = tape.op(x.count, x.width, (inner,), saves_out=True)
    tape.drop(inner)
    plus_one = tape.op(x.count, x.width, (tanh,), grads=(PASS,))
    tape.drop(tanh)
    out = multiply(tape, half, plus_one)
    tape.drop(half, plus_one)
    return out


def _bloom_gelu(tape: Tape, x: Tensor) -> Tensor:
    """x / 2 (1 + tanh(0.8 x (1 + 0.045 x x))), an autograd function that saves its input only.

    Source: transformers/models/bloom/modeling_bloom.py, `GeLUFunction`.
    """
    steps = [tape.new(x.count, x.width) for _ in range(4)]
    tape.drop(*steps)
    factors = (x.size, x.size)
    return tape.op(x.count, x.width, (x,), (x,), scratch=factors, temporaries=(x.size,) * 4)


_WITH_POWERS = {"relu2": _relu2, "gelu_new": _gelu_new}

_ACTIVATIONS = {
    "silu": _saves_input,
    "swish": _saves_input,
    "gelu": _saves_input,
    "gelu_pytorch_tanh": _saves_input,
    "relu": _saves_output,
    "relu2": _relu2,
    "gelu_new": _gelu_new,
    "gelu_fast": _gelu_fast,
    "bloom_gelu": _bloom_gelu,
}
