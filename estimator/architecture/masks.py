"""Bytes of the masks and of the biases by distance (ALiBi) that all layers share."""

from __future__ import annotations

from estimator.architecture.context import Context, layer_keys
from estimator.architecture.stretches import distinct_layers
from estimator.spec import ModelSpec

Masks = dict[int | None, int]
"""Bytes by the window that a mask is for, None for a full one."""


def attention_masks(spec: ModelSpec, ctx: Context) -> Masks:
    """Return the bytes of the masks that layers share: [B, 1, Q, K] each.

    eager adds one in the weights' dtype; sdpa is given a boolean one only where a window is
    reached (transformers/masking_utils.py, `eager_mask` and `sdpa_mask`), or always by Falcon,
    whose distances make it one a head.
    """
    # For a static cache generate makes the masks, of the windows that layers have.
    made_before = ctx.cache == "static"
    used = {layer.attention.window for layer in distinct_layers(spec)}
    windows = used if made_before else spec.masks or used
    keys = {window: layer_keys(window, ctx) for window in windows}
    rows = ctx.batch * ctx.queries
    if spec.mask_style == "none":
        return {}
    if ctx.attention == "flash_attention_2" or ctx.cache == "paged":
        # Kernels of pages know what a page holds.
        return {}
    if spec.mask_style == "by_head":
        return {w: rows * spec.heads * count * ctx.width for w, count in keys.items()}
    if ctx.attention == "eager":
        width = 1 if spec.mask_style == "boolean" else ctx.mask_like
        return {window: rows * count * width for window, count in keys.items()}
    if spec.mask_style in ("always", "each"):
        # generate's is one for all sequences.
        rows = ctx.queries if made_before and spec.mask_style == "always" else rows
        return {window: rows * count for window, count in keys.items()}
    # With a static cache a step masks what is not filled yet.
    step = bool(ctx.slots and ctx.held_keys)
    return {w: rows * count for w, count in keys.items() if step or (w is not None and count >= w)}


def kept_masks(masks: Masks, spec: ModelSpec, ctx: Context) -> Masks:
    """Return the masks that backward needs, or that checkpointing keeps among the arguments of
    its second passes."""
    # A mask a head reaches the kernel as it is, unless it has to be padded.
    given = spec.mask_style == "by_head" and ctx.attention == "sdpa" and ctx.keys % 16 == 0
    if not (ctx.checkpointing or ctx.selective or given or spec.mask_style == "boolean"):
        return {}
    # What keeps a state is given no mask.
    attentions = (layer.attention for layer in distinct_layers(spec))
    used = {attention.window for attention in attentions if attention.mixer is None}
    return {window: size for window, size in masks.items() if window in used}


def distance_bytes(spec: ModelSpec, ctx: Context) -> int:
    """Return the bytes of the biases by distance, which the model's forward holds.

    For each sequence's `tokens`, [B * heads, 1, K] in the model's dtype (Bloom, Falcon); for all
    `positions`, [heads, 1, positions] in fp32 (MPT).
    """
    kind = spec.layers[0].attention.distances
    if kind == "tokens":
        # They are made like what a norm of the embeddings has made fp32 under autocast.
        width = 4 if ctx.amp and spec.embedding_norm is not None else ctx.width
        return ctx.batch * spec.heads * ctx.keys * width
    if kind == "positions":
        assert spec.max_positions is not None
        return 4 * spec.heads * spec.max_positions
    return 0
