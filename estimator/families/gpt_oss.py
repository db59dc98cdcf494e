"""gpt-oss: attention sinks, alternating windows, biased experts. Weights in half precision.

Source: transformers/models/gpt_oss/{modeling,configuration}_gpt_oss.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import layer_windows
from estimator.families.moe import attention_of, layer_count, model_of
from estimator.families.reader import ConfigReader
from estimator.spec import ModelSpec, Moe, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """GptOssForCausalLM: no sdpa; norms scaled before the cast; peft adapts no experts."""
    hidden = reader.size("hidden_size", default=2880)
    mixture = Moe(
        hidden=hidden,
        width=reader.size("intermediate_size", default=2880),
        experts=reader.size("num_local_experts", "num_experts", default=128),
        active=reader.size("num_experts_per_tok", default=4),
        activation="silu",
        router="top_softmax_half",
        gate_style="clamped_pairs",
        biased=True,
    )
    bias = reader.flag("attention_bias", True)
    attention = attention_of(
        reader, hidden, 64, 8, qkv_bias=bias, output_bias=bias, default_head_dim=64
    )
    attention = replace(attention, sinks=True, eager="plain", rotary_style="chunked")
    count = layer_count(reader, 36)
    window = reader.size("sliding_window", default=128)
    windows = layer_windows(reader, count, window, [index % 2 == 0 for index in range(count)])
    layers = [(replace(attention, window=seen), mixture) for seen in windows]
    spec = model_of(reader, hidden, 201088, list(layers))
    norm = Norm("rms_scaled_before_cast", hidden)
    return replace(
        spec,
        layers=tuple(replace(layer, input_norm=norm, post_norm=norm) for layer in spec.layers),
        final_norm=norm,
        masks=(None, window),
        attentions=("eager",),
        caches=("dynamic", "static"),
    )
