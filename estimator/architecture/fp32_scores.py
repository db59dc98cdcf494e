"""Formulas of attention that casts queries and keys to fp32: GPT-J, CodeGen, GPT-Neo.

None of them calls sdpa: scores, softmax and mask are S**2 tensors in fp32, whatever the model's
dtype. GPT-J and CodeGen look their positions' sines and cosines up, layer by layer.

Source: transformers/models/{gptj,codegen,gpt_neo}/modeling_*.py.
"""

from __future__ import annotations

from estimator.architecture.attention import grow_cache
from estimator.architecture.context import Context
from estimator.architecture.eager_attention import add_mask, fp32_softmax, operand
from estimator.architecture.moe import feed_forward
from estimator.architecture.norms import norm
from estimator.architecture.parts import (
    add,
    cast,
    dropout,
    linear,
    operands,
    product_input,
    scale,
)
from estimator.architecture.rotary import rotate
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention, Layer

_Held = tuple[Tensor, ...]


def gptj_attention(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """`GPTJAttention.forward`: separate projections, tables gathered in the keys' dtype."""
    query, key, value = _projected(tape, x, spec, ctx)
    assert spec.rotary_dim is not None
    features = ctx.positions * spec.rotary_dim
    assert spec.positions is not None
    # The whole table, once for each row of positions.
    copies = ctx.positions // ctx.queries
    positions = tape.new(copies * spec.positions * spec.rotary_dim, 4)
    indices = tape.new(features, 8)
    found = tape.new(features, 4)
    tables = cast(tape, found, key.width)
    tape.drop(found)
    query, key, held = _rotated(tape, query, key, spec, ctx, tables)
    value = _by_head(tape, value)
    return _finished(tape, query, key, value, spec, ctx, (*held, positions, indices), x.width)


def codegen_attention(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """`CodeGenAttention.forward`: one projection, whose parts are copied; tables stay in fp32."""
    assert spec.fused is not None
    assert spec.rotary_dim is not None
    fused = linear(tape, x, spec.fused, ctx)
    count = fused.count // 3
    parts = tape.split(fused, (count, count, count), fused.size)
    query, key, value = (tape.op(count, fused.width, (part,), grads=(PASS,)) for part in parts)
    tables = tape.new(ctx.positions * spec.rotary_dim, 4)
    query, key, held = _rotated(tape, query, key, spec, ctx, tables)
    return _finished(tape, query, key, value, spec, ctx, (*held, fused, *parts), x.width)


def gpt_neo_attention(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor | None]:
    """`GPTNeoSelfAttention.forward`: no rotation; a buffer masks what is not to be seen."""
    query, key, value = (_by_head(tape, part) for part in _projected(tape, x, spec, ctx))
    return _finished(tape, query, key, value, spec, ctx, (), x.width)


def parallel_layer(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    """`GPTJBlock.forward`: attention and MLP of one norm, added to each other first."""
    from estimator.architecture.attentions import self_attention

    normed = norm(tape, x, spec.input_norm, ctx)
    attended, probabilities = self_attention(tape, normed, spec.attention, ctx)
    attended = _dropped(tape, attended, spec, ctx)
    fed = _dropped(tape, feed_forward(tape, normed, spec.mlp, ctx), spec, ctx)
    both = add(tape, attended, fed)
    out = add(tape, both, x)
    tape.drop(both, normed, attended, fed, probabilities)
    return out


def _dropped(tape: Tape, x: Tensor, spec: Layer, ctx: Context) -> Tensor:
    out = dropout(tape, x, spec.dropout, ctx)
    tape.drop(x)
    return out


def _projected(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor, Tensor]:
    assert spec.query is not None
    assert spec.key is not None
    assert spec.value is not None
    query = linear(tape, x, spec.query, ctx)
    key = linear(tape, x, spec.key, ctx)
    return query, key, linear(tape, x, spec.value, ctx)


def _by_head(tape: Tape, x: Tensor) -> Tensor:
    """A view whose gradient comes head by head, and is copied into rows of tokens."""
    out = tape.view(x, x.count, x.size)
    tape.drop(x)
    return out


def _rotated(
    tape: Tape, query: Tensor, key: Tensor, spec: Attention, ctx: Context, tables: Tensor
) -> tuple[Tensor, Tensor, _Held]:
    """Rotate the first features of each head, keys before queries; sine and cosine are repeated
    for each of the two. Consumes all; what is returned last is named until the end."""
    assert spec.rotary_dim is not None
    parts: list[Tensor] = []
    for x in (key, query):
        share = x.count * spec.rotary_dim // spec.head_dim
        parts += [tape.view(x, share, x.size), tape.view(x, x.count - share, x.size)]
    turned = []
    for first in parts[::2]:
        repeated = tuple(tape.new(ctx.positions * spec.rotary_dim, tables.width) for _ in range(2))
        turned.append(rotate(tape, first, repeated))
        tape.drop(first, *repeated)
    joined = []
    for first, rest in zip(turned, parts[1::2], strict=True):
        width = promoted(first.width, rest.width)
        grads = tuple(PASS if part.width == width else -1 for part in (first, rest))
        joined.append(tape.op(query.count, width, (first, rest), grads=grads))
    return joined[1], joined[0], (query, key, tables, *turned, *parts[1::2])


def _finished(
    tape: Tape,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spec: Attention,
    ctx: Context,
    held: _Held,
    given_width: int,
) -> tuple[Tensor, Tensor | None]:
    """The cache, the scores and the output's projection; consumes all that is given.

    Args:
        given_width: bytes of an element of the block's input, which keys are cached in.
    """
    if ctx.cached:
        if key.width > given_width:
            wide, key = key, cast(tape, key, given_width)
            tape.drop(wide)
        key, value = grow_cache(tape, key, value, spec, ctx, consumes=True)
    product, probabilities = _scores(tape, query, key, value, spec, ctx)
    merged = product
    if ctx.queries > 1:
        merged = tape.op(product.count, product.width, (product,), grads=(PASS,))
        tape.drop(product)
    result = linear(tape, merged, spec.output, ctx)
    tape.drop(merged, query, *held)
    if not ctx.stores_all:
        tape.drop(key, value)
    return result, probabilities


def _scores(
    tape: Tape, query: Tensor, key: Tensor, value: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, Tensor]:
    """`_attn`: softmax(q k + mask) v, all but the last product in fp32."""
    q32, k32 = cast(tape, query, 4), cast(tape, key, 4)
    # matmul lays out what is not laid out head by head; what comes from the cache is.
    copied = ctx.batch > 1 and ctx.queries > 1
    q_mat = operand(tape, q32, ctx, copied)
    copied_keys = copied and not ctx.cached
    k_mat = operand(tape, k32, ctx, copied_keys)
    count = ctx.batch * spec.heads * ctx.queries * ctx.keys
    raw = tape.op(count, q_mat.width, (q_mat, k_mat), operands(q_mat, k_mat))
    tape.drop(q_mat, k_mat)
    scaled = scale(tape, raw)
    tape.drop(raw)
    scores = add_mask(tape, scaled, ctx.width)
    tape.drop(scaled)
    wide = fp32_softmax(tape, scores, ctx)
    tape.drop(scores)
    probabilities = cast(tape, wide, value.width)
    tape.drop(wide)
    weights = dropout(tape, probabilities, spec.dropout, ctx)
    tape.drop(probabilities)
    w_read, v_mat = product_input(tape, weights, ctx), operand(tape, value, ctx, copied_keys)
    product = tape.op(query.count, v_mat.width, (w_read, v_mat), operands(w_read, v_mat))
    tape.drop(w_read, v_mat, q32, k32)
    tape.probabilities_width = weights.width
    return product, weights
