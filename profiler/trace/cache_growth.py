"""Grows a cache on the meta device by many tokens at once, as that many decode steps would."""

from __future__ import annotations

from typing import Any

import torch

from estimator.errors import UnsupportedError

_GROWING = ("keys", "values", "indexer_keys")
"""Tensors of a cache layer that hold an entry a token, and the dimension of the tokens, which is
the last but one in all of them."""

_CONSTANT_STATES = ("state", "cache_params")
"""What recurrent models carry: the same size after any number of tokens."""


def grow(carried: dict[str, Any], count: int) -> None:
    """Grow what a model carries from step to step by `count` tokens, in place.

    Raises:
        UnsupportedError: for a state whose growth is not known here.
    """
    for name, cache in carried.items():
        layers = getattr(cache, "layers", None)
        if layers is None:
            if name not in _CONSTANT_STATES:
                raise _unknown(cache)
            continue
        for layer in layers:
            _grow_layer(layer, count)


def _grow_layer(layer: Any, count: int) -> None:
    kind = type(layer).__name__
    if kind not in _KNOWN:
        raise _unknown(layer)
    if "Static" in kind:
        if getattr(layer, "keys", None) is not None:
            layer.cumulative_length += count
        return
    if getattr(layer, "keys", None) is None:
        # Recurrent and convolution states only, or a layer that keeps nothing.
        return
    window = None
    if getattr(layer, "is_sliding", False):
        layer.cumulative_length += count
        window = layer.sliding_window - 1
    for name in _GROWING:
        old = getattr(layer, name, None)
        if old is None:
            continue
        length = old.shape[-2] + count
        if window is not None:
            length = min(length, window)
        shape = (*old.shape[:-2], length, old.shape[-1])
        setattr(layer, name, torch.empty(shape, dtype=old.dtype, device="meta"))


_KNOWN = {
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
}
"""Classes of transformers.cache_utils whose growth is that of the tensors above."""


def _unknown(cache: Any) -> UnsupportedError:
    return UnsupportedError(
        f"many decode steps cannot be traced for a cache of {type(cache).__name__}; "
        "trace with max_new_tokens up to 4"
    )
