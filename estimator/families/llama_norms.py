"""Llama's layers with other norms: Jais 2, HyperCLOVA X, BitNet, NanoChat.

Source: transformers/models/{jais2,hyperclovax,bitnet,nanochat}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import attention, gated_mlp, model, plain_mlp, read_sizes
from estimator.families.reader import ConfigReader
from estimator.spec import Layer, ModelSpec, Norm


def parse_jais2(reader: ConfigReader) -> ModelSpec:
    """Jais2ForCausalLM: layer norms, biases, squared relu without a gate."""
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", True)
    norm = Norm("layer", sizes.hidden)
    act = reader.text("hidden_act", "relu2")
    mlp = plain_mlp(sizes, act, "up_proj", "down_proj", reader.flag("mlp_bias", True))
    layer = Layer(norm, attention(reader, sizes, bias, bias), norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_hyperclovax(reader: ConfigReader) -> ModelSpec:
    """HyperCLOVAXForCausalLM: Granite with a norm behind each block, too."""
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms", sizes.hidden)
    behind = norm if reader.flag("use_post_norm", True) else None
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), reader.flag("mlp_bias", False))
    layer = Layer(
        norm,
        attention(reader, sizes, bias, bias),
        norm,
        mlp,
        attention_out_norm=behind,
        mlp_out_norm=behind,
        residual_scaled=True,
    )
    return model(
        reader,
        sizes,
        (layer,) * sizes.count,
        norm,
        tied=False,
        embedding_multiplied=True,
        logits_scaled=True,
    )


def parse_bitnet(reader: ConfigReader) -> ModelSpec:
    """BitNetForCausalLM: norms in front of the attention's and the MLP's last linear."""
    sizes = read_sizes(reader, kv_heads=5)
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms", sizes.hidden)
    block = attention(reader, sizes, bias, bias, output_norm=norm)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "relu2"))
    mlp = replace(mlp, inner_norm=Norm("rms", sizes.width))
    layer = Layer(norm, block, norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_nanochat(reader: ConfigReader) -> ModelSpec:
    """NanoChatForCausalLM: norms without weights, one of them behind the embeddings."""
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms_unweighted", sizes.hidden)
    block = attention(
        reader,
        sizes,
        bias,
        bias,
        qk_norm=Norm("rms_unweighted", sizes.head_dim),
        norm_after_rotary=True,
    )
    mlp = plain_mlp(sizes, reader.text("hidden_act", "relu2"), "fc1", "fc2", False)
    layer = Layer(norm, block, norm, mlp)
    return model(
        reader,
        sizes,
        (layer,) * sizes.count,
        norm,
        tied=False,
        embedding_norm=norm,
        logits_softcap=reader.number("final_logit_softcapping", 15.0) is not None,
    )
