"""Formulas of DeepSeek's sparse attention: an indexer chooses keys for each query of latent heads.

The choice is folded into the mask: scores of all pairs are computed, by the indexer too, in fp32
and for each of its heads. The cache holds the heads' keys and values, and the indexer's keys.

Symbols: B batch, Q queries and K keys a sequence, T = B * Q, H heads of the indexer, D their size.
Source: transformers/models/deepseek_v32/modeling_deepseek_v32.py (`DeepseekV32Attention.forward`,
`DeepseekV32Indexer.forward`), glm_moe_dsa.
"""

from __future__ import annotations

from estimator.allocator import expected_block
from estimator.architecture.attention import free_old, grow_cache
from estimator.architecture.context import Context
from estimator.architecture.events import Storage
from estimator.architecture.inventory import Held
from estimator.architecture.kernels import attend
from estimator.architecture.latent import expanded, joined
from estimator.architecture.norms import norm
from estimator.architecture.pair_rotary import ROTATIONS
from estimator.architecture.parts import cast, linear, product_input
from estimator.architecture.tape import Tape, Tensor
from estimator.architecture.widths import promoted
from estimator.spec import Attention, Indexer, Layer


def attention(tape: Tape, x: Tensor, spec: Attention, ctx: Context) -> tuple[Tensor, Tensor | None]:
    """Return the block's output, and what its caller still holds: for eager the probabilities, else
    the choice of keys where layers hand it on."""
    latent = spec.latent
    assert latent is not None
    assert latent.query_down is not None
    assert spec.query is not None
    down = linear(tape, x, latent.query_down, ctx)
    residual = norm(tape, down, latent.query_norm, ctx)
    tape.drop(down)
    whole = linear(tape, residual, spec.query, ctx)
    rope = ctx.tokens * latent.rope_dim
    parts = (ctx.tokens * spec.heads * latent.nope_dim, rope * spec.heads)
    query_pass, query_turned = tape.split(whole, parts, whole.size)
    compressed = linear(tape, x, latent.down, ctx)
    raw, shared_key = tape.split(compressed, (ctx.tokens * latent.rank, rope), compressed.size)
    inner = norm(tape, raw, latent.norm, ctx)
    turn = ROTATIONS[latent.rotation]
    query_rotated = turn(tape, query_turned, ctx.outer_width)
    key_rotated = turn(tape, shared_key, ctx.outer_width)
    tape.drop(query_turned, shared_key)
    query = joined(tape, query_pass.count + query_rotated.count, query_pass, query_rotated)
    key, value = expanded(tape, inner, key_rotated, spec, latent, ctx)
    if ctx.cached:
        key, value = grow_cache(tape, key, value, spec, ctx)
    if spec.indexer is None:
        chosen = Tensor(choice_count(spec, ctx), 4, False, None)
    else:
        chosen = _choice(tape, x, residual, spec, ctx)
    masks = _masks(tape, chosen, ctx)
    out, probabilities = attend(tape, query, key, value, spec, ctx, by_head=True, mask=masks[1])
    result = linear(tape, out, spec.output, ctx)
    tape.drop(out, query, whole, query_pass, query_rotated, compressed, raw, inner, key_rotated)
    tape.drop(residual, *masks)
    if not ctx.stores_all:
        # Else they belong to the cache.
        tape.drop(key, value)
    handed = spec.handed_choice
    if handed is not None and handed.read and tape.discard and chosen.storage is not None:
        # Checkpointing keeps it among the arguments of the next layer.
        chosen.storage.saved = True
        return result, probabilities
    if handed is not None and probabilities is None:
        return result, chosen
    tape.drop(chosen)
    return result, probabilities


def choice_count(spec: Attention, ctx: Context) -> int:
    """Return the elements of a choice that layers hand on, 4 bytes each."""
    assert spec.handed_choice is not None
    return ctx.tokens * min(spec.handed_choice.most, ctx.keys)


def held_choice(layer: Layer, ctx: Context) -> Held:
    """Return the bytes of the choice that the model's loop names after a layer, until the next one
    returns; what checkpointing keeps is counted with the layers."""
    handed = layer.attention.handed_choice
    if handed is None or (ctx.checkpointing and handed.read):
        return Held()
    size = 4 * choice_count(layer.attention, ctx)
    return Held(size, expected_block(size))


def release_choice(tape: Tape, layer: Layer, ctx: Context) -> None:
    """Let go of the choice that checkpointing kept for a layer and for those after it."""
    handed = layer.attention.handed_choice
    if handed is not None and handed.of_previous:
        count = choice_count(layer.attention, ctx)
        tape.drop(Tensor(count, 4, False, Storage(4 * count, "activations")))


