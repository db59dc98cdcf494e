"""Formulas of self-attention: projections, rotary positions, the cache, and the block around
the kernels (see kernels.py).

Source: transformers/models/llama/modeling_llama.py (`LlamaAttention.forward`), cache_utils.py.
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.events import Storage
from estimator.architecture.kernels import attend
from estimator.architecture.norms import norm, norm_by_head
from estimator.architecture.output_gates import early_gate, gated_output
from estimator.architecture.parts import linear, low_rank_sum, scale
from estimator.architecture.quantized_cache import quantized_update
from estimator.architecture.rotary import rotate_states
from estimator.architecture.static_cache import fill_slots
from estimator.architecture.tape import Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output and, for eager, the probabilities that its caller still holds."""
    fused = None
    gate = None
    if spec.fused is None:
        query, key, value, gate = _project(tape, x, spec, ctx)
    else:
        fused = linear(tape, x, spec.fused, ctx)
        query, key, value = _views(tape, fused, spec, ctx)
    if fused is not None and not spec.rotary:
        tape.drop(fused)
        fused = None
    held: tuple[Tensor, ...] = ()
    if spec.rotary:
        rotated = rotate_states(tape, query, key, spec, ctx)
        # Both originals live until both rotations are done.
        tape.drop(query, key)
        query, key, held = rotated.query, rotated.key, rotated.held
    if spec.norm_after_rotary:
        query, key = _normed(tape, query, key, spec, ctx)
    if spec.query_scaled:
        query = _scaled_by_position(tape, query, ctx)
    if ctx.cached:
        cached = grow_cache(tape, key, value, spec, ctx)
        if spec.fused is not None:
            tape.drop(key, value)
        key, value = cached
    # What is joined of parts lies head by head.
    joined = spec.rotary and (spec.rotary_dim is not None or spec.rotary_style == "chunked")
    by_head = spec.norm_by_head or joined
    out, probabilities = attend(tape, query, key, value, spec, ctx, by_head)
    if spec.output_norm is not None:
        attended, out = out, norm(tape, out, spec.output_norm, ctx)
        tape.drop(attended)
    out = gated_output(tape, out, x, gate, spec, ctx)
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, query, fused, gate, *held)
    if not ctx.stores_all:
        # Else they belong to the cache.
        tape.drop(key, value)
    return result, probabilities


def _project(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return queries, keys and values, and a gate where it is projected beside them."""
    assert spec.query is not None
    assert spec.key is not None
    assert spec.value is not None
    query = linear(tape, x, spec.query, ctx)
    if spec.query_multiplied:
        projected, query = query, scale(tape, query)
        tape.drop(projected)
    at_once = not spec.norm_after_projections and not spec.norm_after_rotary
    if at_once:
        query = _query_normed(tape, query, spec, ctx)
    key = linear(tape, x, spec.key, ctx)
    if spec.key_multiplied:
        projected, key = key, scale(tape, key)
        tape.drop(projected)
    if at_once:
        key = _key_normed(tape, key, spec, ctx)
    value = linear(tape, x, spec.value, ctx)
    if spec.value_scaled:
        projected, value = value, scale(tape, value)
        tape.drop(projected)
    if spec.adapters:
        query, key, value = _added(tape, x, (query, key, value), spec, ctx)
    gate = early_gate(tape, x, spec, ctx)
    if spec.norm_after_projections:
        query, key = _normed(tape, query, key, spec, ctx)
    return query, key, value, gate


def _added(
    tape: Tape, x: Tensor, states: tuple[Tensor, ...], spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with what linears through a narrow rank add; they are consumed."""
    query, key, value = (
        low_rank_sum(tape, x, state, pair, ctx)
        for state, pair in zip(states, spec.adapters, strict=True)
    )
    return query, key, value


def _views(
    tape: Tape, fused: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as views of one product.

    Where positions rotate them they are slices, each with a gradient of its own (Phi-3), else
    parts whose gradients are joined (GPT-2).
    """
    if not spec.rotary:
        query, key, value = tape.split(fused, (fused.count // 3,) * 3, fused.size)
        return query, key, value
    rows = ctx.tokens * spec.head_dim
    query = tape.view(fused, rows * spec.heads, fused.size)
    key = tape.view(fused, rows * spec.kv_heads, fused.size)
    value = tape.view(fused, rows * spec.kv_heads, fused.size)
    query, key = _normed(tape, query, key, spec, ctx)
    return query, key, value


def _scaled_by_position(tape: Tape, query: Tensor, ctx: Context) -> Tensor:
    """Ministral 3's `query * scale`, one number a position, made by each layer."""
    factor = tape.new(ctx.positions, ctx.width)
    out = tape.op(query.count, query.width, (query,), (factor,))
    tape.drop(query, factor)
    return out


def _normed(
    tape: Tape, query: Tensor, key: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor]:
    """Normalize queries and keys where the family does; both are consumed."""
    query = _query_normed(tape, query, spec, ctx)
    return query, _key_normed(tape, key, spec, ctx)


def _query_normed(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> Tensor:
    if spec.qk_norm is not None and spec.norm_by_head:
        out = norm_by_head(tape, x, spec.qk_norm, spec.heads, ctx)
    else:
        out = norm(tape, x, spec.qk_norm, ctx)
    tape.drop(x)
    return out


def _key_normed(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> Tensor:
    if spec.qk_norm is not None and spec.norm_by_head:
        out = norm_by_head(tape, x, spec.qk_norm, spec.kv_heads, ctx)
    else:
        out = norm(tape, x, spec.key_norm or spec.qk_norm, ctx)
    tape.drop(x)
    return out


def grow_cache(
    tape: Tape,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    consumes: bool | None = None,
) -> tuple[Tensor, Tensor]:
    """DynamicCache grows by concatenation: the new keys exist beside the old for a moment.

    Caches that were tuples kept the old ones until the step's end.

    Args:
        consumes: whether the caller's names now are the cache's (without a fused projection,
            unless this says otherwise).

    Source: transformers/cache_utils.py, `DynamicLayer.update`,
    `DynamicSlidingWindowLayer.update`.
    """
    consumed = spec.fused is None if consumes is None else consumes
    tape.cache_widths = key.width, value.width
    if ctx.cache != "dynamic":
        update = quantized_update if ctx.cache == "quantized" else fill_slots
        read = update(tape, key, value, spec, ctx)
        if consumed:
            tape.drop(key, value)
        return read
    made = []
    # An empty tensor of the keys' dtype comes first: what is narrower is joined in that.
    width = promoted(key.width, value.width)
    for features in spec.cached_features[:2]:
        row = ctx.batch * features
        made.append(tape.new(row * ctx.keys, width, component="kv_cache"))
        if ctx.held_keys and spec.window is None and not ctx.stack.tuple_cache:
            free_old(tape, row * ctx.held_keys, width)
    if ctx.held_keys and spec.window is not None and not ctx.stack.tuple_cache:
        # A sliding layer joins both before it cuts both.
        for features in spec.cached_features[:2]:
            free_old(tape, ctx.batch * features * ctx.held_keys, width)
    if consumed:
        tape.drop(key, value)
    return made[0], made[1]


def free_old(tape: Tape, count: int, width: int) -> None:
    """Free what the cache held before this step."""
    tape.drop(Tensor(count, width, False, Storage(count * width, "kv_cache")))
