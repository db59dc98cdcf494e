"""BERT and its kin as decoders: post-norm layers, token types, a transform before the head.

Source: transformers/models/{bert,roberta,xlm_roberta,camembert,data2vec,ernie,bert_generation}/
{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.families.blocks import two_linears
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, HeadTransform, Layer, Linear, ModelSpec, Norm


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What transformers takes for fields that are absent."""

    vocab: int = 30522
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    width: int = 3072
    positions: int = 512
    token_types: int = 2
    dropout: float = 0.1
    narrow: int | None = None
    """Features of embeddings that a linear brings to the hidden size."""


_SIZES = {
    "bert-generation": _Sizes(50358, 1024, 24, 16, 4096),
    "electra": _Sizes(hidden=256, heads=4, width=1024, narrow=128),
    "megatron-bert": _Sizes(29056, 1024, 24, 16, 4096),
    "rembert": _Sizes(250300, 1152, 32, 18, 4608, dropout=0.0, narrow=256),
    "roberta": _Sizes(50265),
    "roberta-prelayernorm": _Sizes(50265),
    "xlm-roberta-xl": _Sizes(250880, 2560, 36, 32, 10240, 514, 1),
}

_HEADS_FIRST = ("camembert", "xlm-roberta")
"""Types whose classes define the head before the model."""


def parse(reader: ConfigReader) -> ModelSpec:
    """BertLMHeadModel, ErnieForCausalLM: positions as they come."""
    if reader.flag("use_task_id", False):
        raise reader.unsupported("use_task_id")
    return _parse(reader, counted=False)


def parse_roberta(reader: ConfigReader) -> ModelSpec:
    """RobertaForCausalLM and its copies: positions are counted from the tokens in training."""
    return _parse(reader, counted=True)


def parse_generation(reader: ConfigReader) -> ModelSpec:
    """BertGenerationDecoder: no token types, and a head without a transform."""
    return _parse(reader, counted=False, plain=True)


def parse_electra(reader: ConfigReader) -> ModelSpec:
    """ElectraForCausalLM: embeddings may be narrower, and so is then what the head reads."""
    spec = _parse(reader, counted=False)
    default = _SIZES["electra"].narrow
    narrow = reader.size("embedding_size", default=default)
    hidden, vocab = spec.hidden_size, spec.vocab_size
    norm = Norm("layer", narrow)
    into = Linear("embeddings_project", narrow, hidden, True)
    return replace(
        spec,
        head=Linear("generator_lm_head", narrow, vocab, True),
        head_transform=HeadTransform(Linear("dense", hidden, narrow, True), "gelu", norm),
        embedding_norm=norm,
        project_in=into if narrow != hidden else None,
        project_in_last=narrow != hidden,
    )


def parse_megatron(reader: ConfigReader) -> ModelSpec:
    """MegatronBertForCausalLM: norms before the blocks, none of the embeddings; eager alone."""
    spec = _inlined(_norm_first(_parse(reader, counted=False)))
    layers = tuple(replace(layer, recipe="norm_first_named") for layer in spec.layers)
    positions = spec.position_rows
    return replace(
        spec,
        layers=layers,
        embedding_norm=None,
        buffers=(8 * positions,),
    )


def parse_rembert(reader: ConfigReader) -> ModelSpec:
    """RemBertForCausalLM: narrow embeddings, and an untied head of a size of its own."""
    spec = _inlined(_parse(reader, counted=False))
    hidden, vocab = spec.hidden_size, spec.vocab_size
    narrow = reader.size("input_embedding_size", default=_SIZES["rembert"].narrow)
    wide = reader.size("output_embedding_size", default=1664)
    act = reader.text("hidden_act", "gelu")
    return replace(
        spec,
        head=Linear("decoder", wide, vocab, True),
        tied=False,
        head_transform=HeadTransform(Linear("dense", hidden, wide, True), act, Norm("layer", wide)),
        embedding_norm=Norm("layer", narrow),
        project_in=Linear("embedding_hidden_mapping_in", narrow, hidden, True),
        project_in_last=True,
        embedding_apart=True,
        buffers=(8 * spec.position_rows,),
    )


