"""Formulas of Mamba's selective state space (S6) as transformers' own code runs it, token by token.

Symbols: B batch, Q tokens, I channels, N features of a channel's state. Where the packages
mamba-ssm and causal-conv1d are installed, their kernels need far less.

Source: transformers/models/mamba/modeling_mamba.py (`MambaMixer.forward`, `mamba_selective_scan`,
`mamba_selective_state_update`), falcon_mamba and jamba.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.convolution import activated_convolution
from estimator.architecture.norms import norm
from estimator.architecture.parts import (
    add,
    cast,
    half_weight,
    linear,
    multiply,
    operands,
    parameter,
    product_input,
    scale,
    spread_product,
)
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import Attention, SelectiveScan

_PLAYED = 2
"""Tokens at each end of the scan that are played one by one; those between are played as one."""


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, None]:
    """Return the block's output; there are no probabilities."""
    scan = spec.mixer
    assert isinstance(scan, SelectiveScan)
    projection, selection, _ = scan.inputs
    given = _masked(tape, x, scan, ctx)
    both = linear(tape, given, projection, ctx)
    decays = _rates(tape, scan, ctx)
    half = both.count // 2
    value, gate = tape.split(both, (half, half), both.size)
    active = activated_convolution(tape, value, scan.channels, scan.kernel, scan.conv_bias, ctx)
    tape.drop(value)
    mixed = _masked(tape, active, scan, ctx)
    tape.drop(active)
    selected = linear(tape, mixed, selection, ctx, strided=True)
    chosen, inner, outer = _parts(tape, selected, scan, ctx)
    tape.drop(selected)
    time = _time_steps(tape, chosen, scan, ctx)
    bias = cast(tape, parameter(scan.channels, ctx.width, ctx.full), 4)
    states = (mixed, time, decays, inner, outer, gate, bias)
    if ctx.decoding:
        out, last = step(tape, states, scan, ctx), None
    else:
        out, last = scanned(tape, states, scan, ctx)
    if ctx.cached and not ctx.decoding:
        count = ctx.batch * scan.channels * scan.state
        tape.new(count, 4, component="kv_cache")
    narrow = cast(tape, out, x.width)
    result = linear(tape, narrow, spec.output, ctx, strided=True)
    tape.drop(narrow, given, decays, mixed, both, time, inner, outer, bias)
    tape.drop(out, gate, last)
    return result, None


def _masked(tape: Tape, x: Tensor, scan: SelectiveScan, ctx: Context) -> Tensor:
    """`x * mask`; after the prefill generate gives no mask."""
    return scale(tape, x) if scan.masked and not ctx.decoding else tape.alias(x)


def _rates(tape: Tape, scan: SelectiveScan, ctx: Context) -> Tensor:
    count = scan.channels * scan.state
    wide = cast(tape, parameter(count, ctx.width, ctx.full), 4)
    out = rates(tape, wide)
    tape.drop(wide)
    return out


def rates(tape: Tape, wide: Tensor) -> Tensor:
    """`-exp(A)` of what is in fp32, which is borrowed."""
    grown = tape.op(wide.count, 4, (wide,), saves_out=True)
    out = scale(tape, grown)
    tape.drop(grown)
    return out


def _parts(tape: Tape, x: Tensor, scan: SelectiveScan, ctx: Context) -> tuple[Tensor, ...]:
    """Time steps, inputs and outputs of the state, normalized where the family does."""
    counts = tuple(ctx.tokens * n for n in (scan.rank, scan.state, scan.state))
    parts = tape.split(x, counts, x.size)
    if not scan.selection_norms:
        return parts
    normed = tuple(
        norm(tape, part, own, ctx) for part, own in zip(parts, scan.selection_norms, strict=True)
    )
    tape.drop(*parts)
    return normed


def _time_steps(tape: Tape, x: Tensor, scan: SelectiveScan, ctx: Context) -> Tensor:
    """The steps of all channels, [B, I, Q]: a product with the weight, which is no module's call
    unless it is quantized. `x` is consumed."""
    steps = scan.inputs[2]
    if ctx.quantization is not None and steps.bypassed:
        biased = linear(tape, x, steps, ctx)
        bias = parameter(scan.channels, ctx.width, ctx.full)
        out = tape.op(biased.count, biased.width, (biased, bias), grads=(PASS, NEW))
        tape.drop(biased, x)
        return out
    weight = half_weight(tape, parameter(steps.weight_count, ctx.width, ctx.full), ctx)
    read = product_input(tape, x, ctx)
    out = tape.op(ctx.tokens * scan.channels, read.width, (weight, read), operands(read, weight))
    tape.drop(x, read, weight)
    if not out.grad:
        return out
    product, out = out, tape.op(out.count, out.width, (out,), grads=(PASS,))
    tape.drop(product)
    return out


def _opened(tape: Tape, time: Tensor, bias: Tensor, ctx: Context) -> Tensor:
    """softplus(time + bias), which autocast computes in fp32."""
    narrow = cast(tape, bias, time.width)
    moved = tape.op(time.count, time.width, (time, narrow), grads=(PASS, NEW))
    tape.drop(narrow)
    wide = cast(tape, moved, moved.width if ctx.amp is None else 4)
    tape.drop(moved)
    out = tape.op(wide.count, wide.width, (wide,), (wide,))
    tape.drop(wide)
    return out


