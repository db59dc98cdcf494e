"""Formulas of multi-head latent attention: the latents are cached, keys and values made of them.

Source: transformers/models/deepseek_v3/modeling_deepseek_v3.py (`DeepseekV3Attention.forward`,
`expand_kv`, `apply_rotary_pos_emb_interleave`), deepseek_v2 (`apply_rotary_emb`).
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.kernels import attend
from estimator.architecture.norms import norm
from estimator.architecture.parts import add, cast, linear, scale
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
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
    query_rotated = _ROTATIONS[latent.rotation](tape, query_turned)
    key_rotated = _ROTATIONS[latent.rotation](tape, shared_key)
    tape.drop(query_turned, shared_key)
    if ctx.cached:
        inner, key_rotated = grow_cache(tape, inner, key_rotated, spec, ctx)
    joined = query_pass.count + query_rotated.count
    query = tape.op(joined, whole.width, (query_pass, query_rotated), grads=(PASS, PASS))
    key, value = _expanded(tape, inner, key_rotated, spec, latent, ctx)
    out, probabilities = attend(tape, query, key, value, spec, ctx, by_head=True)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, query, key, value, whole, query_pass, query_rotated, compressed)
    if not ctx.cached:
        # Else they belong to the cache.
        tape.drop(inner, key_rotated)
    return result, probabilities


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


def _expanded(
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


def _interleaved(tape: Tape, x: Tensor) -> Tensor:
    """Even and odd features, rotated pair by pair and laid side by side."""
    even, odd = (tape.view(x, x.count // 2, x.size) for _ in range(2))
    first = _combined(tape, even, odd, NEW)
    second = _combined(tape, odd, even, PASS)
    out = tape.op(x.count, x.width, (first, second), grads=(PASS, PASS))
    tape.drop(first, second, even, odd)
    return out


def _combined(tape: Tape, a: Tensor, b: Tensor, grad: int) -> Tensor:
    """`a * cos -+ b * sin`: a difference negates the second gradient."""
    left, right = scale(tape, a), scale(tape, b)
    out = tape.op(a.count, a.width, (left, right), grads=(PASS, grad))
    tape.drop(left, right)
    return out


def _halves(tape: Tape, x: Tensor) -> Tensor:
    """Llama's `x * cos + rotate_half(x) * sin`."""
    first = scale(tape, x)
    front, back = (tape.view(x, x.count // 2, x.size) for _ in range(2))
    negated = scale(tape, back)
    turned = tape.op(x.count, x.width, (negated, front), grads=(PASS, PASS))
    tape.drop(negated, front, back)
    second = scale(tape, turned)
    tape.drop(turned)
    out = add(tape, first, second)
    tape.drop(first, second)
    return out


def _complex(tape: Tape, x: Tensor) -> Tensor:
    """fp32 pairs read as complex numbers, times the shared factors, and back."""
    wide = cast(tape, x, 4)
    turned = scale(tape, wide)
    out = cast(tape, turned, x.width)
    tape.drop(wide, turned)
    return out


_ROTATIONS = {"interleaved": _interleaved, "halves": _halves, "complex": _complex}
