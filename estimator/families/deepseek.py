"""DeepSeek-V2, V3 and others with multi-head latent attention.

Source: modeling_*.py and configuration_*.py of deepseek_v2, deepseek_v3, glm4_moe_lite, youtu, axk1
and minicpm3 in transformers/models.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.moe import QWEN_NAMES, gated_mlp, layer_count, model_of
from estimator.families.moe_shared import (
    GroupedDefaults,
    after_first,
    by_mlp_type,
    correction_biases,
    grouped_blocks,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Latent, Linear, ModelSpec, Moe, Norm

CACHES = ("dynamic", "static")
"""Caches that hold latents: a quantized one fails on their two sizes."""


def parse_deepseek_v3(reader: ConfigReader) -> ModelSpec:
    """DeepseekV3ForCausalLM: sigmoid scores from the best groups of experts."""
    hidden = reader.size("hidden_size", default=7168)
    attention = latent_attention(reader, hidden, 128, _rotation(reader))
    sparse = after_first(reader, layer_count(reader, 61), 3)
    defaults = GroupedDefaults(18432, 2048, 256, groups=8, active_groups=4)
    blocks = grouped_blocks(reader, hidden, sparse, defaults)
    spec = model_of(reader, hidden, 129280, [(attention, block) for block in blocks])
    return replace(spec, buffers=correction_biases(blocks), caches=CACHES)


def parse_deepseek_v2(reader: ConfigReader) -> ModelSpec:
    """DeepseekV2ForCausalLM: softmax scores; rotations are products of complex numbers."""
    hidden = reader.size("hidden_size", default=4096)
    attention = latent_attention(reader, hidden, 32, "complex")
    method = reader.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise reader.error("topk_method", method, "greedy or group_limited_greedy")
    limited = method == "group_limited_greedy"
    experts = reader.size("n_routed_experts", "num_experts", default=64)
    groups = reader.size("n_group", default=1)
    if limited:
        reader.divided("n_routed_experts", experts, "n_group", groups)
    width = reader.size("moe_intermediate_size", default=1407)
    shared = width * reader.size("n_shared_experts", default=2)
    bias = reader.flag("mlp_bias", False)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=experts,
        active=reader.size("num_experts_per_tok", default=None),
        activation=reader.text("hidden_act", "silu"),
        router="softmax_groups" if limited else "softmax_fp32",
        groups=groups,
        active_groups=reader.size("topk_group", default=1),
        shared=gated_mlp(reader, hidden, shared, bias, adaptable=False),
        adapter_names=QWEN_NAMES,
    )
    first = reader.count("first_k_dense_replace", 0)
    size = reader.size("intermediate_size", default=11008)
    dense = gated_mlp(reader, hidden, size, bias, adaptable=False)
    layers = [
        (attention, dense if index < first else mixture) for index in range(layer_count(reader, 32))
    ]
    return replace(model_of(reader, hidden, 102400, layers), caches=CACHES)


def parse_glm4_moe_lite(reader: ConfigReader) -> ModelSpec:
    """Glm4MoeLiteForCausalLM: DeepSeek-V3 with layers by `mlp_layer_types`."""
    hidden = reader.size("hidden_size", default=2048)
    attention = latent_attention(
        reader, hidden, 20, _rotation(reader), query_rank=768, nope=192, value=256
    )
    count = layer_count(reader, 47)
    sparse = by_mlp_type(reader, count, [index > 0 for index in range(count)])
    blocks = grouped_blocks(reader, hidden, sparse, GroupedDefaults(10240, 1536, 64, active=4))
    spec = model_of(reader, hidden, 154880, [(attention, block) for block in blocks])
    return replace(spec, buffers=correction_biases(blocks), caches=CACHES)


def parse_axk1(reader: ConfigReader) -> ModelSpec:
    """AXK1ForCausalLM: DeepSeek-V3 with a norm behind each mixture."""
    hidden = reader.size("hidden_size", default=7168)
    attention = latent_attention(reader, hidden, 64, _rotation(reader))
    sparse = after_first(reader, layer_count(reader, 61), 1)
    defaults = GroupedDefaults(18432, 2048, 192, groups=8, active_groups=4, adapted=False)
    blocks = grouped_blocks(reader, hidden, sparse, defaults)
    spec = model_of(reader, hidden, 163840, [(attention, block) for block in blocks])
    norm = Norm("rms", hidden)
    layers = tuple(
        replace(layer, mlp_out_norm=norm) if isinstance(layer.mlp, Moe) else layer
        for layer in spec.layers
    )
    return replace(spec, layers=layers, buffers=correction_biases(blocks), caches=CACHES)


def parse_minicpm3(reader: ConfigReader) -> ModelSpec:
    """MiniCPM3ForCausalLM: latent attention in a dense model whose states are scaled."""
    hidden = reader.size("hidden_size", default=2560)
    heads, _ = reader.heads(default_heads=40)
    value = reader.divided("hidden_size", hidden, "num_attention_heads", heads)
    attention = latent_attention(
        reader, hidden, 40, "halves", query_rank=768, nope=64, value=value, rope=32, rank=256
    )
    bias = reader.flag("mlp_bias", False)
    block = gated_mlp(reader, hidden, reader.size("intermediate_size", default=6400), bias)
    layers = [(attention, block)] * layer_count(reader, 62)
    spec = model_of(reader, hidden, 73448, list(layers))
    return replace(
        spec,
        layers=tuple(replace(layer, residual_scaled=True) for layer in spec.layers),
        tied=reader.flag("tie_word_embeddings", True),
        embedding_scaled=True,
        buffers=(2,),
        head_input_scaled=True,
        caches=CACHES,
    )


def parse_youtu(reader: ConfigReader) -> ModelSpec:
    """YoutuForCausalLM: DeepSeek-V3's attention in a dense model."""
    hidden = reader.size("hidden_size", default=2048)
    attention = latent_attention(reader, hidden, 16, _rotation(reader))
    block = gated_mlp(reader, hidden, reader.size("intermediate_size", default=6144))
    layers = [(attention, block)] * layer_count(reader, 32)
    spec = model_of(reader, hidden, 128256, list(layers))
    return replace(spec, tied=reader.flag("tie_word_embeddings", True), caches=CACHES)


