"""Llama, Mistral, Qwen2 and Qwen3: RMS norms, rotary positions, gated MLP, grouped heads.

Source: transformers/models/{llama,mistral,qwen2,qwen3}/modeling_*.py and configuration_*.py.
"""

from __future__ import annotations

from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """LlamaForCausalLM: `attention_bias` on all four projections, `mlp_bias` on all three."""
    bias = reader.flag("attention_bias", False)
    return _parse(reader, qkv_bias=bias, output_bias=bias, mlp_bias=reader.flag("mlp_bias", False))


def parse_mistral(reader: ConfigReader) -> ModelSpec:
    """MistralForCausalLM: no biases; one sliding window for all layers where it is set."""
    window = reader.optional_size("sliding_window") if "sliding_window" in reader.config else 4096
    return _parse(reader, windows=lambda count: [window] * count, default_kv=8)


def parse_qwen2(reader: ConfigReader) -> ModelSpec:
    """Qwen2ForCausalLM: biases on queries, keys and values only."""
    return _parse(reader, qkv_bias=True, windows=_qwen_windows(reader), default_kv=32)


def parse_qwen3(reader: ConfigReader) -> ModelSpec:
    """Qwen3ForCausalLM: norms on the heads of queries and keys, `head_dim` 128 by default."""
    bias = reader.flag("attention_bias", False)
    return _parse(
        reader,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        windows=_qwen_windows(reader),
        default_kv=32,
        default_head_dim=128,
    )


def _qwen_windows(reader: ConfigReader):  # type: ignore[no-untyped-def]
    """Sliding windows from `max_window_layers` on, where `use_sliding_window` is set."""

    def windows(count: int) -> list[int | None]:
        window = reader.size("sliding_window", default=4096)
        if not reader.flag("use_sliding_window", False):
            return [None] * count
        kinds = reader.layer_types(count)
        if kinds is None:
            first = reader.size("max_window_layers", default=28, least=0)
            return [window if index >= first else None for index in range(count)]
        return [window if kind == "sliding_attention" else None for kind in kinds]

    return windows


def _parse(  # type: ignore[no-untyped-def]
    reader: ConfigReader,
    qkv_bias: bool = False,
    output_bias: bool = False,
    mlp_bias: bool = False,
    qk_norm: bool = False,
    windows=None,
    default_kv: int | None = None,
    default_head_dim: int | None = None,
) -> ModelSpec:
    hidden = reader.size("hidden_size")
    width = reader.size("intermediate_size")
    count = reader.size("num_hidden_layers", most=MAX_LAYERS)
    vocab = reader.size("vocab_size")
    heads, kv_heads = reader.heads(
        default_kv if "num_key_value_heads" not in reader.config else None
    )
    if default_head_dim is not None and reader.config.get("head_dim") is None:
        head_dim = default_head_dim
    else:
        head_dim = reader.head_dim(hidden, heads)
    norm = Norm("rms", hidden)
    mlp = Mlp(
        gate=Linear("gate_proj", hidden, width, mlp_bias),
        up=Linear("up_proj", hidden, width, mlp_bias),
        down=Linear("down_proj", width, hidden, mlp_bias),
        activation=reader.text("hidden_act", "silu"),
    )

    def layer(window: int | None) -> Layer:
        attention = Attention(
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            query=Linear("q_proj", hidden, heads * head_dim, qkv_bias),
            key=Linear("k_proj", hidden, kv_heads * head_dim, qkv_bias),
            value=Linear("v_proj", hidden, kv_heads * head_dim, qkv_bias),
            fused=None,
            output=Linear("o_proj", heads * head_dim, hidden, output_bias),
            qk_norm=Norm("rms", head_dim) if qk_norm else None,
            window=window,
            dropout=reader.fraction("attention_dropout", 0.0),
        )
        return Layer(norm, attention, norm, mlp)

    kinds = {window: layer(window) for window in (windows(count) if windows else [None])}
    order = windows(count) if windows else [None] * count
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=tuple(kinds[window] for window in order),
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", False),
        max_positions=reader.optional_size("max_position_embeddings"),
    )
