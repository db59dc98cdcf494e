"""Zamba and Zamba 2: Mamba layers, some of which share an attention and an MLP.

Source: transformers/models/{zamba,zamba2}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from estimator.families.blocks import Sizes, model
from estimator.families.counts import check_length, kinds, layer_count, time_step_rank
from estimator.families.mamba import in_place_of_attention, state_space
from estimator.families.reader import ConfigReader
from estimator.spec import Attention, HeadScan, Layer, Linear, Mlp, ModelSpec, Norm, Shared

Ties = dict[str, Any]
"""Fields of linears: whether they are tied, and which of the layers with the same this is."""

_KINDS = ("linear_attention", "hybrid")
_NAMES = ("layers_block_type", "layer_types")

Blocks = Callable[[Ties], tuple[Attention, Mlp]]
"""The shared blocks, by how they are tied."""


def parse(reader: ConfigReader) -> ModelSpec:
    """ZambaForCausalLM: one shared block for all hybrid layers."""
    hidden = reader.size("hidden_size", default=3712)
    count = layer_count(reader, 76)
    listed = kinds(reader, _NAMES, _KINDS)
    if listed:
        listed = check_length(reader, listed, count)
    else:
        period = reader.size("attn_layer_period", default=6)
        offset = reader.count("attn_layer_offset", 4)
        listed = ["linear_attention", "linear_attention", "hybrid"]
        listed += [_KINDS[index % period == offset] for index in range(count - 3)]
    if listed.count("hybrid") == 1:
        # transformers finds nothing to tie the shared block to.
        raise reader.error(
            "layers_block_type", listed, "a list of several hybrid layers or of none"
        )
    heads, kv_heads = reader.heads(16 if "num_key_value_heads" not in reader.config else None, 16)
    sizes = Sizes(
        hidden=hidden,
        width=reader.size("intermediate_size", default=14848),
        count=len(listed),
        vocab=reader.size("vocab_size", default=32000),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=reader.size("attention_head_dim", "head_dim", default=2 * hidden // heads),
    )
    inputs = reader.size("attention_hidden_size", default=2 * hidden)
    if inputs != 2 * hidden:
        raise reader.unsupported("an attention_hidden_size other than twice hidden_size")
    activation = reader.text("hidden_act", "gelu")

    def blocks(ties: Ties) -> tuple[Attention, Mlp]:
        mlp = Mlp(
            gate=Linear("gate_proj", hidden, sizes.width, **ties),
            up=Linear("up_proj", hidden, sizes.width, **ties),
            down=Linear("down_proj", sizes.width, hidden, **ties),
            activation=activation,
        )
        return _attention(reader, sizes, inputs, ties), mlp

    return _model(reader, sizes, _layers(listed, 1, blocks, _head_scan(reader, hidden)), 0)


def _head_scan(reader: ConfigReader, hidden: int) -> Attention:
    inner = reader.size("mamba_expand", default=2) * hidden
    heads = reader.size("n_mamba_heads", default=2)
    reader.divided("mamba_expand times hidden_size", inner, "n_mamba_heads", heads)
    bias = reader.flag("mamba_proj_bias", False)
    mixer = HeadScan(
        channels=inner,
        heads=heads,
        state=reader.size("mamba_d_state", default=16),
        rank=time_step_rank(reader, "mamba_dt_rank", hidden),
        kernel=reader.size("mamba_d_conv", default=4),
        projection=Linear("in_proj", hidden, 2 * inner, bias),
        conv_bias=reader.flag("mamba_conv_bias", True),
    )
    return in_place_of_attention(mixer, Linear("out_proj", inner, hidden, bias), "head_scan")


def parse_zamba2(reader: ConfigReader) -> ModelSpec:
    """Zamba2ForCausalLM: `num_mem_blocks` shared blocks, with adapters for each hybrid layer."""
    hidden = reader.size("hidden_size", default=2560)
    # transformers takes the number of layers from this list alone.
    listed = kinds(reader, _NAMES, _KINDS) or _zamba2_kinds()
    heads, kv_heads = reader.heads(None, 32)
    sizes = Sizes(
        hidden=hidden,
        width=reader.size("intermediate_size", default=4 * hidden),
        count=len(listed),
        vocab=reader.size("vocab_size", default=32000),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=reader.divided("twice hidden_size", 2 * hidden, "num_attention_heads", heads),
    )
    bias = reader.flag("add_bias_linear", False)
    rank = reader.size("adapter_rank", default=128)
    turns = reader.flag("use_mem_rope", False)
    adapted = 3 if reader.flag("use_shared_attention_adapter", False) else 0

    def blocks(ties: Ties) -> tuple[Attention, Mlp]:
        tied = ties["tied"]
        adapters = (_low_rank(2 * hidden, rank, 2 * hidden, tied),) * adapted
        mlp = Mlp(
            gate=None,
            up=Linear("gate_up_proj", hidden, 2 * sizes.width, bias, **ties),
            down=Linear("down_proj", sizes.width, hidden, bias, **ties),
            activation=reader.text("hidden_act", "gelu"),
            fused_gate=True,
            adapter=_low_rank(hidden, rank, 2 * sizes.width, tied),
        )
        return _attention(reader, sizes, 2 * hidden, ties, turns, adapters), mlp

    mixer = _mamba2(reader, hidden, bias)
    layers = _layers(listed, reader.size("num_mem_blocks", default=1), blocks, mixer)
    return _model(reader, sizes, layers, rope_tables=2 if turns else 0)


def _layers(
    listed: list[str], blocks_shared: int, blocks: Blocks, mixer: Attention
) -> tuple[Layer, ...]:
    """Put layers together: hybrid ones take turns with so many shared blocks."""
    hidden = mixer.output.outputs
    norm = Norm("rms", hidden)
    count = listed.count("hybrid")
    full, _ = blocks({"sharing": "", "tied": False})
    mixed = replace(
        full,
        query=None,
        key=None,
        value=None,
        output=mixer.output,
        adapters=(),
        recipe=mixer.recipe,
        mixer=mixer.mixer,
    )
    plain = Layer(norm, mixed, None, None, recipe="single")
    layers: list[Layer] = []
    place = 0
    for kind in listed:
        if kind != "hybrid":
            layers.append(plain)
            continue
        sharing = _sharing(place, blocks_shared, count)
        alike = len(range(place % blocks_shared, count, blocks_shared))
        attention, mlp = blocks({"sharing": sharing, "tied": alike > 1})
        own = tuple(linear for pair in attention.adapters for linear in pair) + mlp.adapter
        assert attention.query is not None
        layers.append(
            Layer(
                Norm("rms", attention.query.inputs, sharing=sharing),
                attention,
                Norm("rms", hidden, sharing=sharing),
                mlp,
                beside=mixed,
                shared=Shared(
                    linear=Linear("linear", hidden, hidden),
                    norm=norm,
                    counted=place < blocks_shared,
                    readers=min(2, count - 1 - place),
                    shadows=own * (alike - 1),
                ),
                recipe="shared",
            )
        )
        place += 1
    return tuple(layers)


def _sharing(place: int, blocks_shared: int, count: int) -> str:
    before, behind = place >= blocks_shared, place + blocks_shared < count
    if before and behind:
        return "between"
    return "last" if before else "first" if behind else ""


def _low_rank(inputs: int, rank: int, outputs: int, tied: bool) -> tuple[Linear, Linear]:
    """Two linears of an `nn.Sequential`, which numbers its modules."""
    down = Linear("0", inputs, rank, tied=tied)
    return down, Linear("1", rank, outputs, tied=tied)


def _attention(
    reader: ConfigReader,
    sizes: Sizes,
    inputs: int,
    ties: Ties,
    turns: bool = False,
    adapters: tuple[tuple[Linear, Linear], ...] = (),
) -> Attention:
    """Attention that reads the hidden states and the embeddings side by side."""
    d = sizes.head_dim
    return Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=d,
        query=Linear("q_proj", inputs, sizes.heads * d, **ties),
        key=Linear("k_proj", inputs, sizes.kv_heads * d, **ties),
        value=Linear("v_proj", inputs, sizes.kv_heads * d, **ties),
        fused=None,
        output=Linear("o_proj", sizes.heads * d, sizes.hidden, **ties),
        rotary=turns,
        dropout=reader.fraction("attention_dropout", 0.0),
        adapters=adapters,
    )


def _mamba2(reader: ConfigReader, hidden: int, bias: bool) -> Attention:
    inner = reader.size("mamba_expand", default=2) * hidden
    heads = reader.size("n_mamba_heads", default=8)
    groups = reader.size("mamba_ngroups", default=1)
    size = reader.divided("mamba_expand times hidden_size", inner, "mamba_ngroups", groups)
    mixer = state_space(
        hidden,
        heads=heads,
        head_dim=reader.divided("mamba_expand times hidden_size", inner, "n_mamba_heads", heads),
        state=reader.size("mamba_d_state", default=64),
        groups=groups,
        kernel=reader.size("mamba_d_conv", default=4),
        chunk=reader.size("chunk_size", default=256),
        bias=bias,
        conv_bias=True,
        norm=Norm("rms", size, groups),
    )
    return in_place_of_attention(mixer, Linear("out_proj", inner, hidden, bias), "state_space")


def _model(
    reader: ConfigReader, sizes: Sizes, layers: tuple[Layer, ...], rope_tables: int
) -> ModelSpec:
    if reader.config.get("num_logits_to_keep", 1) != 1:
        raise reader.unsupported("num_logits_to_keep other than 1")
    return model(
        reader,
        sizes,
        layers,
        Norm("rms", sizes.hidden),
        tied=True,
        rope_tables=rope_tables,
        embedding_cloned=True,
        caches=("dynamic", "static"),
        kernels="mamba-ssm",
    )


def _zamba2_kinds() -> list[str]:
    gaps = (6, *(5,) * 6, 4, 3)
    listed: list[str] = []
    for gap in gaps:
        listed += ["linear_attention"] * gap + ["hybrid"]
    return listed + ["linear_attention"] * 2
