"""Grows a cache on the meta device by many tokens at once, as that many decode steps would.

Source: transformers/cache_utils.py, and the caches of deepseek_v4, minimax_m3_vl and xlnet.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from estimator.allocator import ROUND_LARGE_BYTES
from estimator.errors import UnsupportedError

_GROWING = ("keys", "values", "indexer_keys", "idx_keys")
"""Tensors of a cache layer that hold an entry a token, in their last dimension but one."""

_CONSTANT_STATES = ("state", "cache_params")
"""What recurrent models carry: the same size after any number of tokens."""

_KNOWN_LAYERS = {
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "DynamicIndexedLayer",
    "StaticLayer",
    "StaticSlidingWindowLayer",
    "StaticIndexedLayer",
    "LinearAttentionLayer",
    "LinearAttentionAndFullAttentionLayer",
    "LinearAttentionAndSlidingWindowAttentionLayer",
    "LinearAttentionAndStaticFullAttentionLayer",
    "LinearAttentionAndStaticSlidingWindowAttentionLayer",
    "QuantoQuantizedLayer",
    "DeepseekV4HCACache",
    "DeepseekV4CSACache",
    "MiniMaxM3VLSparseCacheLayer",
}
"""Classes of cache layers whose growth is what is written here."""


def grow(carried: dict[str, Any], count: int) -> None:
    """Grow what a model carries from step to step by `count` tokens, in place.

    Raises:
        UnsupportedError: for a state whose growth is not known here.
    """
    for name, cache in carried.items():
        layers = getattr(cache, "layers", None)
        if isinstance(cache, tuple) and all(isinstance(item, torch.Tensor) for item in cache):
            # XLNet's memories, [tokens, batch, hidden]: XLNetModel.cache_mem. generate names the
            # tensors, too: they get other storages.
            for item in cache:
                item.data = _resized(item, 0, item.shape[0] + count)
        elif layers is None:
            if name not in _CONSTANT_STATES:
                raise _unknown(cache)
        else:
            for layer in layers:
                _grow_layer(layer, count)


def stride(cached: Iterable[Any]) -> int:
    """Return the tokens after which the largest of a cache's tensors needs a larger segment.

    A segment is larger than its block by up to 2 MiB, which steps in between grow into; then all
    layers need new ones, and no freed one is large enough for the next.
    """
    rows: list[int] = [t.nbytes // t.shape[-2] for t in cached if t.dim() > 1 and t.shape[-2]]
    return max(1, ROUND_LARGE_BYTES // max([1, *rows]))


def _grow_layer(layer: Any, count: int) -> None:
    kind = type(layer).__name__
    if kind not in _KNOWN_LAYERS:
        raise _unknown(layer)
    if getattr(layer, "keys", None) is None:
        # Recurrent and convolution states only, or a layer that keeps nothing.
        return
    if kind == "QuantoQuantizedLayer":
        _grow_quantized(layer, count)
        return
    if "Static" in kind:
        # Early releases of transformers 5 count a full static layer's tokens by its values.
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length += count
        return
    window = None
    if getattr(layer, "is_sliding", False):
        layer.cumulative_length += count
        window = layer.sliding_window - 1
    shared = layer.values is layer.keys
    for name in _GROWING:
        old = getattr(layer, name, None)
        if old is not None:
            length = old.shape[-2] + count
            setattr(
                layer, name, _resized(old, -2, length if window is None else min(length, window))
            )
    if shared:
        layer.values = layer.keys
    if hasattr(layer, "compressed_kv"):
        _grow_compressed(layer, count)


def _grow_compressed(layer: Any, count: int) -> None:
    """DeepSeek V4's long range: an entry for each full window of tokens; the rest is buffered."""
    for name, old in layer.buffer_kv.items():
        if old is None or layer.compressed_kv[name] is None:
            continue
        closed, rest = divmod(old.shape[1] + count, layer.compress_rate)
        entries = layer.compressed_kv[name].shape[1] + closed
        layer.entry_count[name] += closed
        layer.compressed_kv[name] = _resized(layer.compressed_kv[name], 1, entries)
        layer.buffer_kv[name] = _resized(old, 1, rest)
        layer.buffer_gate[name] = _resized(layer.buffer_gate[name], 1, rest)


def _resized(tensor: Any, dimension: int, length: int) -> Any:
    shape = list(tensor.shape)
    shape[dimension] = length
    return torch.empty(shape, dtype=tensor.dtype, device="meta")


def _unknown(cache: Any) -> UnsupportedError:
    return UnsupportedError(
        f"many decode steps cannot be traced for a cache of {type(cache).__name__}; "
        "trace with max_new_tokens up to 4"
    )


def _grow_quantized(layer: Any, count: int) -> None:
    """Quantize anew what steps in between would have, and keep the newest tokens as they are."""
    batch, heads, _, dim = layer._quantized_keys.shape
    dtype, device = layer.keys.dtype, layer.keys.device
    layer.cumulative_length += count
    held = layer.keys.shape[-2] if layer.keys.dim() == 4 else 0
    residual = (held + count) % layer.residual_length
    if held + count >= layer.residual_length:
        shape = (batch, heads, layer.cumulative_length - residual, dim)
        past = torch.empty(shape, dtype=dtype, device=device)
        layer._quantized_keys = layer._quantize(past, axis=layer.axis_key)
        layer._quantized_values = layer._quantize(past, axis=layer.axis_value)
        del past
    for name in ("keys", "values"):
        newest = torch.empty((batch, heads, residual, dim), dtype=dtype, device=device)
        # Without any it is a tensor of one dimension, by which the layer knows.
        setattr(layer, name, newest if residual else newest.flatten())
