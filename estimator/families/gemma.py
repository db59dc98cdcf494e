"""Gemma, Gemma 2, Gemma 3 and VaultGemma: norms scaled in fp32, scaled embeddings, windows.

Source: transformers/models/{gemma,gemma2,gemma3,vaultgemma}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.errors import UnsupportedError
from estimator.families.blocks import (
    Sizes,
    attention,
    by_kind,
    every,
    gated_mlp,
    layer_windows,
    model,
    read_sizes,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Layer, ModelSpec, Norm

_SCALE_BYTES = 4
"""The embeddings' factor is a buffer of one number."""


def parse(reader: ConfigReader) -> ModelSpec:
    """GemmaForCausalLM: `head_dim` 256 and tied embeddings by default."""
    sizes = read_sizes(reader, head_dim=256)
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms_fp32_scale", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_act", "gelu_pytorch_tanh"))
    layer = Layer(norm, attention(reader, sizes, bias, bias), norm, mlp)
    return model(
        reader,
        sizes,
        (layer,) * sizes.count,
        norm,
        tied=True,
        embedding_scaled=True,
        buffers=(_SCALE_BYTES,),
    )


def parse_gemma2(reader: ConfigReader) -> ModelSpec:
    """Gemma2ForCausalLM: norms on both sides, every second layer slides, scores are capped."""
    sizes = read_sizes(reader, head_dim=256, kv_heads=4)
    return _parse_windowed(reader, sizes, pattern=2, sandwich=True, caps=(50.0, 30.0))


def parse_vaultgemma(reader: ConfigReader) -> ModelSpec:
    """VaultGemmaForCausalLM: Gemma 2 without the norms behind its blocks."""
    sizes = read_sizes(reader, head_dim=256, kv_heads=4)
    return _parse_windowed(reader, sizes, pattern=2, sandwich=False, caps=(50.0, 30.0))


def parse_gemma3(reader: ConfigReader) -> ModelSpec:
    """Gemma3ForCausalLM: query and key norms, a full layer in six, tables a kind of layer.

    Its code hands no cap to the attention.
    """
    if reader.flag("use_bidirectional_attention", False):
        raise UnsupportedError(
            f"the architecture formulas know no bidirectional attention, which {reader.name} "
            "asks for: use gpumem trace"
        )
    sizes = read_sizes(reader, head_dim=256, kv_heads=4)
    pattern = reader.size("sliding_window_pattern", default=6)
    spec = _parse_windowed(reader, sizes, pattern, sandwich=True, caps=(None, None), qk_norm=True)
    kinds = {layer.attention.window for layer in spec.layers}
    return replace(spec, rope_tables=2 * len(kinds))


def _parse_windowed(
    reader: ConfigReader,
    sizes: Sizes,
    pattern: int,
    sandwich: bool,
    caps: tuple[float | None, float | None],
    qk_norm: bool = False,
) -> ModelSpec:
    """Gemma's later versions.

    Args:
        pattern: each how-manieth layer attends to all tokens, without `layer_types`.
        caps: the defaults of `attn_logit_softcapping` and `final_logit_softcapping`.
    """
    bias = reader.flag("attention_bias", False)
    norm = Norm("rms_fp32_scale", sizes.hidden)
    mlp = gated_mlp(sizes, reader.text("hidden_activation", "gelu_pytorch_tanh"))
    softcap = reader.number("attn_logit_softcapping", caps[0]) is not None and not qk_norm
    behind = norm if sandwich else None
    window = reader.size("sliding_window", default=4096)

    def layer(seen: int | None) -> Layer:
        block = attention(
            reader,
            sizes,
            bias,
            bias,
            qk_norm=Norm("rms_fp32_scale", sizes.head_dim) if qk_norm else None,
            norm_after_projections=qk_norm,
            window=seen,
            softcap=softcap,
        )
        return Layer(norm, block, norm, mlp, attention_out_norm=behind, mlp_out_norm=behind)

    windows = layer_windows(reader, sizes.count, window, every(sizes.count, pattern))
    return model(
        reader,
        sizes,
        by_kind(windows, layer),
        norm,
        tied=True,
        embedding_scaled=True,
        buffers=(_SCALE_BYTES,),
        masks=(None, window),
        logits_softcap=reader.number("final_logit_softcapping", caps[1]) is not None,
    )
