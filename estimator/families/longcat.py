"""LongCat-Flash: two latent attentions a layer, experts of which some do nothing.

Source: transformers/models/longcat_flash/{modeling,configuration}_longcat_flash.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.deepseek import CACHES, latent_attention
from estimator.families.moe import QWEN_NAMES, model_of
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Doubled, Layer, Linear, Mlp, ModelSpec, Moe, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """LongcatFlashForCausalLM: its code multiplies by the router's weight itself."""
    hidden = reader.size("hidden_size", default=6144)
    attention = latent_attention(reader, hidden, 64, "interleaved")
    latent = attention.latent
    assert latent is not None
    if latent.query_down is None:
        raise reader.error("q_lora_rank", None, "a size")
    turned = reader.size("head_dim", default=64)
    if turned != latent.rope_dim:
        # Tables of positions have this size.
        raise reader.error("head_dim", turned, f"qk_rope_head_dim, {latent.rope_dim}")
    attention = replace(attention, latent=replace(latent, rescaled=True))
    width = reader.size("ffn_hidden_size", "intermediate_size", default=12288)
    activation = reader.text("hidden_act", "silu")
    mlp = Mlp(
        gate=Linear("gate_proj", hidden, width, adaptable=False),
        up=Linear("up_proj", hidden, width, adaptable=False),
        down=Linear("down_proj", width, hidden, adaptable=False),
        activation=activation,
    )
    experts = reader.size("n_routed_experts", "num_local_experts", default=512)
    none = reader.config.get("zero_expert_num", 256) is None
    zeros = 0 if none else reader.count("zero_expert_num", 256)
    every = experts + zeros
    bias = reader.flag("router_bias", False)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("expert_ffn_hidden_size", default=2048),
        experts=experts,
        zero_experts=zeros,
        active=reader.size("moe_topk", "num_experts_per_tok", default=12, most=every),
        activation=activation,
        router_linear=Linear("classifier", hidden, every, bias, bypassed=True),
        looped=True,
        adapter_names=QWEN_NAMES,
    )
    norm = Norm("rms", hidden)
    layer = Layer(
        norm,
        attention,
        norm,
        mixture,
        beside=attention,
        doubled=Doubled(mlp, norm, norm),
        recipe="shortcut",
    )
    count = reader.size("num_layers", default=28, most=MAX_LAYERS)
    spec = model_of(reader, hidden, 131072, [(attention, mixture)])
    return replace(
        spec,
        layers=(layer,) * count,
        buffers=(4 * every,) * count,
        caches=CACHES,
        quantizable=False,
    )
