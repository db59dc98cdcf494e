"""Falcon-H1: Mamba 2 beside attention in each layer.

Source: transformers/models/falcon_h1/{modeling,configuration}_falcon_h1.py.
"""

from __future__ import annotations

from estimator.families.blocks import attention, gated_mlp, model
from estimator.families.mamba import in_place_of_attention, state_space
from estimator.families.mamba_hybrids import hybrid_sizes
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, Layer, Linear, ModelSpec, Norm


def parse(reader: ConfigReader) -> ModelSpec:
    """FalconH1ForCausalLM."""
    sizes = hybrid_sizes(reader, vocab=128000, kv_heads=8)
    if reader.config.get("num_logits_to_keep", 1) != 1:
        raise reader.unsupported("num_logits_to_keep other than 1")
    bias = reader.flag("attention_bias", False)
    mixed = _mixer(reader, sizes.hidden)
    norm = Norm("rms", sizes.hidden)
    layer = Layer(
        norm,
        attention(reader, sizes, bias, bias, key_multiplied=True),
        norm,
        gated_mlp(sizes, reader.text("hidden_act", "silu"), reader.flag("mlp_bias", False)),
        beside=mixed,
        recipe="falcon_h1",
    )
    assert mixed.mixer is not None
    return model(
        reader,
        sizes,
        (layer,) * sizes.count,
        norm,
        tied=False,
        embedding_multiplied=True,
        embedding_named=False,
        logits_scaled=True,
        # A number for each feature of the mixer's projection.
        cast_buffers=(mixed.mixer.inputs[0].outputs,) * sizes.count,
        caches=("dynamic", "static"),
        unadaptable=("out_proj",),
        kernels="mamba-ssm",
        decodes_alone=reader.flag("mamba_rms_norm", False),
    )


def _mixer(reader: ConfigReader, hidden: int) -> Attention:
    inner = 1024
    if "mamba_d_ssm" in reader.config:
        expanded = reader.size("mamba_expand", default=2) * hidden
        inner = reader.size("mamba_d_ssm", default=expanded)
    heads = reader.size("mamba_n_heads", default=128)
    groups = reader.size("mamba_n_groups", default=1)
    norm = None
    if reader.flag("mamba_rms_norm", False):
        size = reader.divided("mamba_d_ssm", inner, "mamba_n_groups", groups)
        norm = Norm("rms_scaled_before_cast", size, groups)
    mixer = state_space(
        hidden,
        heads=heads,
        head_dim=reader.divided("mamba_d_ssm", inner, "mamba_n_heads", heads),
        state=reader.size("mamba_d_state", default=256),
        groups=groups,
        kernel=reader.size("mamba_d_conv", default=4),
        chunk=reader.size("mamba_chunk_size", default=256),
        bias=reader.flag("mamba_proj_bias", False),
        conv_bias=reader.flag("mamba_conv_bias", True),
        norm=norm,
        scaled=True,
        gate="behind" if reader.flag("mamba_norm_before_gate", True) else "before",
    )
    output = Linear("out_proj", inner, hidden, reader.flag("projectors_bias", False))
    return in_place_of_attention(mixer, output, "state_space")
