"""DeepSeek-V3.2 and GLM-5: latent attention to the keys that an indexer chooses.

Source: {modeling,configuration}_*.py of deepseek_v32 and glm_moe_dsa in transformers/models.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.counts import check_length, kinds
from estimator.families.deepseek import latent_attention
from estimator.families.moe import layer_count, model_of
from estimator.families.moe_shared import (
    GroupedDefaults,
    after_first,
    by_mlp_type,
    correction_biases,
    grouped_blocks,
)
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, HandedChoice, Indexer, Linear, ModelSpec, Norm


def parse_deepseek_v32(reader: ConfigReader) -> ModelSpec:
    """DeepseekV32ForCausalLM."""
    hidden = reader.size("hidden_size", default=7168)
    attention = latent_attention(reader, hidden, 128, "interleaved")
    attention = _indexed(reader, attention, hidden, 64, "halves")
    count = layer_count(reader, 61)
    sparse = by_mlp_type(reader, count, after_first(reader, count, 3))
    defaults = GroupedDefaults(18432, 2048, 256, groups=8, active_groups=4)
    blocks = grouped_blocks(reader, hidden, sparse, defaults)
    spec = model_of(reader, hidden, 129280, [(attention, block) for block in blocks])
    return _with_choices(spec, correction_biases(blocks))


def parse_glm_moe_dsa(reader: ConfigReader) -> ModelSpec:
    """GlmMoeDsaForCausalLM: some layers read the choice of the layer before."""
    hidden = reader.size("hidden_size", default=6144)
    ranks = {"query_rank": 2048, "nope": 192, "value": 256}
    plain = latent_attention(reader, hidden, 64, "interleaved", **ranks)
    plain = replace(plain, recipe="sparse_latent", masked=True)
    indexed = _indexed(reader, plain, hidden, 32, "interleaved")
    most = reader.size("index_topk", default=2048)
    count = layer_count(reader, 78)
    own = _own_choices(reader, count)
    attentions = [
        replace(
            indexed if chooses else plain,
            handed_choice=HandedChoice(most, index + 1 < count, index > 0 and own[index - 1]),
        )
        for index, chooses in enumerate(own)
    ]
    sparse = by_mlp_type(reader, count, after_first(reader, count, 3))
    blocks = grouped_blocks(reader, hidden, sparse, GroupedDefaults(12288, 2048, 256))
    spec = model_of(reader, hidden, 154880, list(zip(attentions, blocks, strict=True)))
    return _with_choices(spec, correction_biases(blocks))


def _with_choices(spec: ModelSpec, buffers: tuple[int, ...]) -> ModelSpec:
    layers = tuple(replace(layer, idle=_unlearned(layer.attention)) for layer in spec.layers)
    return replace(
        spec,
        layers=layers,
        buffers=buffers,
        caches=("dynamic", "static"),
        attentions=("sdpa", "eager"),
        mask_style="each",
    )


def _own_choices(reader: ConfigReader, count: int) -> list[bool]:
    """Return which layers have an indexer of their own."""
    listed = kinds(reader, ("indexer_types",), ("full", "shared"))
    pattern = reader.config.get("index_topk_pattern")
    if listed:
        own = [kind == "full" for kind in check_length(reader, listed, count)]
    elif pattern is not None:
        if not isinstance(pattern, str) or len(pattern) != count or set(pattern) - {"F", "S"}:
            raise reader.error("index_topk_pattern", pattern, f"{count} letters F or S")
        own = [letter == "F" for letter in pattern]
    else:
        every = reader.size("index_topk_freq", default=1)
        offset = reader.count("index_skip_topk_offset", 2)
        own = [max(index - offset + 1, 0) % every == 0 for index in range(count)]
    if not own[0]:
        raise reader.error("indexer_types", reader.config.get("indexer_types"), "full at first")
    return own


def _indexed(
    reader: ConfigReader, attention: Attention, hidden: int, default_heads: int, rotation: str
) -> Attention:
    """Return latent attention with an indexer in front."""
    latent = attention.latent
    assert latent is not None
    if latent.query_down is None:
        raise reader.error("q_lora_rank", None, "a size: the indexer reads compressed queries")
    heads = reader.size("index_n_heads", default=default_heads)
    dim = reader.size("index_head_dim", default=128)
    if latent.rope_dim > dim:
        raise reader.error("index_head_dim", dim, f"at least qk_rope_head_dim, {latent.rope_dim}")
    indexer = Indexer(
        heads=heads,
        head_dim=dim,
        chosen=reader.size("index_topk", default=2048),
        query=Linear("wq_b", latent.query_down.outputs, heads * dim),
        key=Linear("wk", hidden, dim),
        norm=Norm("layer", dim),
        weights=Linear("weights_proj", hidden, heads, kept_whole=True),
        rotation=rotation,
    )
    return replace(attention, indexer=indexer, recipe="sparse_latent", masked=True)


def _unlearned(attention: Attention) -> tuple[Linear | Norm, ...]:
    """The indexer's modules: they run without autograd, so that none gets a gradient."""
    indexer = attention.indexer
    if indexer is None:
        return ()
    return indexer.query, indexer.key, indexer.norm, indexer.weights
