"""Formulas of Mamba 2's block in attention's place, as transformers' own code runs it.

Source: transformers/models/mamba2/modeling_mamba2.py (`Mamba2Mixer.forward`,
`mamba2_selective_state_update`) and its copies in bamba, granitemoehybrid, nemotron_h, zamba2.
"""

from __future__ import annotations

from estimator.architecture.chunk_scan import chunked
from estimator.architecture.context import Context
from estimator.architecture.convolution import activated_convolution
from estimator.architecture.gated_norms import gated_norm
from estimator.architecture.parts import cast, linear, parameter, scale
from estimator.architecture.tape import Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention, StateSpaceDual


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, None]:
    """Return the block's output; there are no probabilities."""
    space = spec.mixer
    assert isinstance(space, StateSpaceDual)
    T = ctx.tokens
    given = _scaled(tape, _masked(tape, x, space, ctx), space)
    both = _projected(tape, given, space, ctx)
    rates = _rates(tape, space, ctx)
    counts = (T * space.channels, T * space.convolved, T * space.heads)
    gate, value, time = tape.split(both, counts, both.size)
    active = activated_convolution(tape, value, space.convolved, space.kernel, space.conv_bias, ctx)
    tape.drop(value)
    mixed = _masked(tape, active, space, ctx)
    tape.drop(active)
    grouped = T * space.groups * space.state
    hidden, inner, outer = tape.split(mixed, (counts[0], grouped, grouped), mixed.size)
    tape.drop(given)
    states = (hidden, time, rates, inner, outer)
    if ctx.decoding:
        out, last = _gated_step(tape, _step(tape, states, space, ctx), space), None
    else:
        out, last = chunked(tape, states, space, ctx)
    if ctx.cached and not ctx.decoding:
        tape.new(ctx.batch * space.channels * space.state, 4, component="kv_cache")
    gated_already = ctx.decoding and space.norm is None
    normed = tape.alias(out) if gated_already else gated_norm(tape, out, gate, space, ctx)
    tape.drop(out)
    narrow = cast(tape, normed, x.width)
    result = linear(tape, narrow, spec.output, ctx)
    tape.drop(narrow, normed, both, rates, gate, time, mixed, hidden, inner, outer, last)
    return result, None


def _masked(tape: Tape, x: Tensor, space: StateSpaceDual, ctx: Context) -> Tensor:
    """`x * mask`; after the prefill generate gives no mask."""
    return scale(tape, x) if space.masked and not ctx.decoding else tape.alias(x)


def _scaled(tape: Tape, x: Tensor, space: StateSpaceDual) -> Tensor:
    """`x * number` where the family does; `x` is consumed."""
    if not space.scaled:
        return x
    out = scale(tape, x)
    tape.drop(x)
    return out


def _projected(tape: Tape, x: Tensor, space: StateSpaceDual, ctx: Context) -> Tensor:
    """The projection, multiplied by a buffer in the dtype as loaded where the family does."""
    product = linear(tape, x, space.projection, ctx)
    if not space.scaled:
        return product
    width = promoted(product.width, ctx.compute_width)
    wide = (product.count * width,) if width != product.width else ()
    out = tape.op(product.count, width, (product,), temporaries=wide)
    tape.drop(product)
    return out


def _gated_step(tape: Tape, x: Tensor, space: StateSpaceDual) -> Tensor:
    """A step multiplies by the gate itself where no norm stands behind it; `x` is consumed."""
    if space.norm is not None:
        return x
    opened, out = tape.new(x.count, x.width), tape.new(x.count, x.width)
    tape.drop(opened, x)
    return out


def _rates(tape: Tape, space: StateSpaceDual, ctx: Context) -> Tensor:
    """`-exp(A)`, fp32, one a head."""
    wide = cast(tape, parameter(space.heads, ctx.width, ctx.full), 4)
    grown = tape.op(space.heads, 4, (wide,), saves_out=True)
    out = scale(tape, grown)
    tape.drop(wide, grown)
    return out


def _step(tape: Tape, states: tuple[Tensor, ...], space: StateSpaceDual, ctx: Context) -> Tensor:
    """One token's step, without gradients: copies of the state, some in the model's dtype."""
    hidden = states[0]
    width = hidden.width
    count = ctx.batch * space.channels
    size = count * space.state
    by_head = ctx.batch * space.heads * space.state
    moved = tape.new(count, width)
    time = tape.new(count, width)
    tape.drop(moved)
    time32 = tape.new(count, 4)
    exponents = tape.new(size, 4)
    tape.drop(time32)
    decays = tape.new(size, 4)
    tape.drop(exponents)
    inner = tape.new(by_head, width)
    factors = tape.new(size, width)
    added = tape.new(size, width)
    product, state = tape.new(size, 4), tape.new(size, 4)
    tape.drop(product)
    outer = tape.new(by_head, width)
    narrow = tape.new(size, width) if width < 4 else None
    if narrow is not None:
        state, wide = narrow, state
        tape.drop(wide)
    out = tape.new(count, width)
    share, total = tape.new(count, width), tape.new(count, width)
    tape.drop(share, out)
    tape.drop(time, decays, inner, factors, added, state, outer)
    return total
