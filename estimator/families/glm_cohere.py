"""GLM, GLM-4, Cohere and Cohere 2: pairs of neighbouring features are rotated.

Source: transformers/models/{glm,glm4,cohere,cohere2}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import (
    attention,
    by_kind,
    every,
    fused_mlp,
    gated_mlp,
    layer_windows,
    model,
    read_sizes,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Layer, ModelSpec, Norm


def parse_glm(reader: ConfigReader) -> ModelSpec:
    """GlmForCausalLM: biases on queries, keys and values; half of each head is rotated."""
    return _parse_glm(reader, sandwich=False)


def parse_glm4(reader: ConfigReader) -> ModelSpec:
    """Glm4ForCausalLM: GLM with norms behind its blocks too."""
    return _parse_glm(reader, sandwich=True)


def _parse_glm(reader: ConfigReader, sandwich: bool) -> ModelSpec:
    sizes = read_sizes(reader, head_dim=128, kv_heads=2)
    block = attention(
        reader,
        sizes,
        reader.flag("attention_bias", True),
        rotary_dim=reader.rotary_dim(sizes.head_dim, "partial_rotary_factor", 0.5),
        rotary_style="repeated",
    )
    norm = Norm("rms", sizes.hidden)
    behind = norm if sandwich else None
    mlp = fused_mlp(sizes, reader.text("hidden_act", "silu"))
    layer = Layer(norm, block, norm, mlp, attention_out_norm=behind, mlp_out_norm=behind)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_cohere(reader: ConfigReader) -> ModelSpec:
    """CohereForCausalLM: attention and MLP side by side, logits multiplied by a number.

    `use_qk_norm` gives each head's queries and keys weights of their own.
    """
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", False)
    qk_norm = reader.flag("use_qk_norm", False)
    d = sizes.head_dim
    block = attention(
        reader,
        sizes,
        bias,
        bias,
        qk_norm=Norm("centered", d, groups=sizes.heads) if qk_norm else None,
        key_norm=Norm("centered", d, groups=sizes.kv_heads) if qk_norm else None,
        norm_after_projections=qk_norm,
        rotary_style="fp32_input",
    )
    norm = Norm("centered", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    layer = Layer(norm, block, None, mlp, parallel=True)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=True, logits_scaled=True)


def parse_cohere2(reader: ConfigReader) -> ModelSpec:
    """Cohere2ForCausalLM: each fourth layer attends to all tokens and does not rotate."""
    sizes = read_sizes(reader)
    d = reader.divided("hidden_size", sizes.hidden, "num_attention_heads", sizes.heads)
    sizes = replace(sizes, head_dim=d)
    bias = reader.flag("attention_bias", False)
    norm = Norm("centered", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"))
    window = reader.size("sliding_window", default=4096)

    def layer(seen: int | None) -> Layer:
        block = attention(
            reader,
            sizes,
            bias,
            bias,
            window=seen,
            rotary=seen is not None,
            rotary_style="fp32_input",
        )
        return Layer(norm, block, None, mlp, parallel=True)

    pattern = reader.size("sliding_window_pattern", default=4)
    windows = layer_windows(reader, sizes.count, window, every(sizes.count, pattern))
    return model(
        reader,
        sizes,
        by_kind(windows, layer),
        norm,
        tied=True,
        logits_scaled=True,
        masks=(None, window),
    )
