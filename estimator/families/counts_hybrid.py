"""Parameter counts of Falcon-H1: Mamba 2 beside attention in each layer.

Source: transformers/models/falcon_h1/{modeling,configuration}_falcon_h1.py.
"""

from __future__ import annotations

from estimator.families.counts import embeddings, gated_mlp, grouped_attention, layer_count
from estimator.families.counts_mamba import mamba2_mixer
from estimator.families.reader import ConfigReader


def count_falcon_h1(reader: ConfigReader) -> int:
    """FalconH1ForCausalLM: attention and a Mamba 2 mixer side by side in each layer."""
    hidden = reader.size("hidden_size", default=4096)
    inner = 1024
    if "mamba_d_ssm" in reader.config:
        expanded = reader.size("mamba_expand", default=2) * hidden
        inner = reader.size("mamba_d_ssm", default=expanded)
    heads = reader.size("mamba_n_heads", default=128)
    reader.divided("mamba_d_ssm", inner, "mamba_n_heads", heads)
    mixer = mamba2_mixer(
        hidden,
        inner=inner,
        state=reader.size("mamba_d_state", default=256),
        heads=heads,
        groups=reader.size("mamba_n_groups", default=1),
        kernel=reader.size("mamba_d_conv", default=4),
        bias=reader.flag("mamba_proj_bias", False),
        conv_bias=reader.flag("mamba_conv_bias", True),
        normed=reader.flag("mamba_rms_norm", False),
        output_bias=reader.flag("projectors_bias", False),
    )
    attention = grouped_attention(reader, hidden, reader.flag("attention_bias", False), kv_heads=8)
    width = reader.size("intermediate_size", default=14336)
    mlp = gated_mlp(hidden, width, reader.flag("mlp_bias", False))
    outer = embeddings(reader, reader.size("vocab_size", default=128000), hidden, False)
    return outer + layer_count(reader, 32) * (attention + mixer + mlp + 2 * hidden) + hidden