def _choice(tape: Tape, x: Tensor, residual: Tensor, spec: Attention, ctx: Context) -> Tensor:
    """Return the numbers of the chosen keys, [B, Q, k] int32; autograd records none of it."""
    indexer = spec.indexer
    assert indexer is not None
    recording, tape.recording = tape.recording, False
    query, query_names = _turned(tape, linear(tape, residual, indexer.query, ctx), spec, ctx)
    projected = linear(tape, x, indexer.key, ctx)
    normed = norm(tape, projected, indexer.norm, ctx)
    tape.drop(projected)
    key, key_names = _turned(tape, normed, spec, ctx)
    if ctx.cached:
        key = _grow_keys(tape, key, indexer, ctx)
    scores = _scores(tape, query, key, indexer, ctx)
    narrow = linear(tape, x, indexer.weights, ctx)
    wide = cast(tape, narrow, 4)
    tape.drop(narrow)
    weights = tape.new(wide.count, 4)
    tape.drop(wide)
    read = product_input(tape, weights, ctx)
    summed = tape.new(ctx.tokens * ctx.keys, scores.width)
    tape.drop(read)
    eager = ctx.attention == "eager"
    # sdpa's mask is boolean, and inverted first; eager's is added.
    inverted = None if eager else tape.new(summed.count, 1)
    masked = tape.new(summed.count, promoted(summed.width, ctx.width) if eager else summed.width)
    tape.drop(inverted, summed)
    count = ctx.tokens * min(indexer.chosen, ctx.keys)
    best, numbers = tape.new(count, masked.width), tape.new(count, 8)
    tape.drop(best)
    chosen = tape.new(count, 4)
    tape.drop(numbers, masked, weights, scores, query, *query_names, *key_names)
    if not ctx.cached:
        # Else it is the cache's.
        tape.drop(key)
    tape.recording = recording
    return chosen


def _turned(
    tape: Tape, x: Tensor, spec: Attention, ctx: Context
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Rotate some features of each head of queries or keys, which are consumed.

    Returns:
        all features joined again, and what the code still names: the two parts.
    """
    assert spec.indexer is not None
    assert spec.latent is not None
    count = x.count * spec.latent.rope_dim // spec.indexer.head_dim
    first, rest = tape.split(x, (count, x.count - count), x.size)
    turned = ROTATIONS[spec.indexer.rotation](tape, first, ctx.outer_width)
    tape.drop(first)
    out = tape.new(x.count, promoted(turned.width, rest.width))
    tape.drop(x)
    return out, (turned, rest)


def _grow_keys(tape: Tape, key: Tensor, indexer: Indexer, ctx: Context) -> Tensor:
    """Join the indexer's keys (consumed) to those of the cache.

    Source: transformers/cache_utils.py, `DynamicIndexedLayer.update_indexer` and
    `StaticIndexedLayer.update_indexer`.
    """
    assert tape.cache_widths is not None
    tape.cache_widths = (*tape.cache_widths, key.width)
    row = ctx.batch * indexer.head_dim
    if ctx.cache == "static":
        slots = Tensor(row * ctx.slots, key.width, False, None)
        if not ctx.held_keys:
            slots = tape.new(slots.count, slots.width, component="kv_cache")
            tape.new(1, 8, component="kv_cache")
        positions = [tape.new(ctx.queries, 8) for _ in range(2)]
        tape.drop(key, *positions)
        return slots
    grown = tape.new(row * ctx.keys, key.width, component="kv_cache")
    if ctx.held_keys:
        free_old(tape, row * ctx.held_keys, key.width)
    tape.drop(key)
    return grown


def _scores(tape: Tape, query: Tensor, key: Tensor, indexer: Indexer, ctx: Context) -> Tensor:
    """Return the scores of each head, [B, Q, H, K], scaled and cut off below zero, in fp32.

    The product reads the keys once for every query: with several sequences of several queries they
    are copied.
    """
    operands = []
    for given in (query, key):
        wide = cast(tape, given, 4)
        operands += [product_input(tape, wide, ctx), wide]
    width = operands[0].width
    if ctx.batch > 1 and ctx.queries > 1:
        operands.append(tape.new(ctx.tokens * indexer.head_dim * ctx.keys, width))
    product = tape.new(ctx.tokens * indexer.heads * ctx.keys, width)
    tape.drop(*operands)
    scaled = tape.new(product.count, width)
    tape.drop(product)
    out = tape.new(product.count, width)
    tape.drop(scaled)
    return out


def _masks(tape: Tape, chosen: Tensor, ctx: Context) -> tuple[Tensor, Tensor]:
    """Return the mask of what was not chosen, boolean, and what attention is given, both [B, 1, Q,
    K]: the model's mask joined with it."""
    count = ctx.tokens * ctx.keys
    ones, numbers = tape.new(count, 1), tape.new(chosen.count, 8)
    others = tape.new(count, 1)
    tape.drop(ones, numbers)
    if ctx.attention == "eager":
        return others, tape.new(count, ctx.width)
    inverted = tape.new(count, 1)
    given = tape.new(count, 1)
    tape.drop(inverted)
    return others, given
