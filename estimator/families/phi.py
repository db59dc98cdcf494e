"""Phi, Phi-3, Persimmon, StableLM, Nemotron and StarCoder 2: parts of each head are rotated.

Source: transformers/models/{phi,phi3,persimmon,stablelm,nemotron,starcoder2}/{modeling,
configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import (
    attention,
    fused_mlp,
    gated_mlp,
    model,
    plain_mlp,
    read_sizes,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Layer, Linear, ModelSpec, Norm

_SHARE = "partial_rotary_factor"


def parse(reader: ConfigReader) -> ModelSpec:
    """PhiForCausalLM: biases everywhere, attention and MLP side by side."""
    sizes = read_sizes(reader)
    block = attention(
        reader,
        sizes,
        True,
        True,
        output="dense",
        rotary_dim=reader.rotary_dim(sizes.head_dim, _SHARE, 0.5),
        rotary_style="held_parts",
        qk_norm=Norm("layer", sizes.head_dim) if reader.flag("qk_layernorm", False) else None,
        norm_after_projections=True,
    )
    norm = Norm("layer", sizes.hidden)
    mlp = plain_mlp(sizes, reader.text("hidden_act", "gelu_new"), "fc1", "fc2", True)
    dropout = reader.fraction("resid_pdrop", 0.0)
    layer = Layer(norm, block, None, mlp, dropout=dropout, parallel=True)
    return model(
        reader,
        sizes,
        (layer,) * sizes.count,
        norm,
        tied=False,
        head_bias=True,
        embedding_dropout=reader.fraction("embd_pdrop", 0.0),
        embedding_held=False,
    )


def parse_phi3(reader: ConfigReader) -> ModelSpec:
    """Phi3ForCausalLM: fused projections, of which queries, keys and values are slices."""
    sizes = read_sizes(reader)
    hidden = sizes.hidden
    block = attention(
        reader,
        sizes,
        rotary_dim=reader.rotary_dim(sizes.head_dim, _SHARE, 1.0),
        window=reader.optional_size("sliding_window"),
    )
    together = (sizes.heads + 2 * sizes.kv_heads) * sizes.head_dim
    fused = Linear("qkv_proj", hidden, together)
    block = replace(block, query=None, key=None, value=None, fused=fused)
    norm = Norm("rms", hidden)
    mlp = fused_mlp(sizes, reader.text("hidden_act", "silu"))
    layer = Layer(norm, block, norm, mlp, dropout=reader.fraction("resid_pdrop", 0.0))
    spec = model(reader, sizes, (layer,) * sizes.count, norm, tied=False)
    return replace(spec, defined_first=("output",))


def parse_persimmon(reader: ConfigReader) -> ModelSpec:
    """PersimmonForCausalLM: one fused projection, norms on queries and keys, squared relu."""
    sizes = read_sizes(reader)
    hidden = sizes.hidden
    d = reader.divided("hidden_size", hidden, "num_attention_heads", sizes.heads)
    sizes = replace(sizes, kv_heads=sizes.heads, head_dim=d)
    block = attention(
        reader,
        sizes,
        output_bias=True,
        output="dense",
        rotary_dim=reader.rotary_dim(d, _SHARE, 0.5),
        rotary_style="held_parts",
        qk_norm=Norm("layer", d) if reader.flag("qk_layernorm", True) else None,
    )
    fused = Linear("query_key_value", hidden, 3 * hidden, True)
    block = replace(block, query=None, key=None, value=None, fused=fused)
    norm = Norm("layer", hidden)
    act = reader.text("hidden_act", "relu2")
    mlp = plain_mlp(sizes, act, "dense_h_to_4h", "dense_4h_to_h", True)
    dropout = reader.fraction("hidden_dropout", 0.0)
    layer = Layer(norm, block, norm, mlp, dropout=dropout, attended_dropout=False)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_stablelm(reader: ConfigReader) -> ModelSpec:
    """StableLmForCausalLM: a norm module a head where `qk_layernorm` is set."""
    sizes = read_sizes(reader, kv_heads=32)
    d = reader.divided("hidden_size", sizes.hidden, "num_attention_heads", sizes.heads)
    sizes = replace(sizes, head_dim=d)
    by_head = reader.flag("qk_layernorm", False)
    block = attention(
        reader,
        sizes,
        reader.flag("use_qkv_bias", False),
        rotary_dim=reader.rotary_dim(d, _SHARE, 0.25),
        rotary_style="held_parts",
        qk_norm=Norm("layer_no_bias", d) if by_head else None,
        norm_after_projections=True,
        norm_by_head=by_head,
    )
    norm = Norm("layer", sizes.hidden)
    parallel = reader.flag("use_parallel_residual", False)
    layer = Layer(
        norm,
        block,
        None if parallel else norm,
        gated_mlp(sizes, reader.text("hidden_act", "silu")),
        dropout=reader.fraction("hidden_dropout", 0.0),
        attended_dropout=False,
        holds_attended=True,
        holds_attended_input=True,
        parallel=parallel,
    )
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_nemotron(reader: ConfigReader) -> ModelSpec:
    """NemotronForCausalLM: norms scaled by 1 + weight, squared relu without a gate."""
    reader.size("num_key_value_heads")
    sizes = read_sizes(reader)
    bias = reader.flag("attention_bias", False)
    block = attention(
        reader, sizes, bias, bias, rotary_dim=reader.rotary_dim(sizes.head_dim, _SHARE, 0.5)
    )
    norm = Norm("layer_plus_one", sizes.hidden)
    act = reader.text("hidden_act", "relu2")
    mlp = plain_mlp(sizes, act, "up_proj", "down_proj", reader.flag("mlp_bias", False))
    layer = Layer(norm, block, norm, mlp)
    return model(reader, sizes, (layer,) * sizes.count, norm, tied=False)


def parse_starcoder2(reader: ConfigReader) -> ModelSpec:
    """Starcoder2ForCausalLM: layer norms, biases, a plain MLP, one window for all layers."""
    sizes = read_sizes(reader, kv_heads=2)
    bias = reader.flag("use_bias", True)
    block = attention(reader, sizes, bias, bias, window=reader.optional_size("sliding_window"))
    norm = Norm("layer", sizes.hidden)
    act = reader.text("hidden_act", "gelu_pytorch_tanh")
    mlp = plain_mlp(sizes, act, "c_fc", "c_proj", bias)
    layer = Layer(norm, block, norm, mlp, dropout=reader.fraction("residual_dropout", 0.0))
    return model(
        reader,
        sizes,
        (layer,) * sizes.count,
        norm,
        tied=True,
        embedding_dropout=reader.fraction("embedding_dropout", 0.0),
    )