def _inlined(spec: ModelSpec) -> ModelSpec:
    """Layers compute attention themselves, return its probabilities, and let every token see all
    others."""
    layer = spec.layers[0]
    attention = replace(layer.attention, eager="plain_named", bidirectional=True)
    layers = (replace(layer, attention=attention),) * len(spec.layers)
    return replace(
        spec,
        layers=layers,
        attentions=("eager",),
        caches=("dynamic", "quantized"),
        mask_style="none",
        sum_in_place=True,
        returns_probabilities=True,
    )


def parse_prelayernorm(reader: ConfigReader) -> ModelSpec:
    """RobertaPreLayerNormForCausalLM: norms before the blocks, and one behind the last layer."""
    return _norm_first(_parse(reader, counted=True))


def parse_xlm_roberta_xl(reader: ConfigReader) -> ModelSpec:
    """XLMRobertaXLForCausalLM: the same without a norm of the embeddings, or the MLP's dropout."""
    spec = _norm_first(_parse(reader, counted=True))
    layers = tuple(replace(layer, recipe="norm_first_undropped") for layer in spec.layers)
    return replace(spec, layers=layers, embedding_norm=None)


def _norm_first(spec: ModelSpec) -> ModelSpec:
    norm = Norm("layer", spec.hidden_size)
    layers = tuple(
        replace(
            layer,
            input_norm=norm,
            post_norm=norm,
            attention_out_norm=None,
            mlp_out_norm=None,
            recipe="norm_first",
        )
        for layer in spec.layers
    )
    return replace(spec, layers=layers, final_norm=norm)


def _parse(reader: ConfigReader, counted: bool, plain: bool = False) -> ModelSpec:
    sizes = _SIZES.get(reader.model_type, _Sizes())
    hidden = reader.size("hidden_size", default=sizes.hidden)
    heads = reader.size("num_attention_heads", default=sizes.heads)
    count = reader.size("num_hidden_layers", default=sizes.layers, most=MAX_LAYERS)
    width = reader.size("intermediate_size", default=sizes.width)
    vocab = reader.size("vocab_size", default=sizes.vocab)
    if reader.flag("add_cross_attention", False):
        raise reader.unsupported("add_cross_attention")
    if not reader.flag("tie_word_embeddings", True) and not sizes.narrow:
        # The head then has a second bias, which no checkpoint of these has.
        raise reader.unsupported("an untied head")
    norm = Norm("layer", hidden)
    decodes = reader.flag("is_decoder", False)
    attention = Attention(
        heads=heads,
        kv_heads=heads,
        head_dim=reader.divided("hidden_size", hidden, "num_attention_heads", heads),
        query=Linear("query", hidden, hidden, True),
        key=Linear("key", hidden, hidden, True),
        value=Linear("value", hidden, hidden, True),
        fused=None,
        output=Linear("dense", hidden, hidden, True),
        rotary=False,
        dropout=reader.fraction("attention_probs_dropout_prob", sizes.dropout),
        eager="plain",
        bidirectional=not decodes,
    )
    act = reader.text("hidden_act", "gelu")
    mlp = two_linears(hidden, width, "dense", "dense", act)
    dropout = reader.fraction("hidden_dropout_prob", sizes.dropout)
    layer = Layer(
        None,
        attention,
        None,
        mlp,
        dropout=dropout,
        attention_out_norm=norm,
        mlp_out_norm=norm,
        recipe="post_norm",
    )
    positions = reader.size("max_position_embeddings", default=sizes.positions)
    transform = HeadTransform(
        Linear("dense", hidden, hidden, True), "gelu" if counted else act, norm
    )
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=vocab,
        hidden_size=hidden,
        layers=(layer,) * count,
        final_norm=None,
        head=Linear("decoder", hidden, vocab, True),
        tied=reader.flag("tie_word_embeddings", True),
        head_transform=None if plain else transform,
        position_rows=positions,
        positions_counted=counted,
        token_types=0 if plain else reader.size("type_vocab_size", default=sizes.token_types),
        embedding_norm=norm,
        embedding_dropout=dropout,
        embedding_named=False,
        rope_tables=0,
        max_positions=positions,
        # Positions and token types of all positions, int64.
        buffers=(8 * positions,) * (1 if plain else 2),
        mask_style="additive" if decodes else "none",
        defined_first=("head",) if reader.model_type in _HEADS_FIRST else (),
    )
