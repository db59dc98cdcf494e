"""Models of Mamba layers beside attention: Bamba, Granite 4, Jamba and Nemotron-H.

Source: transformers/models/{bamba,granitemoehybrid,jamba,nemotron_h}/
{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import replace

from estimator.families.blocks import Sizes, attention, by_kind, gated_mlp, model, two_linears
from estimator.families.counts import check_length, kinds, time_step_rank
from estimator.families.mamba import selective_scan, state_space
from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import (
    Attention,
    Layer,
    Linear,
    Mixer,
    Mlp,
    ModelSpec,
    Moe,
    Norm,
    StateSpaceDual,
)

_KINDS = ("linear_attention", "full_attention")


def parse_bamba(reader: ConfigReader) -> ModelSpec:
    """BambaForCausalLM: attention in the layers of `attn_layer_indices`, dense MLPs.

    The model's loop names the probabilities that eager attention returns until the next layer
    has returned.
    """
    sizes = hybrid_sizes(reader, vocab=128000, kv_heads=8)
    if reader.config.get("z_loss_coefficient"):
        raise reader.unsupported("z_loss_coefficient")
    bias = reader.flag("attention_bias", False)
    full = attention(
        reader, sizes, bias, bias, rotary_dim=reader.rotary_dim(sizes.head_dim, "", 0.5)
    )
    mixed = _in_its_place(full, *_shared_names_mixer(reader, sizes.hidden))
    mlp = gated_mlp(sizes, reader.text("hidden_act", "silu"), reader.flag("mlp_bias", False))
    attends = reader.indices("attn_layer_indices")
    norm = Norm("rms", sizes.hidden)
    layers = by_kind(
        [index in attends for index in range(sizes.count)],
        lambda chosen: Layer(norm, full if chosen else mixed, norm, mlp),
    )
    spec = _hybrid(model(reader, sizes, layers, norm, tied=False))
    return replace(spec, returns_probabilities=True, defined_first=("mlp",))


def parse_granitemoehybrid(reader: ConfigReader) -> ModelSpec:
    """GraniteMoeHybridForCausalLM: a shared MLP in each layer, and experts where there are any."""
    sizes = hybrid_sizes(reader, vocab=32000, kv_heads=None, width=11008)
    if reader.flag("output_router_logits", False):
        raise reader.unsupported("output_router_logits, the loss that balances experts")
    listed = kinds(reader, ("layer_types", "layers_block_type"), _KINDS)
    listed = check_length(reader, listed, sizes.count) if listed else ["linear_attention"]
    if len(listed) < sizes.count:
        listed *= sizes.count
    bias = reader.flag("attention_bias", False)
    turns = reader.text("position_embedding_type", "none") == "rope"
    full = attention(reader, sizes, bias, bias, rotary=turns)
    act = reader.text("hidden_act", "silu")
    width = reader.size("shared_intermediate_size", default=1024)
    mlp: Mlp | Moe = Mlp(
        gate=None,
        up=Linear("input_linear", sizes.hidden, 2 * width),
        down=Linear("output_linear", width, sizes.hidden),
        activation=act,
        fused_gate=True,
    )
    experts = reader.count("num_local_experts", 8)
    if experts:
        assert isinstance(mlp, Mlp)
        mlp = Moe(
            hidden=sizes.hidden,
            width=sizes.width,
            experts=experts,
            active=reader.size("num_experts_per_tok", default=2),
            activation=act,
            router="top_softmax",
            shared=mlp,
            shared_order="outside",
        )
    norm = Norm("rms", sizes.hidden)
    mixed = full
    if "linear_attention" in listed:
        mixed = _in_its_place(full, *_shared_names_mixer(reader, sizes.hidden))
    layers = by_kind(
        listed,
        lambda kind: Layer(
            norm, full if kind == "full_attention" else mixed, norm, mlp, residual_scaled=True
        ),
    )
    spec = model(
        reader,
        sizes,
        layers,
        norm,
        tied=False,
        embedding_multiplied=True,
        logits_scaled=True,
        rope_tables=2 if turns else 0,
    )
    return replace(_hybrid(spec), defined_first=("mlp",))


def parse_jamba(reader: ConfigReader) -> ModelSpec:
    """JambaForCausalLM: Mamba with norms on steps and states; experts in every other layer."""
    sizes = hybrid_sizes(reader, vocab=65536, kv_heads=8)
    if reader.flag("output_router_logits", False):
        raise reader.unsupported("output_router_logits, the loss that balances experts")
    full = attention(reader, sizes, rotary=False)
    hidden = sizes.hidden
    state = reader.size("mamba_d_state", default=16)
    rank = time_step_rank(reader, "mamba_dt_rank", hidden)
    inner = reader.size("mamba_expand", default=2) * hidden
    bias = reader.flag("mamba_proj_bias", False)
    if reader.flag("use_mambapy", False):
        raise reader.unsupported("use_mambapy")
    mixer = selective_scan(
        inner=inner,
        hidden=hidden,
        state=state,
        rank=rank,
        kernel=reader.size("mamba_d_conv", default=4),
        bias=bias,
        conv_bias=reader.flag("mamba_conv_bias", True),
        norms=tuple(Norm("rms", size) for size in (rank, state, state)),
    )
    mixed = _in_its_place(full, mixer, Linear("out_proj", inner, hidden, bias))
    act = reader.text("hidden_act", "silu")
    dense = gated_mlp(sizes, act)
    experts = reader.size("num_experts", default=16)
    sparse = Moe(
        hidden=hidden,
        width=sizes.width,
        experts=experts,
        active=reader.size("num_experts_per_tok", default=2),
        activation=act,
        router_linear=Linear("router", hidden, experts),
    )
    norm = Norm("rms", hidden)
    attends, mixes = _periodic(reader, "attn", 8, 4), _periodic(reader, "expert", 2, 1)
    chosen = [
        (index % attends[0] == attends[1], experts > 1 and index % mixes[0] == mixes[1])
        for index in range(sizes.count)
    ]
    layers = by_kind(
        chosen,
        lambda kind: Layer(norm, full if kind[0] else mixed, norm, sparse if kind[1] else dense),
    )
    return _hybrid(model(reader, sizes, layers, norm, tied=False, rope_tables=0))


_LETTERS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}


def parse_nemotron_h(reader: ConfigReader) -> ModelSpec:
    """NemotronHForCausalLM: each layer is one norm and one of four blocks."""
    listed = _nemotron_kinds(reader)
    sizes = replace(hybrid_sizes(reader, vocab=131072, kv_heads=8, head_dim=128), count=len(listed))
    hidden = sizes.hidden
    full = attention(reader, sizes, rotary=False)
    heads = reader.size("mamba_num_heads", default=128)
    head_dim = reader.size("mamba_head_dim", default=64)
    mixer = state_space(
        hidden,
        heads=heads,
        head_dim=head_dim,
        state=reader.size("ssm_state_size", default=128),
        groups=reader.size("mamba_n_groups", "n_groups", default=8),
        kernel=reader.size("mamba_d_conv", "conv_kernel", default=4),
        chunk=reader.size("mamba_chunk_size", "chunk_size", default=128),
        bias=reader.flag("use_bias", False),
        conv_bias=reader.flag("use_conv_bias", True),
        norm=Norm("rms", heads * head_dim),
    )
    output = Linear("out_proj", heads * head_dim, hidden, reader.flag("use_bias", False))
    mixed = _in_its_place(full, mixer, output)
    norm = Norm("rms", hidden)
    act = reader.text("mlp_hidden_act", "relu2")
    bias = reader.flag("mlp_bias", False)

    def layer(kind: str) -> Layer:
        if kind in _KINDS:
            block = full if kind == "full_attention" else mixed
            return Layer(norm, block, None, None, recipe="single")
        width = reader.size("intermediate_size", default=21504)
        mlp: Mlp | Moe = two_linears(hidden, width, "up_proj", "down_proj", act, bias)
        if kind == "moe":
            mlp = _nemotron_experts(reader, hidden, act, bias)
        return Layer(norm, full, None, mlp, attends=False, recipe="single")

    layers = by_kind(listed, layer)
    spec = model(reader, sizes, layers, norm, tied=False, rope_tables=0)
    mixtures = [layer.mlp for layer in layers if isinstance(layer.mlp, Moe)]
    return replace(
        _hybrid(spec),
        logits_fp32=True,
        unadaptable=("out_proj",),
        buffers=tuple(4 * mixture.experts for mixture in mixtures),
        mask_style="additive" if "full_attention" in listed else "none",
    )


def _nemotron_experts(reader: ConfigReader, hidden: int, act: str, bias: bool) -> Moe:
    """Experts without gates, of a latent where `moe_latent_size` is set, and a shared one."""
    latent = reader.optional_size("moe_latent_size")
    around = None
    if latent is not None:
        around = (
            Linear("fc1_latent_proj", hidden, latent, bias),
            Linear("fc2_latent_proj", latent, hidden, bias),
        )
    shared = reader.size("moe_shared_expert_intermediate_size", default=7688)
    return Moe(
        hidden=latent or hidden,
        width=reader.size("moe_intermediate_size", default=7688),
        experts=reader.size("n_routed_experts", "num_local_experts", default=8),
        active=reader.size("num_experts_per_tok", default=2),
        activation=act,
        router="sigmoid_groups",
        groups=reader.size("n_group", default=1),
        active_groups=reader.size("topk_group", default=1),
        normed=reader.flag("norm_topk_prob", True),
        gated=False,
        latent=around,
        shared=two_linears(hidden, shared, "up_proj", "down_proj", act, bias),
    )


def _nemotron_kinds(reader: ConfigReader) -> list[str]:
    pattern = reader.config.get("hybrid_override_pattern")
    if pattern is not None:
        known = isinstance(pattern, str) and pattern and set(pattern) <= set(_LETTERS)
        if not known:
            raise reader.error("hybrid_override_pattern", pattern, "letters out of M, E, * and -")
        return [_LETTERS[letter] for letter in pattern]
    known_kinds = tuple(_LETTERS.values())
    listed = kinds(reader, ("layers_block_type", "layer_types"), known_kinds)
    return listed or ["linear_attention", "moe", "full_attention", "mlp"]


def hybrid_sizes(
    reader: ConfigReader,
    vocab: int,
    kv_heads: int | None,
    width: int = 14336,
    head_dim: int | None = None,
) -> Sizes:
    """Return the sizes, with defaults that most hybrids share."""
    hidden = reader.size("hidden_size", default=4096)
    given = reader.config.get("num_key_value_heads") is not None
    heads, grouped = reader.heads(None if given else kv_heads, 32)
    own = reader.config.get("head_dim") is not None or head_dim is None
    return Sizes(
        hidden=hidden,
        width=reader.size("intermediate_size", default=width),
        count=reader.size("num_hidden_layers", default=32, most=MAX_LAYERS),
        vocab=reader.size("vocab_size", default=vocab),
        heads=heads,
        kv_heads=grouped,
        head_dim=reader.head_dim(hidden, heads) if own or head_dim is None else head_dim,
    )


def _shared_names_mixer(reader: ConfigReader, hidden: int) -> tuple[StateSpaceDual, Linear]:
    """Return the Mamba 2 mixer of Bamba and its kin, who share the fields' names."""
    inner = reader.size("mamba_expand", default=2) * hidden
    heads = reader.size("mamba_n_heads", default=128)
    bias = reader.flag("mamba_proj_bias", False)
    mixer = state_space(
        hidden,
        heads=heads,
        head_dim=reader.divided("mamba_expand times hidden_size", inner, "mamba_n_heads", heads),
        state=reader.size("mamba_d_state", default=256),
        groups=reader.size("mamba_n_groups", default=1),
        kernel=reader.size("mamba_d_conv", default=4),
        chunk=reader.size("mamba_chunk_size", default=256),
        bias=bias,
        conv_bias=reader.flag("mamba_conv_bias", True),
        norm=Norm("rms", inner),
    )
    return mixer, Linear("out_proj", inner, hidden, bias)


def _in_its_place(full: Attention, mixer: Mixer, output: Linear) -> Attention:
    """Return a block with a mixer in attention's place, in a model that has attention, too."""
    dual = isinstance(mixer, StateSpaceDual)
    return replace(
        full,
        query=None,
        key=None,
        value=None,
        output=output,
        recipe="state_space" if dual else "selective_scan",
        mixer=mixer,
    )


def _periodic(reader: ConfigReader, name: str, period: int, offset: int) -> tuple[int, int]:
    return (
        reader.size(f"{name}_layer_period", default=period),
        reader.count(f"{name}_layer_offset", offset),
    )


def _hybrid(spec: ModelSpec) -> ModelSpec:
    recurrent = any(layer.attention.mixer is not None for layer in spec.layers)
    if not recurrent:
        return spec
    attends = any(layer.attention.mixer is None for layer in spec.layers)
    return replace(
        spec,
        kernels="mamba-ssm",
        caches=("dynamic", "static"),
        mask_style="additive" if attends else "none",
    )