def scanned(
    tape: Tape, states: tuple[Tensor, ...], scan: SelectiveScan, ctx: Context
) -> tuple[Tensor, Tensor]:
    """Return the gated output, [B, I, Q] fp32, and the last state; `states` are borrowed."""
    mixed, time, falls, inner, outer, gate, bias = states
    count = ctx.tokens * scan.channels * scan.state
    share = cast(tape, parameter(scan.channels, ctx.width, ctx.full), 4)
    opened = _opened(tape, time, bias, ctx)
    exponents = spread_product(tape, falls, opened, count, ctx)
    decays = tape.op(count, 4, (exponents,), saves_out=True)
    tape.drop(exponents)
    inner32 = cast(tape, inner, 4)
    factors = spread_product(tape, opened, inner32, count, ctx)
    tape.drop(inner32)
    mixed32 = cast(tape, mixed, 4)
    added = spread_product(tape, factors, mixed32, count, ctx)
    tape.drop(mixed32)
    rows, last, made = _loop(tape, (decays, added, outer), scan, ctx, mixed.width)
    out = _with_input(tape, rows, mixed, share)
    tape.drop(rows)
    active = tape.op(gate.count, gate.width, (gate,), (gate,))
    gated = multiply(tape, active, out)
    tape.drop(active, out, opened, decays, factors, added, *made, share)
    return gated, last


def _with_input(tape: Tape, rows: Tensor, mixed: Tensor, share: Tensor) -> Tensor:
    """`rows + mixed * share`, one share a channel, in fp32."""
    temporaries = (4 * mixed.count,) if share.grad or mixed.width < 4 else ()
    product = tape.op(
        mixed.count, 4, (share, mixed), operands(mixed, share), temporaries=temporaries
    )
    out = add(tape, rows, product)
    tape.drop(product)
    return out


def _loop(
    tape: Tape, parts: tuple[Tensor, ...], scan: SelectiveScan, ctx: Context, width: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Token by token: `state = decay * state + added`, and its product with what reads it.

    Returns:
        the outputs, [B, I, Q], the last state, and each token's output, which a list holds.
    """
    decays, added, outer = parts
    size = ctx.batch * scan.channels * scan.state
    out_size = ctx.batch * scan.channels
    Q = ctx.queries
    between = max(0, Q - 2 * _PLAYED)
    state = tape.new(size, width)
    # Products under autocast read copies.
    width = width if ctx.amp is None else ctx.amp_width
    made: list[Tensor] = []
    for index in range(Q - between + bool(between)):
        if between and index == _PLAYED:
            before, state = state, _many_tokens(tape, parts, state, between, width)
            made.append(tape.new_many(out_size, width, between))
            tape.drop(before)
            continue
        decay = tape.view(decays, size, decays.size)
        product = tape.op(size, 4, (decay, state), operands(decay, state))
        more = tape.view(added, size, added.size)
        before, state = state, add(tape, product, more)
        tape.drop(product, decay, more, before)
        narrow = cast(tape, state, width)
        row = tape.view(outer, ctx.batch * scan.state, outer.size)
        read = cast(tape, row, width)
        made.append(tape.op(out_size, width, (narrow, read), operands(narrow, read)))
        tape.drop(narrow, row, read)
    out = tape.op(out_size * Q, width, tuple(made), grads=(PASS,) * len(made))
    return out, state, made


def _many_tokens(
    tape: Tape, parts: tuple[Tensor, ...], state: Tensor, tokens: int, width: int
) -> Tensor:
    """What the tokens between keep for backward: a state each, and its narrow copy."""
    decays, added, outer = parts
    kept = [tape.new_many(state.count, 4, tokens - 1)] if decays.grad else []
    if decays.grad and width < 4:
        kept.append(tape.new_many(state.count, width, tokens))
    decay, more = (tape.view(x, state.count, x.size) for x in (decays, added))
    row = tape.view(outer, outer.count // (added.count // state.count), outer.size)
    out = tape.op(state.count, 4, (row, more, state, decay), (state, *kept))
    tape.drop(*kept, decay, more, row)
    return out


def step(tape: Tape, states: tuple[Tensor, ...], scan: SelectiveScan, ctx: Context) -> Tensor:
    """One token's step, without gradients: a few copies of the state."""
    mixed, time, _, inner, _, _, bias = states
    size = ctx.batch * scan.channels * scan.state
    opened = _opened(tape, time, bias, ctx)

    def wide(x: Tensor) -> Tensor:
        return cast(tape, x, 4)

    time32 = wide(opened)
    exponents = tape.new(size, 4)
    tape.drop(time32)
    decays = tape.new(size, 4)
    tape.drop(exponents)
    time32, inner32 = wide(opened), wide(inner)
    factors = tape.new(size, 4)
    tape.drop(time32, inner32)
    mixed32 = wide(mixed)
    added = tape.new(size, 4)
    tape.drop(mixed32)
    product, state = tape.new(size, 4), tape.new(size, 4)
    tape.drop(product)
    narrow = cast(tape, state, inner.width)
    row = tape.new(mixed.count, mixed.width)
    tape.drop(narrow)
    share = tape.new(mixed.count, mixed.width)
    out = tape.new(mixed.count, mixed.width)
    tape.drop(share, row)
    active = tape.new(mixed.count, mixed.width)
    gated = tape.new(mixed.count, mixed.width)
    tape.drop(active, out, opened, decays, factors, added, state)
    return gated
