"""GLM-4.5 and its kin: a sigmoid router over groups, dense first layers, a shared expert.

Source: transformers/models/{glm4_moe,solar_open,dots1,exaone_moe}/{modeling,configuration}_*.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.families.blocks import every, layer_windows
from estimator.families.moe import QWEN_NAMES, attention_of, gated_mlp, layer_count, model_of
from estimator.families.reader import ConfigReader
from estimator.spec import Mlp, ModelSpec, Moe, Norm


def parse_glm4_moe(reader: ConfigReader) -> ModelSpec:
    """Glm4MoeForCausalLM: half of each head is rotated; norms of queries and keys are optional."""
    hidden = reader.size("hidden_size", default=4096)
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 96, 8, qkv_bias=bias, rounded=True)
    head_dim = attention.head_dim
    attention = replace(
        attention,
        rotary_dim=reader.rotary_dim(head_dim, "partial_rotary_factor", 0.5),
        qk_norm=Norm("rms", head_dim) if reader.flag("use_qk_norm", False) else None,
    )
    sparse = after_first(reader, layer_count(reader, 46), 1)
    blocks = grouped_blocks(reader, hidden, sparse, GroupedDefaults(10944, 1408, 128))
    spec = model_of(reader, hidden, 151552, [(attention, block) for block in blocks])
    return replace(spec, buffers=correction_biases(blocks))


def parse_solar_open(reader: ConfigReader) -> ModelSpec:
    """SolarOpenForCausalLM: mixtures in all layers, Llama's attention."""
    hidden = reader.size("hidden_size", default=4096)
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 64, 8, qkv_bias=bias, default_head_dim=128)
    sparse = [True] * layer_count(reader, 48)
    blocks = grouped_blocks(reader, hidden, sparse, GroupedDefaults(10944, 1280, 128))
    spec = model_of(reader, hidden, 196608, [(attention, block) for block in blocks])
    return replace(spec, buffers=correction_biases(blocks))


def parse_dots1(reader: ConfigReader) -> ModelSpec:
    """Dots1ForCausalLM: norms on the heads of queries and keys, sliding windows in late layers."""
    hidden = reader.size("hidden_size", default=4608)
    bias = reader.flag("attention_bias", False)
    attention = attention_of(reader, hidden, 32, 32, qkv_bias=bias, output_bias=bias)
    attention = replace(attention, qk_norm=Norm("rms", attention.head_dim))
    count = layer_count(reader, 62)
    window = 4096
    if "sliding_window" in reader.config:
        window = reader.optional_size("sliding_window") or 0
    first = reader.count("max_window_layers", 62)
    late = [bool(window) and index >= first for index in range(count)]
    windows = layer_windows(reader, count, window, late)
    defaults = GroupedDefaults(10944, 1408, None, active=None, shared=None, normed=False)
    blocks = grouped_blocks(reader, hidden, after_first(reader, count, 0), defaults)
    layers = [
        (replace(attention, window=seen), block)
        for seen, block in zip(windows, blocks, strict=True)
    ]
    spec = model_of(reader, hidden, 152064, layers)
    masks = (None, window) if any(windows) else ()
    return replace(spec, buffers=correction_biases(blocks), masks=masks)


def parse_exaone_moe(reader: ConfigReader) -> ModelSpec:
    """ExaoneMoeForCausalLM: EXAONE 4's attention in pre-norm layers, of which full ones don't
    rotate beside sliding ones."""
    hidden = reader.size("hidden_size", default=4096)
    attention = attention_of(reader, hidden, 32, 32)
    attention = replace(
        attention, qk_norm=Norm("rms", attention.head_dim), norm_after_projections=True
    )
    count = layer_count(reader, 32)
    window = 4096
    if "sliding_window" in reader.config:
        window = reader.optional_size("sliding_window") or 0
    slides = [False] * count
    if window and reader.config.get("layer_types") is None:
        slides = every(count, reader.size("sliding_window_pattern", default=4))
    windows = layer_windows(reader, count, window, slides)
    sparse = by_mlp_type(reader, count, after_first(reader, count, 1))
    blocks = grouped_blocks(reader, hidden, sparse, GroupedDefaults(16384, 1024, 64))
    layers = [
        (replace(attention, window=seen, rotary=not window or seen is not None), block)
        for seen, block in zip(windows, blocks, strict=True)
    ]
    spec = model_of(reader, hidden, 102400, layers)
    masks = (None, window) if any(windows) else ()
    return replace(spec, buffers=correction_biases(blocks), masks=masks)


@dataclass(frozen=True, slots=True)
class GroupedDefaults:
    """What transformers takes for fields of `grouped_blocks` that are absent; None for nothing."""

    dense_width: int
    width: int
    experts: int | None
    active: int | None = 8
    shared: int | None = 1
    groups: int = 1
    active_groups: int = 1
    normed: bool = True
    adapted: bool = True
    """Whether peft takes names of modules for stacked experts, and adapts no linears of them."""


def grouped_blocks(
    reader: ConfigReader, hidden: int, sparse: list[bool], defaults: GroupedDefaults
) -> list[Mlp | Moe]:
    """Return each layer's block: a mixture with a sigmoid router over groups, or a dense MLP."""
    width = reader.size("moe_intermediate_size", default=defaults.width)
    shared = reader.size("n_shared_experts", "num_shared_experts", default=defaults.shared)
    groups = reader.size("n_group", default=defaults.groups)
    names = ("n_routed_experts", "num_experts", "num_local_experts")
    experts = reader.size(*names, default=defaults.experts)
    reader.divided(names[0], experts, "n_group", groups)
    mixture = Moe(
        hidden=hidden,
        width=width,
        experts=experts,
        active=reader.size("num_experts_per_tok", default=defaults.active),
        activation=reader.text("hidden_act", "silu"),
        router="sigmoid_groups",
        groups=groups,
        active_groups=reader.size("topk_group", default=defaults.active_groups),
        normed=reader.flag("norm_topk_prob", defaults.normed),
        shared=gated_mlp(reader, hidden, width * shared, adaptable=not defaults.adapted),
        adapter_names=QWEN_NAMES if defaults.adapted else (),
    )
    size = reader.size("intermediate_size", default=defaults.dense_width)
    block = gated_mlp(reader, hidden, size, adaptable=not defaults.adapted)
    return [mixture if mixed else block for mixed in sparse]


def after_first(reader: ConfigReader, count: int, default: int) -> list[bool]:
    """Return which layers are mixtures: all after the first `first_k_dense_replace`."""
    first = reader.count("first_k_dense_replace", default)
    return [index >= first for index in range(count)]


def by_mlp_type(reader: ConfigReader, count: int, default: list[bool]) -> list[bool]:
    """Return which layers are mixtures by `mlp_layer_types`, where it is given."""
    kinds = reader.config.get("mlp_layer_types")
    if kinds is None:
        return default
    known = isinstance(kinds, list) and all(kind in ("dense", "sparse") for kind in kinds)
    if not known or len(kinds) != count:
        raise reader.error("mlp_layer_types", kinds, f"a list of {count} times dense or sparse")
    return [kind == "sparse" for kind in kinds]


def correction_biases(blocks: list[Mlp | Moe]) -> tuple[int, ...]:
    """Return the bytes of each router's buffer that corrects its scores, fp32."""
    return tuple(4 * block.experts for block in blocks if isinstance(block, Moe))
