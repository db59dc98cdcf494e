"""Formulas of the gated delta rule as transformers' own code runs it, in fp32 and in chunks.

Symbols: N value heads times batch, n chunks of C = 64 tokens, dk and dv features of a key and of a
value. Where the package flash-linear-attention is installed, its kernels need less.

Source: https://arxiv.org/abs/2412.06464; transformers/models/qwen3_next/modeling_qwen3_next.py,
`torch_chunk_gated_delta_rule`, `torch_recurrent_gated_delta_rule`, `l2norm`.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.parts import add, cast, multiply, operands, product_input, scale
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import DeltaNet
from estimator.units import round_up

CHUNK = 64
"""Tokens of a chunk."""


def chunked(
    tape: Tape, states: tuple[Tensor, ...], spec: DeltaNet, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """Return the rule's output, [T, heads, dv] in the inputs' dtype, and the last state if a cache
    keeps it.

    Args:
        states: queries and keys of all value heads, values, decays (fp32) and betas; borrowed.
    """
    N = ctx.batch * spec.value_heads
    rows = N * round_up(ctx.queries, CHUNK)
    width = states[0].width
    # Without a cast or padding nothing lays the states out head by head, and products copy them.
    strided = width == 4 and ctx.queries % CHUNK == 0
    query, key, value, decay, beta = (cast(tape, x, 4) for x in states)
    query, key = _unit(tape, query, N * ctx.queries), _unit(tape, key, N * ctx.queries)
    query, unscaled = scale(tape, query), query
    tape.drop(unscaled)
    wide = tuple(
        _padded(tape, x, rows * d)
        for x, d in ((query, spec.key_dim), (key, spec.key_dim), (value, spec.value_dim))
    )
    tape.drop(query, key, value)
    query, key, value = wide
    thin = tuple(_padded(tape, x, rows) for x in (beta, decay))
    tape.drop(beta, decay)
    beta, decay = thin
    v_beta, k_beta = _by_row(tape, value, beta), _by_row(tape, key, beta)
    mask = tape.new(CHUNK * CHUNK, 1)
    total = tape.op(rows, 4, (decay,), temporaries=(4 * rows, 4 * rows))
    pairwise = _pairwise(tape, total, mask, rows)
    system = _masked_product(tape, (k_beta, key), pairwise, ctx, strided)
    scores = _masked_product(tape, (query, key), pairwise, ctx, strided)
    decayed = _decayed(tape, k_beta, total)
    updates = _solved(tape, system, v_beta)
    keys = _solved(tape, system, decayed)
    first = tape.new(N * spec.key_dim * spec.value_dim, 4)
    out = tape.new(updates.count, 4)
    query, plain = _decayed(tape, query, total), query
    tape.drop(plain)
    left = tape.op(rows, 4, (total, total), grads=(PASS, NEW))
    weights = tape.op(rows, 4, (left,), saves_out=True)
    tape.drop(left)
    key, plain = _by_row(tape, key, weights), key
    tape.drop(plain, weights)
    steps = rows // (N * CHUNK)
    ends = tape.op(N * steps, 4, (total,), saves_out=True, grads=(total.size,))
    parts = (query, key, updates, keys, scores, ends)
    copied = strided and ctx.batch > 1
    out, state, named = _scan(tape, parts, first, out, spec, (N, steps), ctx, copied)
    if steps > 1:
        # The output lies as the solver's result does, column by column: reshaping it copies.
        written, out = out, tape.op(out.count, 4, (out,), grads=(PASS,))
        tape.drop(written)
    cut = tape.view(out, N * ctx.queries * spec.value_dim, out.size)
    tape.drop(out)
    result = tape.op(cut.count, width, (cut,))
    tape.drop(cut, query, key, value, beta, decay, v_beta, k_beta, mask, total, pairwise, system)
    tape.drop(scores, decayed, updates, keys, ends, *named)
    return result, state


def recurrent(
    tape: Tape, states: tuple[Tensor, ...], spec: DeltaNet, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """One token's step, without gradients: a few copies of the state of all heads."""
    N = ctx.batch * spec.value_heads
    width = states[0].width
    wide = [cast(tape, x, 4) for x in states]
    out = tape.new(N * spec.value_dim, 4)
    size = N * spec.key_dim * spec.value_dim
    decayed = tape.new(size, 4)
    product = tape.new(size, 4)
    tape.drop(product)
    outer = tape.new(size, 4)
    state = tape.new(size, 4)
    tape.drop(outer, decayed)
    product = tape.new(size, 4)
    tape.drop(product)
    result = tape.new(out.count, width)
    tape.drop(out, *wide)
    return result, state


def _unit(tape: Tape, x: Tensor, rows: int) -> Tensor:
    """`x / |x|`; `x` is consumed."""
    squares = tape.op(x.count, 4, (x, x), (x,))
    total = tape.op(rows, 4, (squares,), grads=(PASS,))
    tape.drop(squares)
    raised = tape.op(rows, 4, (total,), grads=(PASS,))
    tape.drop(total)
    inverse = tape.op(rows, 4, (raised,), saves_out=True)
    tape.drop(raised)
    out = _by_row(tape, x, inverse)
    tape.drop(inverse, x)
    return out


