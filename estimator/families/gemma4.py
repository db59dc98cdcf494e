"""Gemma 4, text: wide heads in full layers, values normalized, experts beside the MLP.

Source: transformers/models/gemma4/{modeling,configuration}_gemma4.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from estimator.families.blocks import (
    Sizes,
    attention,
    by_kind,
    every,
    gated_mlp,
    layer_windows,
    model,
    read_sizes,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Moe, Norm

_SCALE_BYTES = 2
"""The embeddings' factor, and each layer's, is a buffer of one number in the weights' dtype."""


def parse(reader: ConfigReader) -> ModelSpec:
    """Gemma4ForCausalLM of a text configuration.

    Raises:
        UnsupportedError: for embeddings a layer and for layers that share keys and values (the
            E2B and E4B models), and for attention in both directions.
    """
    if reader.count("hidden_size_per_layer_input", 256):
        raise reader.unsupported("embeddings a layer (hidden_size_per_layer_input)")
    if reader.count("num_kv_shared_layers", 0):
        raise reader.unsupported("layers that share keys and values (num_kv_shared_layers)")
    if reader.config.get("use_bidirectional_attention") == "all":
        raise reader.unsupported("attention in both directions (use_bidirectional_attention)")
    sizes = read_sizes(reader, head_dim=256, kv_heads=4)
    norm = Norm("rms_pow", sizes.hidden)
    block = _block(reader, sizes, norm)
    window = reader.size("sliding_window", default=512)
    windows = layer_windows(reader, sizes.count, window, every(sizes.count, 6))
    # The last layer is made a full one.
    windows[-1] = None
    # The last layer of each kind names its keys and values for layers that would share them.
    last = {seen: index for index, seen in enumerate(windows)}
    kinds = [(seen, last[seen] == index) for index, seen in enumerate(windows)]

    def layer(kind: tuple[int | None, bool]) -> Layer:
        seen, shares = kind
        inner = _full_sizes(reader, sizes) if seen is None else sizes
        return Layer(
            norm,
            replace(_attention(reader, inner, seen), shares_states=shares),
            norm,
            block,
            attention_out_norm=norm,
            mlp_out_norm=norm,
            recipe="gemma4",
        )

    return model(
        reader,
        sizes,
        by_kind(kinds, layer),
        norm,
        tied=True,
        embedding_scaled=True,
        buffers=(_SCALE_BYTES,) * (sizes.count + 1),
        masks=(None, window),
        logits_softcap=reader.number("final_logit_softcapping", None) is not None,
        rope_tables=2 * len(set(windows)),
    )


def _full_sizes(reader: ConfigReader, sizes: Sizes) -> Sizes:
    """Return the sizes of full layers: heads of their own size, and with shared keys and values
    their own number of them."""
    kv_heads = sizes.kv_heads
    if reader.flag("attention_k_eq_v", False):
        kv_heads = reader.optional_size("num_global_key_value_heads") or kv_heads
    if sizes.heads % kv_heads:
        allowed = f"a divisor of the {sizes.heads} query heads"
        raise reader.error("num_global_key_value_heads", kv_heads, allowed)
    return replace(sizes, head_dim=reader.size("global_head_dim", default=512), kv_heads=kv_heads)


def _attention(reader: ConfigReader, sizes: Sizes, window: int | None) -> Attention:
    bias = reader.flag("attention_bias", False)
    normed = Norm("rms_pow", sizes.head_dim)
    more: dict[str, Any] = {"qk_norm": normed, "window": window, "recipe": "gemma4"}
    block = attention(reader, sizes, bias, bias, **more)
    shared = window is None and reader.flag("attention_k_eq_v", False)
    return replace(block, value=None) if shared else block


def _block(reader: ConfigReader, sizes: Sizes, norm: Norm) -> Mlp | Moe:
    """Return the MLP, with the experts that run beside it where there are any."""
    activation = reader.text("hidden_activation", "gelu_pytorch_tanh")
    dense = gated_mlp(sizes, activation)
    if not reader.flag("enable_moe_block", False):
        return dense
    experts = reader.size("num_experts")
    return Moe(
        hidden=sizes.hidden,
        width=reader.size("moe_intermediate_size"),
        experts=experts,
        active=reader.size("top_k_experts", most=experts),
        activation=activation,
        scores_fp32=True,
        shared=dense,
        router_linear=Linear("proj", sizes.hidden, experts),
        norms=(norm, norm, norm),
    )