def _rotation(reader: ConfigReader) -> str:
    return "interleaved" if reader.flag("rope_interleave", True) else "halves"


def latent_attention(
    reader: ConfigReader,
    hidden: int,
    default_heads: int,
    rotation: str,
    query_rank: int = 1536,
    nope: int = 128,
    value: int = 128,
    rope: int = 64,
    rank: int = 512,
) -> Attention:
    """Return DeepSeek's attention; see `Latent`. Sizes are the family's defaults."""
    heads, _ = reader.heads(default_heads=default_heads)
    rank = reader.size("kv_lora_rank", default=rank)
    rope = reader.size("qk_rope_head_dim", default=rope)
    nope = reader.size("qk_nope_head_dim", default=nope)
    value = reader.size("v_head_dim", default=value)
    bias = reader.flag("attention_bias", False)
    compressed = "q_lora_rank" not in reader.config or reader.config["q_lora_rank"] is not None
    query_rank = reader.size("q_lora_rank", default=query_rank)
    name, inputs = ("q_b_proj", query_rank) if compressed else ("q_proj", hidden)
    return Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=nope + rope,
        query=Linear(name, inputs, heads * (nope + rope)),
        key=None,
        value=None,
        fused=None,
        output=Linear("o_proj", heads * value, hidden, bias),
        dropout=reader.fraction("attention_dropout", 0.0),
        rotary_dim=rope,
        rotary_style="complex" if rotation == "complex" else "tables",
        value_dim=value,
        recipe="latent",
        latent=Latent(
            rank=rank,
            rope_dim=rope,
            nope_dim=nope,
            down=Linear("kv_a_proj_with_mqa", hidden, rank + rope, bias),
            norm=Norm("rms", rank),
            up=Linear("kv_b_proj", rank, heads * (nope + value)),
            query_down=Linear("q_a_proj", hidden, query_rank, bias) if compressed else None,
            query_norm=Norm("rms", query_rank) if compressed else None,
            rotation=rotation,
        ),
    )
