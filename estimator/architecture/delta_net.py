"""Formulas of the gated delta net, which stands in attention's place in most layers.

Source: transformers/models/qwen3_next/modeling_qwen3_next.py (`Qwen3NextGatedDeltaNet.forward`,
`causal_conv1d_fn`, `Qwen3NextRMSNormGated`), qwen3_5/modeling_qwen3_5.py; cache_utils.py,
`LinearAttentionLayer`.
"""

from __future__ import annotations

from dataclasses import dataclass

from estimator.architecture.context import Context
from estimator.architecture.convolution import convolution, convolution_step, keep_columns
from estimator.architecture.delta_rule import chunked, recurrent
from estimator.architecture.norms import norm
from estimator.architecture.parts import cast, linear, multiply, operands, parameter, scale
from estimator.architecture.tape import NEW, PASS, Tape, Tensor
from estimator.spec import Attention, DeltaNet


@dataclass(slots=True)
class _Inputs:
    """What the projections make; `held` is named until the block returns."""

    mixed: Tensor
    gate: Tensor
    beta: Tensor
    decay: Tensor
    held: tuple[Tensor, ...] = ()
    parts: tuple[Tensor, ...] = ()
    """Queries, keys and values, named until the convolution is done."""


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, None]:
    """Return the block's output; there are no probabilities."""
    delta = spec.mixer
    assert isinstance(delta, DeltaNet)
    T = ctx.tokens
    given = _ordered(tape, x, delta, ctx) if delta.ordered else _projected(tape, x, delta, ctx)
    mixed = _convolved(tape, given.mixed, delta, ctx)
    tape.drop(*given.parts)
    keys, values = T * delta.key_heads * delta.key_dim, T * delta.value_heads * delta.value_dim
    query, key, value = tape.split(mixed, (keys, keys, values), mixed.size)
    tape.drop(mixed)
    beta = tape.op(given.beta.count, given.beta.width, (given.beta,), saves_out=True)
    decay = _decays(tape, given.decay, delta, ctx)
    groups = delta.value_heads // delta.key_heads
    if groups > 1:
        query, key = (_repeated(tape, part, groups) for part in (query, key))
    rule = recurrent if ctx.decoding else chunked
    out, state = rule(tape, (query, key, value, decay, beta), delta, ctx)
    if state is not None and not ctx.decoding:
        _keep(tape, state.count, 4)
    normed = _gated_norm(tape, out, given.gate, delta, ctx)
    tape.drop(out)
    result = linear(tape, normed, spec.output, ctx)
    tape.drop(normed, state, query, key, value, beta, decay, given.gate, given.beta, given.decay)
    tape.drop(*given.held)
    return result, None


def _projected(tape: Tape, x: Tensor, delta: DeltaNet, ctx: Context) -> _Inputs:
    """Four projections (Qwen 3.5)."""
    mixed, gate, beta, decay = (linear(tape, x, item, ctx) for item in delta.inputs)
    return _Inputs(mixed, gate, beta, decay)


def _ordered(tape: Tape, x: Tensor, delta: DeltaNet, ctx: Context) -> _Inputs:
    """Two projections by key heads, whose parts are copied together (Qwen3-Next)."""
    both, thin = (linear(tape, x, item, ctx) for item in delta.inputs)
    T = ctx.tokens
    keys, values = T * delta.key_heads * delta.key_dim, T * delta.value_heads * delta.value_dim
    query, key, value, gate = tape.split(both, (keys, keys, values, values), both.size)
    beta, decay = tape.split(thin, (T * delta.value_heads,) * 2, thin.size)
    grouped = delta.value_heads > delta.key_heads
    if grouped:
        value, gate, beta, decay = (_copied(tape, part) for part in (value, gate, beta, decay))
    query, key = _copied(tape, query), _copied(tape, key)
    if not grouped:
        value = _copied(tape, value)
    count = 2 * keys + values
    mixed = tape.op(count, both.width, (query, key, value), grads=(PASS, PASS, PASS))
    return _Inputs(mixed, gate, beta, decay, (both, thin), (query, key, value))


def _copied(tape: Tape, part: Tensor) -> Tensor:
    """A reshape of a strided view; the view is consumed."""
    out = tape.op(part.count, part.width, (part,), grads=(PASS,))
    tape.drop(part)
    return out


def _convolved(tape: Tape, mixed: Tensor, delta: DeltaNet, ctx: Context) -> Tensor:
    """A causal convolution a channel and its activation; `mixed` is consumed.

    A decode step joins the cached columns to the new one; prefill keeps the last of them.
    """
    channels = delta.channels
    if ctx.decoding:
        out = convolution_step(tape, mixed, channels, delta.kernel, ctx)
        active = tape.new(mixed.count, mixed.width)
        tape.drop(out, mixed)
        return active
    if ctx.cached:
        keep_columns(tape, channels, delta.kernel, ctx, mixed.width)
    cut = convolution(tape, mixed, channels, delta.kernel, False, ctx)
    active = tape.op(cut.count, cut.width, (cut,), (cut,))
    tape.drop(cut, mixed)
    return active


def _decays(tape: Tape, x: Tensor, delta: DeltaNet, ctx: Context) -> Tensor:
    """`-exp(A) * softplus(x + bias)`, fp32."""
    heads = delta.value_heads
    rate = cast(tape, parameter(heads, ctx.width, ctx.full), 4)
    grown = tape.op(heads, 4, (rate,), saves_out=True)
    negative = scale(tape, grown)
    wide = cast(tape, x, 4)
    moved = tape.op(x.count, 4, (wide, parameter(heads, ctx.width, ctx.full)), grads=(PASS, NEW))
    soft = tape.op(x.count, 4, (moved,), (moved,))
    temporaries = (soft.size,) if negative.grad else ()
    out = tape.op(x.count, 4, (negative, soft), operands(soft, negative), temporaries=temporaries)
    tape.drop(rate, grown, negative, wide, moved, soft)
    return out


def _repeated(tape: Tape, x: Tensor, groups: int) -> Tensor:
    """A copy for each value head; backward sums; `x` is consumed."""
    out = tape.op(x.count * groups, x.width, (x,))
    tape.drop(x)
    return out


def _gated_norm(tape: Tape, x: Tensor, gate: Tensor, delta: DeltaNet, ctx: Context) -> Tensor:
    """The norm's output times silu(gate) in fp32, cast back."""
    normed = norm(tape, x, delta.norm, ctx)
    wide = cast(tape, gate, 4)
    opened = tape.op(wide.count, 4, (wide,), (wide,))
    tape.drop(wide)
    product = multiply(tape, normed, opened)
    tape.drop(opened)
    out = cast(tape, product, x.width)
    tape.drop(product, normed)
    return out


def _keep(tape: Tape, count: int, width: int) -> None:
    """A state of the cache appears, and stays."""
    tape.new(count, width, component="kv_cache")
