"""Formulas of multi-head latent attention: the latents are cached, keys and values made of them.

Source: transformers/models/deepseek_v3/modeling_deepseek_v3.py (`DeepseekV3Attention.forward`,
`expand_kv`), deepseek_v2.
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.kernels import attend
from estimator.architecture.norms import norm
from estimator.architecture.pair_rotary import ROTATIONS
from estimator.architecture.parts import linear, scale
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention, Latent


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    latent = spec.latent
    assert latent is not None
    whole = _queries(tape, x, spec, latent, ctx)
    rope = ctx.tokens * latent.rope_dim
    parts = (ctx.tokens * spec.heads * latent.nope_dim, rope * spec.heads)
    query_pass, query_turned = tape.split(whole, parts, whole.size)
    compressed = linear(tape, x, latent.down, ctx)
    raw, shared_key = tape.split(compressed, (ctx.tokens * latent.rank, rope), compressed.size)
    inner = norm(tape, raw, latent.norm, ctx)
    tape.drop(raw)
    if latent.rescaled:
        query_pass, query_turned, inner = (
            _rescaled(tape, part) for part in (query_pass, query_turned, inner)
        )
    turn = ROTATIONS[latent.rotation]
    query_rotated = turn(tape, query_turned, ctx.outer_width)
    key_rotated = turn(tape, shared_key, ctx.outer_width)
    tape.drop(query_turned, shared_key)
    if ctx.cached:
        inner, key_rotated = grow_cache(tape, inner, key_rotated, spec, ctx)
    query = joined(tape, query_pass.count + query_rotated.count, query_pass, query_rotated)
    key, value = expanded(tape, inner, key_rotated, spec, latent, ctx)
    out, probabilities = attend(tape, query, key, value, spec, ctx, by_head=True)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, query, key, value, whole, query_pass, query_rotated, compressed)
    if not ctx.stores_all:
        # Else they belong to the cache.
        tape.drop(inner, key_rotated)
    return result, probabilities


def _rescaled(tape: Tape, x: Tensor) -> Tensor:
    out = scale(tape, x)
    tape.drop(x)
    return out


def _queries(tape: Tape, x: Tensor, spec: Attention, latent: Latent, ctx: Context) -> Tensor:
    assert spec.query is not None
    if latent.query_down is None:
        return linear(tape, x, spec.query, ctx)
    down = linear(tape, x, latent.query_down, ctx)
    normed = norm(tape, down, latent.query_norm, ctx)
    tape.drop(down)
    query = linear(tape, normed, spec.query, ctx)
    tape.drop(normed)
    return query


def expanded(
    tape: Tape, inner: Tensor, rotated: Tensor, spec: Attention, latent: Latent, ctx: Context
) -> tuple[Tensor, Tensor]:
    """Each head's keys, copied together of two parts, and its values, a view."""
    up = linear(tape, inner, latent.up, ctx)
    tokens = inner.count // latent.rank
    counts = (tokens * spec.heads * latent.nope_dim, tokens * spec.heads * spec.value_size)
    plain, value = tape.split(up, counts, up.size)
    tape.drop(up)
    count = tokens * spec.heads * spec.head_dim
    key = tape.op(count, up.width, (plain, rotated))
    tape.drop(plain)
    return key, value


def joined(tape: Tape, count: int, plain: Tensor, turned: Tensor) -> Tensor:
    """The parts of each head, copied together in the wider's type."""
    width = promoted(plain.width, turned.width)
    grads = tuple(PASS if part.width == width else NEW for part in (plain, turned))
    return tape.op(count, width, (plain, turned), grads=grads)
