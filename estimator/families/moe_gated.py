"""AFMoE and Laguna: gates on the attention's output. Hunyuan 3: sums in fp32. Cohere 2's mixture.

Source: {modeling,configuration}_*.py of afmoe, laguna, hy_v3 and cohere2_moe, in
transformers/models.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from estimator.families.blocks import every, layer_windows
from estimator.families.moe import QWEN_NAMES, attention_of, gated_mlp, layer_count, model_of
from estimator.families.moe_shared import by_mlp_type
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Moe, Norm


def parse_afmoe(reader: ConfigReader) -> ModelSpec:
    """AfmoeForCausalLM: norms in front of blocks and behind them; sliding layers alone rotate."""
    hidden = reader.size("hidden_size", default=2048)
    bias = reader.flag("attention_bias", False)
    attention = attention_of(
        reader, hidden, 16, None, qkv_bias=bias, output_bias=bias, default_head_dim=128
    )
    features = attention.heads * attention.head_dim
    attention = replace(
        attention,
        qk_norm=Norm("rms_scaled_before_cast", attention.head_dim),
        norm_after_projections=True,
        gate=Linear("gate_proj", hidden, features, adaptable=False),
    )
    count = layer_count(reader, 32)
    window = reader.size("sliding_window", default=1024)
    slides = every(count, reader.size("global_attn_every_n_layers", default=4))
    windows = layer_windows(reader, count, window, slides)
    width = reader.size("moe_intermediate_size", default=1408)
    experts = reader.size("num_experts", default=64)
    shared = reader.size("num_shared_experts", default=2)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=experts,
        active=reader.size("num_experts_per_tok", default=6, most=experts),
        activation=reader.text("hidden_act", "silu"),
        router="sigmoid_linear",
        router_linear=Linear("gate", hidden, experts),
        bias_frozen=True,
        shared=gated_mlp(reader, hidden, width * shared, adaptable=False),
        shared_order="between",
        shared_flat=True,
        adapter_names=QWEN_NAMES,
    )
    size = reader.size("intermediate_size", default=6144)
    dense = gated_mlp(reader, hidden, size, adaptable=False)
    first = reader.count("num_dense_layers", 1)
    norm = Norm("rms_scaled_before_cast", hidden)
    kinds = {seen: replace(attention, window=seen, rotary=seen is not None) for seen in windows}
    spec = model_of(
        reader,
        hidden,
        200192,
        [(kinds[seen], dense if n < first else mixture) for n, seen in enumerate(windows)],
    )
    layers = (
        Layer(
            norm,
            layer.attention,
            norm,
            layer.mlp,
            attention_out_norm=norm,
            mlp_out_norm=norm,
        )
        for layer in spec.layers
    )
    return replace(
        spec,
        layers=tuple(layers),
        final_norm=norm,
        masks=(None, window),
        embedding_multiplied=reader.flag("mup_enabled", False),
    )


def parse_laguna(reader: ConfigReader) -> ModelSpec:
    """LagunaForCausalLM: each layer has its own number of heads, each kind its rotated share."""
    hidden = reader.size("hidden_size", default=2048)
    count = layer_count(reader, 40)
    window = reader.size("sliding_window", default=512)
    windows = layer_windows(reader, count, window, [False] * count)
    heads = _heads_by_layer(reader, count)
    width = reader.size("shared_expert_intermediate_size", default=512)
    experts = reader.size("num_experts", default=256)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("moe_intermediate_size", default=512),
        experts=experts,
        active=reader.size("num_experts_per_tok", default=8, most=experts),
        activation=reader.text("hidden_act", "silu"),
        router="sigmoid_cast",
        logits_capped=bool(reader.config.get("moe_router_logit_softcapping")),
        bias_frozen=True,
        shared=gated_mlp(reader, hidden, width),
        shared_order="first",
        shared_flat=True,
        shared_sum="scaled",
    )
    dense = gated_mlp(reader, hidden, reader.size("intermediate_size", default=8192))
    sparse = by_mlp_type(reader, count, [index > 0 for index in range(count)])
    made: dict[Any, Attention] = {}
    blocks = []
    for number, seen, mixed in zip(heads, windows, sparse, strict=True):
        if (number, seen) not in made:
            made[number, seen] = _laguna_attention(reader, hidden, number, seen)
        blocks.append((made[number, seen], mixture if mixed else dense))
    spec = model_of(reader, hidden, 100352, list(blocks))
    return replace(spec, rope_tables=2 * len(set(windows)))


def _heads_by_layer(reader: ConfigReader, count: int) -> list[int]:
    listed = reader.config.get("num_attention_heads_per_layer")
    if listed is None:
        return [reader.size("num_attention_heads", default=48)] * count
    whole = isinstance(listed, list) and all(type(item) is int and item > 0 for item in listed)
    if not whole or len(listed) != count:
        allowed = f"a list of {count} numbers of heads"
        raise reader.error("num_attention_heads_per_layer", listed, allowed)
    return list(listed)


def _laguna_attention(
    reader: ConfigReader, hidden: int, heads: int, window: int | None
) -> Attention:
    kv_heads = reader.size("num_key_value_heads", default=8)
    if heads % kv_heads:
        raise reader.error("num_key_value_heads", kv_heads, f"a divisor of the {heads} query heads")
    d = reader.size("head_dim", default=128)
    bias = reader.flag("attention_bias", False)
    gating = reader.config.get("gating", True)
    per_head = gating is True or gating == "per-head"
    kind, share = ("full_attention", 0.5) if window is None else ("sliding_attention", 1.0)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=d,
        query=Linear("q_proj", hidden, heads * d, bias),
        key=Linear("k_proj", hidden, kv_heads * d, bias),
        value=Linear("v_proj", hidden, kv_heads * d, bias),
        fused=None,
        output=Linear("o_proj", heads * d, hidden, bias),
        qk_norm=Norm("rms", d),
        window=window,
        dropout=reader.fraction("attention_dropout", 0.0),
        rotary_dim=reader.rotary_dim_of(kind, d, share),
        norm_after_projections=True,
        gate=Linear("g_proj", hidden, heads if per_head else heads * d),
        gate_function="softplus",
    )


def parse_hy_v3(reader: ConfigReader) -> ModelSpec:
    """HYV3ForCausalLM."""
    hidden = reader.size("hidden_size", default=4096)
    bias = reader.flag("attention_bias", False)
    attention = attention_of(
        reader, hidden, 64, 8, qkv_bias=bias, output_bias=bias, default_head_dim=128
    )
    attention = replace(
        attention, qk_norm=Norm("rms", attention.head_dim), norm_after_projections=True
    )
    count = layer_count(reader, 80)
    sparse = by_mlp_type(reader, count, [index > 0 for index in range(count)])
    width = reader.size("moe_intermediate_size", default=1536)
    experts = reader.size("num_experts", "num_local_experts", default=192)
    shared = reader.size("num_shared_experts", default=1)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=experts,
        active=reader.size("num_experts_per_tok", default=8, most=experts),
        activation=reader.text("hidden_act", "silu"),
        router="sigmoid_fp32",
        shared=gated_mlp(reader, hidden, width * shared),
        shared_flat=True,
        shared_sum="fp32" if reader.flag("enable_moe_fp32_combine", True) else "plain",
    )
    dense = gated_mlp(reader, hidden, reader.size("intermediate_size", default=13312))
    blocks = [mixture if mixed else dense for mixed in sparse]
    spec = model_of(reader, hidden, 120832, [(attention, block) for block in blocks])
    return replace(spec, buffers=(4 * experts,) * sparse.count(True))


def parse_cohere2_moe(reader: ConfigReader) -> ModelSpec:
    """Cohere2MoeForCausalLM: Cohere 2's parallel layers with mixtures; full layers don't rotate."""
    hidden = reader.size("hidden_size", default=8192)
    bias = reader.flag("attention_bias", False)
    attention = attention_of(
        reader, hidden, 64, None, qkv_bias=bias, output_bias=bias, default_head_dim=128
    )
    attention = replace(attention, rotary_style="fp32_input")
    count = layer_count(reader, 40)
    first = reader.count("first_k_dense_replace", 0)
    sparse = by_mlp_type(reader, count, [index >= first for index in range(count)])
    window = reader.size("sliding_window", default=4096)
    prefix = reader.size("prefix_dense_sliding_window_pattern", default=1)
    slides = every(min(first, count), prefix)
    slides += every(count - len(slides), reader.size("sliding_window_pattern", default=4))
    windows = layer_windows(reader, count, window, slides)
    width = reader.size("intermediate_size", default=22528)
    mixture = _cohere_mixture(reader, hidden, width)
    size = reader.size("prefix_dense_intermediate_size", default=width)
    dense = gated_mlp(reader, hidden, size, adaptable=False)
    rms = reader.config.get("rms_norm_eps") is not None
    norm = Norm("rms" if rms else "centered", hidden)
    kinds = [
        (seen, seen is not None or (prefix == 1 and not mixed), mixed)
        for seen, mixed in zip(windows, sparse, strict=True)
    ]
    made = {
        kind: Layer(
            norm,
            replace(attention, window=kind[0], rotary=kind[1]),
            None,
            mixture if kind[2] else dense,
            parallel=True,
        )
        for kind in set(kinds)
    }
    spec = model_of(reader, hidden, 256000, [(attention, dense)])
    return replace(
        spec,
        layers=tuple(made[kind] for kind in kinds),
        final_norm=norm,
        tied=reader.flag("tie_word_embeddings", True),
        logits_scaled=True,
        masks=(None, window),
    )


def _cohere_mixture(reader: ConfigReader, hidden: int, width: int) -> Moe:
    shared = reader.count("num_shared_experts", 0)
    functions = {"softmax": "top_softmax_cast", "sigmoid": "top_sigmoid"}
    function = reader.text("expert_selection_fn", "softmax")
    if function not in functions:
        raise reader.error("expert_selection_fn", function, "softmax or sigmoid")
    sums = {"average": "halved", "sum": "plain"}
    combined = reader.text("shared_expert_combination_strategy", "average")
    if combined not in sums:
        raise reader.error("shared_expert_combination_strategy", combined, "sum or average")
    experts = reader.size("num_experts", default=8)
    return Moe(
        hidden=hidden,
        width=width,
        experts=experts,
        active=reader.size("num_experts_per_tok", default=2, most=experts),
        activation=reader.text("hidden_act", "silu"),
        router=functions[function],
        normed=reader.flag("norm_topk_prob", True),
        shared=gated_mlp(reader, hidden, width * shared, adaptable=False) if shared else None,
        shared_flat=True,
        shared_sum=sums[combined] if shared else "plain",
        adapter_names=QWEN_NAMES,
    )
