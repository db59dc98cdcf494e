"""Mamba, Falcon Mamba and Mamba 2: state spaces in all layers, and nothing else.

Source: transformers/models/{mamba,falcon_mamba,mamba2}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from typing import Any

from estimator.families.counts import time_step_rank
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import (
    Attention,
    Layer,
    Linear,
    Mixer,
    ModelSpec,
    Norm,
    SelectiveScan,
    StateSpaceDual,
)


def parse(reader: ConfigReader) -> ModelSpec:
    """MambaForCausalLM, FalconMambaForCausalLM (whose inner norms have no weights)."""
    falcon = reader.model_type == "falcon_mamba"
    hidden = reader.size("hidden_size", default=768)
    vocab = reader.size("vocab_size", default=50280)
    expanded = reader.size("expand", default=2) * hidden
    # transformers lets intermediate_size overrule the product (falcon-mamba-7b).
    inner = reader.size("intermediate_size", default=expanded)
    state, rank = (
        reader.size("state_size", default=16),
        time_step_rank(reader, "time_step_rank", hidden),
    )
    count = reader.size("num_hidden_layers", default=32, most=MAX_LAYERS)
    if reader.flag("use_mambapy", False):
        raise reader.unsupported("use_mambapy")
    norms = tuple(Norm("rms_unweighted", n) for n in (rank, state, state)) if falcon else ()
    mixer = selective_scan(
        inner=inner,
        hidden=hidden,
        state=state,
        rank=rank,
        kernel=reader.size("conv_kernel", default=4),
        bias=reader.flag("use_bias", False),
        conv_bias=reader.flag("use_conv_bias", True),
        masked=True,
        norms=norms,
    )
    attention = in_place_of_attention(
        mixer, Linear("out_proj", inner, hidden, reader.flag("use_bias", False)), "selective_scan"
    )
    return _model(
        reader,
        hidden,
        vocab,
        attention,
        count,
        tied=True,
        # Weights of norms that do not train, as buffers: counted as in half precision.
        buffers=(2 * inner, 2 * state, 2 * state) * count if falcon else (),
        quantizable=falcon,
    )


def selective_scan(
    inner: int,
    hidden: int,
    state: int,
    rank: int,
    kernel: int,
    bias: bool,
    conv_bias: bool,
    masked: bool = False,
    norms: tuple[Norm, ...] = (),
) -> SelectiveScan:
    """Return the mixer of these sizes; `bias` is of the projections in and out."""
    return SelectiveScan(
        channels=inner,
        state=state,
        rank=rank,
        kernel=kernel,
        inputs=(
            Linear("in_proj", hidden, 2 * inner, bias),
            Linear("x_proj", inner, rank + 2 * state),
            Linear("dt_proj", rank, inner, True, bypassed=True),
        ),
        conv_bias=conv_bias,
        masked=masked,
        selection_norms=norms,
    )


def parse_mamba2(reader: ConfigReader) -> ModelSpec:
    """Mamba2ForCausalLM."""
    hidden = reader.size("hidden_size", default=4096)
    vocab = reader.size("vocab_size", default=32768)
    inner = reader.size("expand", default=2) * hidden
    heads = reader.size("num_heads", default=128)
    head_dim = reader.divided("expand times hidden_size", inner, "num_heads", heads)
    bias = reader.flag("use_bias", False)
    mixer = state_space(
        hidden,
        heads=heads,
        head_dim=head_dim,
        state=reader.size("state_size", default=128),
        groups=reader.size("n_groups", default=8),
        kernel=reader.size("conv_kernel", default=4),
        chunk=reader.size("chunk_size", default=256),
        bias=bias,
        conv_bias=reader.flag("use_conv_bias", True),
        norm=Norm("rms", inner),
    )
    attention = in_place_of_attention(mixer, Linear("out_proj", inner, hidden, bias), "state_space")
    return _model(
        reader,
        hidden,
        vocab,
        attention,
        count=reader.size("num_hidden_layers", default=64, most=MAX_LAYERS),
        tied=False,
    )


def _model(
    reader: ConfigReader,
    hidden: int,
    vocab: int,
    attention: Attention,
    count: int,
    tied: bool,
    buffers: tuple[int, ...] = (),
    quantizable: bool = True,
) -> ModelSpec:
    wide = reader.flag("residual_in_fp32", True)
    norm = Norm("rms", hidden)
    layer = Layer(norm, attention, None, None, recipe="single_fp32" if wide else "single")
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=norm,
        head=Linear("lm_head", hidden, vocab),
        tied=reader.flag("tie_word_embeddings", tied),
        rope_tables=0,
        position_ids=False,
        buffers=buffers,
        mask_style="none",
        attentions=("sdpa", "eager"),
        caches=("dynamic", "static"),
        residual_fp32=wide,
        logits_fp32=True,
        unadaptable=("out_proj",),
        quantizable=quantizable,
        kernels="mamba-ssm",
    )


def state_space(
    hidden: int,
    heads: int,
    head_dim: int,
    state: int,
    groups: int,
    kernel: int,
    chunk: int,
    bias: bool,
    conv_bias: bool,
    norm: Norm | None = None,
    **more: Any,
) -> StateSpaceDual:
    """Return Mamba 2's mixer of these sizes; `bias` is of the projection in, `norm` that of the
    output, `more` are fields of `StateSpaceDual`."""
    inner = heads * head_dim
    features = 2 * inner + 2 * groups * state + heads
    return StateSpaceDual(
        heads=heads,
        head_dim=head_dim,
        state=state,
        groups=groups,
        kernel=kernel,
        chunk=chunk,
        projection=Linear("in_proj", hidden, features, bias),
        norm=norm,
        conv_bias=conv_bias,
        **more,
    )


def in_place_of_attention(mixer: Mixer, output: Linear, recipe: str) -> Attention:
    """Return a block without heads, keys and values."""
    return Attention(
        heads=1,
        kv_heads=1,
        head_dim=1,
        query=None,
        key=None,
        value=None,
        fused=None,
        output=output,
        rotary=False,
        recipe=recipe,
        mixer=mixer,
    )
