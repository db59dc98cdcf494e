"""Formulas of Mamba 2's scan in chunks, in fp32, as transformers' own code runs it.

Symbols: B batch, H heads, P features of a head, N of its state, c tokens of a chunk, n chunks, R
rows: tokens of all chunks. Products over pairs of tokens of a chunk, [B, n, c, c, H, N], and over
states, [B, n, c, H, P, N], are whole tensors; mamba-ssm's kernels make none of them.

Source: https://arxiv.org/abs/2405.21060, section 6; transformers/models/mamba2/modeling_mamba2.py,
`mamba2_chunk_scan`, `segment_sum`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import add, cast, parameter, spread_product
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import StateSpaceDual
from estimator.units import round_up


def chunked(
    tape: Tape, states: tuple[Tensor, ...], space: StateSpaceDual, ctx: Context
) -> tuple[Tensor, Tensor]:
    """Return the output, [B, Q, H * P] fp32, and the last state.

    Args:
        states: channels, time steps, rates (fp32, one a head), and the state's inputs and outputs
            a group; borrowed.
    """
    hidden, time, rates, inner, outer = states
    B, H, P, N, c = ctx.batch, space.heads, space.head_dim, space.state, space.chunk
    rows = B * round_up(ctx.queries, c)
    n = rows // (B * c)
    steps = _time_steps(tape, time, space, ctx)
    wide = cast(tape, hidden, 4)
    inner, outer = (_by_head(tape, x, ctx.tokens * H * N) for x in (inner, outer))
    padded = _padded(tape, wide, rows * H * P)
    share = parameter(H, ctx.width, ctx.full)
    skipped = spread_product(tape, share, padded, padded.count, ctx)
    tape.drop(padded)
    steps32 = cast(tape, steps, 4)
    scaled = spread_product(tape, steps32, wide, wide.count, ctx)
    tape.drop(steps32, wide)
    steps32 = cast(tape, steps, 4)
    decays = spread_product(tape, rates, steps32, steps32.count, ctx)
    tape.drop(steps32)
    whole = tuple(
        _padded(tape, x, rows * size)
        for x, size in ((scaled, H * P), (decays, H), (inner, H * N), (outer, H * N))
    )
    tape.drop(scaled, decays, inner, outer)
    scaled, decays, inner, outer = whole
    total = tape.op(rows * H, 4, (decays,), temporaries=(4 * rows * H,) * 2)
    mask = _segments(tape, decays, rows * H * c, c)
    pairs = _summed(tape, outer, inner, rows * c * H * N, rows * c * H, ctx)
    weights = _summed(tape, pairs, mask, pairs.count, pairs.count, ctx)
    diagonal = _summed(tape, weights, scaled, rows * c * H * P, rows * H * P, ctx)
    left = tape.op(rows * H, 4, (total, total), grads=(PASS, NEW))
    fading = tape.op(rows * H, 4, (left,), saves_out=True)
    tape.drop(left)
    faded = spread_product(tape, fading, inner, inner.count, ctx)
    made = _summed(tape, faded, scaled, rows * H * P * N, B * n * H * P * N, ctx)
    nothing = tape.new(B * H * P * N, 4)
    joined = tape.op(B * (n + 1) * H * P * N, 4, (made,), grads=(PASS,))
    tape.drop(made)
    ends = tape.op(B * H * (n + 1), 4, (total,), grads=(total.size,))
    between = _segments(tape, ends, B * H * (n + 1) ** 2, n + 1)
    tape.drop(ends)
    after = _summed(tape, between, joined, B * (n + 1) ** 2 * H * P * N, joined.count, ctx)
    tape.drop(joined)
    before = tape.view(after, B * n * H * P * N, after.size)
    grown = tape.op(rows * H, 4, (total,), saves_out=True)
    read = spread_product(tape, before, outer, rows * H * P * N, ctx)
    carried = tape.op(rows * H * P, 4, (read,), grads=(PASS,))
    apart = spread_product(tape, grown, carried, carried.count, ctx)
    tape.drop(carried)
    both = add(tape, diagonal, apart)
    out, summed = add(tape, both, skipped), both
    tape.drop(summed)
    cut = tape.view(out, ctx.tokens * H * P, out.size if rows > ctx.tokens else PASS)
    tape.drop(out, steps, skipped, scaled, decays, inner, outer, total, mask, pairs, weights)
    tape.drop(diagonal, fading, faded, nothing, between, before, grown, read, apart)
    return cut, after


def _time_steps(tape: Tape, time: Tensor, space: StateSpaceDual, ctx: Context) -> Tensor:
    """softplus(time + bias), clamped."""
    bias = parameter(space.heads, ctx.width, ctx.full)
    moved = tape.op(time.count, time.width, (time, bias), grads=(PASS, NEW))
    given = cast(tape, moved, moved.width if ctx.amp is None else 4)
    tape.drop(moved)
    soft = tape.op(given.count, given.width, (given,), (given,))
    tape.drop(given)
    out = tape.op(soft.count, soft.width, (soft,), (soft,), temporaries=(soft.count,) * 2)
    tape.drop(soft)
    return out


def _by_head(tape: Tape, x: Tensor, count: int) -> Tensor:
    """fp32 copies for each head of a group; backward sums over the group."""
    wide = cast(tape, x, 4)
    out = tape.op(count, 4, (wide,), grads=(wide.count * 4,))
    tape.drop(wide)
    return out


def _padded(tape: Tape, x: Tensor, count: int) -> Tensor:
    """Zeros to whole chunks: a copy even where there are none."""
    return tape.op(count, 4, (x,))


def _summed(tape: Tape, a: Tensor, b: Tensor, count: int, left: int, ctx: Context) -> Tensor:
    """A product of `count` elements, summed to `left`."""
    product = spread_product(tape, a, b, count, ctx)
    out = tape.op(left, 4, (product,), grads=(PASS,))
    tape.drop(product)
    return out


def _segments(tape: Tape, x: Tensor, count: int, side: int) -> Tensor:
    """exp of the sums of all stretches: masked, summed, masked again, each a tensor."""
    mask = _triangle(tape, side)
    inverted = tape.new(side * side, 1)
    filled = tape.op(count, 4, (x,), (inverted,), temporaries=(4 * count,))
    tape.drop(inverted)
    sums = tape.op(count, 4, (filled,), temporaries=(4 * count,) * 2)
    tape.drop(mask)
    mask = _triangle(tape, side)
    inverted = tape.new(side * side, 1)
    masked = tape.op(count, 4, (sums,), (inverted,))
    tape.drop(inverted, sums, filled, mask)
    out = tape.op(count, 4, (masked,), saves_out=True)
    tape.drop(masked)
    return out


def _triangle(tape: Tape, side: int) -> Tensor:
    ones = tape.new(side * side, 1)
    lower = tape.new(side * side, 1)
    tape.drop(ones)
    return lower
