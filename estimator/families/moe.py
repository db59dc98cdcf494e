"""Mixtral, Qwen2-MoE, Qwen3-MoE and OLMoE: Llama's attention, a mixture of experts as MLP.

Source: transformers/models/{mixtral,qwen2_moe,qwen3_moe,olmoe}/modeling_*.py, configuration_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Moe, Norm

MIXTRAL_NAMES = ("gate", "w1", "w3", "w2")
QWEN_NAMES = ("gate", "gate_proj", "up_proj", "down_proj")
"""Names that peft takes for the router and the stacked experts of families like these."""


def parse_mixtral(reader: ConfigReader) -> ModelSpec:
    """MixtralForCausalLM: scores stay in fp32; one sliding window where it is set."""
    hidden = reader.size("hidden_size", default=4096)
    if reader.config.get("router_jitter_noise"):
        raise reader.unsupported("router_jitter_noise")
    mixture = Moe(
        hidden=hidden,
        width=reader.size("intermediate_size", default=14336),
        experts=reader.size("num_local_experts", "num_experts", default=8),
        active=reader.size("num_experts_per_tok", default=2),
        activation=reader.text("hidden_act", "silu"),
        normed=True,
        scores_fp32=True,
        adapter_names=MIXTRAL_NAMES,
    )
    attention = attention_of(reader, hidden, default_heads=32, default_kv=8)
    attention = replace(attention, window=reader.optional_size("sliding_window"))
    return model_of(reader, hidden, 32000, [(attention, mixture)] * layer_count(reader, 32))


def parse_qwen2_moe(reader: ConfigReader) -> ModelSpec:
    """Qwen2MoeForCausalLM: a shared expert with a gate; biases on queries, keys and values."""
    hidden = reader.size("hidden_size", default=2048)
    shared_width = reader.size("shared_expert_intermediate_size", default=5632)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("moe_intermediate_size", default=1408),
        experts=reader.size("num_experts", default=60),
        active=reader.size("num_experts_per_tok", default=4),
        activation=reader.text("hidden_act", "silu"),
        normed=reader.flag("norm_topk_prob", False),
        shared=gated_mlp(reader, hidden, shared_width),
        shared_order="first",
        shared_flat=True,
        shared_gate=Linear("shared_expert_gate", hidden, 1),
    )
    attention = attention_of(
        reader, hidden, default_heads=16, default_kv=16, qkv_bias=reader.flag("qkv_bias", True)
    )
    count = layer_count(reader, 24)
    dense = gated_mlp(reader, hidden, reader.size("intermediate_size", default=5632))
    blocks = _sparse_steps(reader, count, mixture, dense)
    windows = _qwen2_windows(reader, count)
    attentions = [replace(attention, window=window) for window in windows]
    spec = model_of(reader, hidden, 151936, list(zip(attentions, blocks, strict=True)))
    # Both masks are built, whatever the layers use; without windows the sliding one's is 0.
    return replace(spec, masks=(None, max((window or 0 for window in windows), default=0)))


def parse_qwen3_moe(reader: ConfigReader) -> ModelSpec:
    """Qwen3MoeForCausalLM: norms on the heads of queries and keys, no shared expert."""
    hidden = reader.size("hidden_size", default=2048)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("moe_intermediate_size", default=768),
        experts=reader.size("num_experts", "num_local_experts", default=128),
        active=reader.size("num_experts_per_tok", default=8),
        activation=reader.text("hidden_act", "silu"),
        normed=reader.flag("norm_topk_prob", False),
        adapter_names=QWEN_NAMES,
    )
    bias = reader.flag("attention_bias", False)
    attention = attention_of(
        reader, hidden, default_heads=32, default_kv=4, qkv_bias=bias, output_bias=bias
    )
    window = None
    if reader.flag("use_sliding_window", False):
        window = reader.size("sliding_window", default=4096)
    attention = replace(attention, qk_norm=Norm("rms", attention.head_dim), window=window)
    count = layer_count(reader, 24)
    width = reader.size("intermediate_size", default=6144)
    dense = gated_mlp(reader, hidden, width, adaptable=False)
    blocks = _sparse_steps(reader, count, mixture, dense)
    return model_of(reader, hidden, 151936, [(attention, block) for block in blocks])


def parse_olmoe(reader: ConfigReader) -> ModelSpec:
    """OlmoeForCausalLM: norms over all queries and over all keys."""
    hidden = reader.size("hidden_size", default=2048)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("intermediate_size", default=2048),
        experts=reader.size("num_experts", default=64),
        active=reader.size("num_experts_per_tok", default=8),
        activation=reader.text("hidden_act", "silu"),
        normed=reader.flag("norm_topk_prob", False),
        adapter_names=QWEN_NAMES,
    )
    if reader.config.get("clip_qkv") is not None:
        raise reader.unsupported("clip_qkv")
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 16, None, qkv_bias=bias, output_bias=bias)
    attention = replace(
        attention,
        qk_norm=Norm("rms", hidden),
        key_norm=Norm("rms", hidden // attention.heads * attention.kv_heads),
    )
    return model_of(reader, hidden, 50304, [(attention, mixture)] * layer_count(reader, 16))


def parse_granitemoe(reader: ConfigReader) -> ModelSpec:
    """GraniteMoeForCausalLM: scaled embeddings, residuals and logits; the top logits are softmaxed.

    Each multiplication is done even where its factor is 1.
    """
    hidden = reader.size("hidden_size", default=4096)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("intermediate_size", default=11008),
        experts=reader.size("num_local_experts", default=8),
        active=reader.size("num_experts_per_tok", default=2),
        activation=reader.text("hidden_act", "silu"),
        router="top_softmax",
    )
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 32, None, qkv_bias=bias, output_bias=bias)
    spec = model_of(reader, hidden, 32000, [(attention, mixture)] * layer_count(reader, 32))
    layers = tuple(replace(layer, residual_scaled=True) for layer in spec.layers)
    return replace(spec, layers=layers, embedding_multiplied=True, logits_scaled=True)


def layer_count(reader: ConfigReader, default: int) -> int:
    """Return the number of layers."""
    return reader.size("num_hidden_layers", default=default, most=MAX_LAYERS)


def attention_of(
    reader: ConfigReader,
    hidden: int,
    default_heads: int,
    default_kv: int | None,
    qkv_bias: bool = False,
    output_bias: bool = False,
    rounded: bool = False,
    default_head_dim: int | None = None,
) -> Attention:
    """Return Llama's attention: three projections, whole heads rotated.

    `rounded` is whether a head's features are rounded down where heads do not divide (GLM-4.5).
    """
    heads, kv_heads = reader.heads(
        default_kv if "num_key_value_heads" not in reader.config else None,
        default_heads=default_heads,
    )
    if rounded or default_head_dim is not None:
        head_dim = reader.size("head_dim", default=default_head_dim or max(1, hidden // heads))
    else:
        head_dim = reader.head_dim(hidden, heads)
    return Attention(
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        query=Linear("q_proj", hidden, heads * head_dim, qkv_bias),
        key=Linear("k_proj", hidden, kv_heads * head_dim, qkv_bias),
        value=Linear("v_proj", hidden, kv_heads * head_dim, qkv_bias),
        fused=None,
        output=Linear("o_proj", heads * head_dim, hidden, output_bias),
        dropout=reader.fraction("attention_dropout", 0.0),
    )


def gated_mlp(
    reader: ConfigReader, hidden: int, width: int, bias: bool = False, adaptable: bool = True
) -> Mlp:
    """Return Llama's MLP; see `Linear.adaptable`."""
    return Mlp(
        gate=Linear("gate_proj", hidden, width, bias, adaptable),
        up=Linear("up_proj", hidden, width, bias, adaptable),
        down=Linear("down_proj", width, hidden, bias, adaptable),
        activation=reader.text("hidden_act", "silu"),
    )