def _by_row(tape: Tape, x: Tensor, rows: Tensor) -> Tensor:
    """`x * rows` with one number a row; backward sums a full product for the rows."""
    temporaries = (x.size,) if rows.grad else ()
    return tape.op(x.count, 4, (rows, x), operands(x, rows), temporaries=temporaries)


def _padded(tape: Tape, x: Tensor, count: int) -> Tensor:
    """Zeros to whole chunks: a copy even where there are none."""
    return tape.op(count, 4, (x,))


def _pairwise(tape: Tape, total: Tensor, mask: Tensor, rows: int) -> Tensor:
    """exp of the differences of a chunk's sums, [.., C, C]."""
    count = rows * CHUNK
    differences = tape.op(count, 4, (total, total), grads=(NEW, NEW), temporaries=(4 * count,))
    masked = tape.op(count, 4, (differences,), (mask,))
    tape.drop(differences)
    out = tape.op(count, 4, (masked,), saves_out=True)
    tape.drop(masked)
    return out


def _masked_product(
    tape: Tape, factors: tuple[Tensor, Tensor], pairwise: Tensor, ctx: Context, strided: bool
) -> Tensor:
    """(a @ b.T) * pairwise, [.., C, C]."""
    a, b = (_laid_out(tape, x, ctx, strided) for x in factors)
    product = tape.op(pairwise.count, a.width, (b, a), operands(a, b))
    tape.drop(a, b)
    out = multiply(tape, product, pairwise)
    tape.drop(product)
    return out


def _laid_out(tape: Tape, x: Tensor, ctx: Context, strided: bool) -> Tensor:
    """A product's operand in autocast's type, copied where heads and chunks do not lie one after
    the other."""
    read = product_input(tape, x, ctx)
    if not strided:
        return read
    out = tape.op(read.count, read.width, (read,), grads=(PASS,))
    tape.drop(read)
    return out


def _decayed(tape: Tape, x: Tensor, total: Tensor) -> Tensor:
    """`x * exp(total)`, one number a row."""
    weights = tape.op(total.count, 4, (total,), saves_out=True)
    out = _by_row(tape, x, weights)
    tape.drop(weights)
    return out


def _solved(tape: Tape, system: Tensor, right: Tensor) -> Tensor:
    """solve_triangular: saves the system and its solution."""
    return tape.op(
        right.count,
        4,
        (system, right),
        (system,),
        saves_out=True,
        temporaries=(system.size,),
    )


def _scan(
    tape: Tape,
    parts: tuple[Tensor, ...],
    state: Tensor,
    out: Tensor,
    spec: DeltaNet,
    counts: tuple[int, int],
    ctx: Context,
    copied: bool,
) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
    """Chunk after chunk: each reads the state, writes its rows of the output, and moves on.

    Args:
        counts: heads times batch, and chunks.
        copied: whether products copy queries and keys first.

    Returns:
        the output, the last state if a cache keeps it, and what the loop still names.
    """
    query, key, updates, keys, scores, ends = parts
    heads, steps = counts
    chunk = heads * CHUNK
    fresh: Tensor | None = None
    between: Tensor | None = None
    update = 0
    for _ in tape.rounds(steps):
        k_rows = tape.view(keys, chunk * spec.key_dim, keys.size)
        known = _matmul(tape, k_rows, state, chunk * spec.value_dim, ctx)
        u_rows = tape.view(updates, chunk * spec.value_dim, updates.size)
        before = fresh
        negated = (4 * known.count,) if known.width != 4 else ()
        fresh = tape.op(known.count, 4, (u_rows, known), grads=(PASS, NEW), temporaries=negated)
        tape.drop(known, k_rows, u_rows, before)
        q_rows = tape.view(query, chunk * spec.key_dim, query.size)
        last, between = between, _matmul(tape, q_rows, state, chunk * spec.value_dim, ctx, copied)
        tape.drop(last)
        s_rows = tape.view(scores, chunk * CHUNK, scores.size)
        within = _matmul(tape, s_rows, fresh, chunk * spec.value_dim, ctx)
        rows = add(tape, between, within)
        tape.drop(within, q_rows, s_rows)
        whole = (4 * out.count, 4 * rows.count)
        written = tape.op(out.count, 4, (out, rows), grads=(NEW, NEW), temporaries=whole, into=out)
        tape.drop(out, rows)
        out = written
        update = len(tape.nodes)
        end = tape.view(ends, heads, ends.size)
        kept = _by_row(tape, state, end)
        k_last = tape.view(key, chunk * spec.key_dim, key.size)
        added = _matmul(tape, k_last, fresh, state.count, ctx, copied)
        moved = add(tape, kept, added)
        tape.drop(kept, added, end, k_last, state)
        state = moved
    if ctx.cached:
        return out, state, (fresh, between)
    # Nobody asks for the last state: it goes, and with it what backward through it would need.
    tape.drop(state)
    tape.abandon(update, len(tape.nodes))
    return out, None, (fresh, between)


def _matmul(
    tape: Tape, a: Tensor, b: Tensor, count: int, ctx: Context, copied: bool = False
) -> Tensor:
    left, right = _laid_out(tape, a, ctx, copied), product_input(tape, b, ctx)
    out = tape.op(count, left.width, (right, left), operands(left, right))
    tape.drop(left, right)
    return out
