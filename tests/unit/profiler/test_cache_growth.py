"""Skipped decode steps: a cache that is grown at once is what the steps would have made of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from estimator.errors import UnsupportedError
from profiler.trace.cache_growth import grow


def states(tokens: int, heads: int = 2, size: int = 4) -> Any:
    return torch.empty(1, heads, tokens, size, device="meta")


def config(**values: Any) -> Any:
    return transformers.LlamaConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=16, **values
    )


def sliding_config() -> Any:
    return transformers.MistralConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, vocab_size=16, sliding_window=8
    )


def played(cache: Any, prompt: int, steps: int) -> Any:
    for layer in range(2):
        cache.update(states(prompt), states(prompt), layer)
    for _ in range(steps):
        for layer in range(2):
            cache.update(states(1), states(1), layer)
    return cache


def sizes(cache: Any) -> list[Any]:
    return [(layer.keys.shape, layer.values.shape) for layer in cache.layers]


@pytest.mark.parametrize(("prompt", "steps"), [(5, 1), (5, 30), (12, 3)])
@pytest.mark.parametrize("make", [config, sliding_config])
def test_a_dynamic_cache_grows_as_if_played(make: Any, prompt: int, steps: int) -> None:
    expected = played(transformers.DynamicCache(config=make()), prompt, steps)
    grown = played(transformers.DynamicCache(config=make()), prompt, 0)
    grow({"past_key_values": grown}, steps)
    assert sizes(grown) == sizes(expected)
    assert grown.get_seq_length() == expected.get_seq_length()


def test_indexer_keys_grow_with_the_keys() -> None:
    layer = transformers.cache_utils.DynamicIndexedLayer()
    layer.update(states(5), states(5))
    layer.update_indexer(torch.empty(1, 5, 4, device="meta"))
    cache = transformers.cache_utils.Cache(layers=[layer])
    grow({"past_key_values": cache}, 7)
    assert layer.keys.shape[-2] == layer.indexer_keys.shape[-2] == 12


def test_recurrent_states_stay_as_they_are() -> None:
    layer = transformers.cache_utils.LinearAttentionLayer()
    layer.update_conv_state(torch.empty(1, 3, 4, device="meta"))
    cache = transformers.cache_utils.Cache(layers=[layer])
    grow({"cache_params": cache}, 7)
    assert layer.conv_states[0].shape == (1, 3, 4)
    grow({"state": [torch.empty(1, 3, device="meta")]}, 7)


def test_an_unknown_state_is_refused_in_one_sentence() -> None:
    with pytest.raises(UnsupportedError, match="max_new_tokens up to 4") as caught:
        grow({"past_key_values": [torch.empty(5, 1, 4, device="meta")]}, 7)
    assert "\n" not in str(caught.value)