def model_of(
    reader: ConfigReader, hidden: int, default_vocab: int, blocks: list[tuple[Attention, Mlp | Moe]]
) -> ModelSpec:
    """Return the spec of a pre-norm model of these blocks, one pair a layer."""
    if reader.flag("output_router_logits", False):
        raise reader.unsupported("output_router_logits, the loss that balances experts")
    norm = Norm("rms", hidden)
    vocab = reader.size("vocab_size", default=default_vocab)
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=tuple(Layer(norm, attention, norm, block) for attention, block in blocks),
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", False),
        max_positions=reader.optional_size("max_position_embeddings"),
    )


def _sparse_steps(reader: ConfigReader, count: int, mixture: Moe, dense: Mlp) -> list[Mlp | Moe]:
    """Return each layer's block: a mixture every `decoder_sparse_step` layers."""
    step = reader.size("decoder_sparse_step", default=1)
    only = reader.indices("mlp_only_layers")
    return [
        mixture if index not in only and (index + 1) % step == 0 else dense
        for index in range(count)
    ]


def _qwen2_windows(reader: ConfigReader, count: int) -> list[int | None]:
    """Sliding windows in every other layer below `max_window_layers`."""
    if not reader.flag("use_sliding_window", False):
        return [None] * count
    window = reader.size("sliding_window", default=4096)
    kinds = reader.layer_types(count)
    if kinds is not None:
        return [window if kind == "sliding_attention" else None for kind in kinds]
    most = reader.size("max_window_layers", default=28)
    return [window if index % 2 == 0 and index < most else None for index in range(count)]
