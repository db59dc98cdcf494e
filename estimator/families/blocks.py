"""Blocks that many families share: sizes by their usual names, separate projections, MLPs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

from estimator.families.reader import MAX_LAYERS, ConfigReader
from estimator.spec import Attention, Layer, Linear, Mlp, ModelSpec, Norm

Kind = TypeVar("Kind", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Sizes:
    """A model's sizes by the names of most configurations.

    `width` is `intermediate_size`, `count` the number of layers.
    """

    hidden: int
    width: int
    count: int
    vocab: int
    heads: int
    kv_heads: int
    head_dim: int


def read_sizes(
    reader: ConfigReader, head_dim: int | None = None, kv_heads: int | None = None
) -> Sizes:
    """Read the sizes.

    Args:
        head_dim: the family's default; None for the hidden size over the heads.
        kv_heads: the family's default where the field is absent; None for as many as heads.
    """
    hidden = reader.size("hidden_size")
    heads, grouped = reader.heads(kv_heads if "num_key_value_heads" not in reader.config else None)
    if head_dim is None or reader.config.get("head_dim") is not None:
        head_dim = reader.head_dim(hidden, heads)
    return Sizes(
        hidden=hidden,
        width=reader.size("intermediate_size"),
        count=reader.size("num_hidden_layers", most=MAX_LAYERS),
        vocab=reader.size("vocab_size"),
        heads=heads,
        kv_heads=grouped,
        head_dim=head_dim,
    )


def attention(
    reader: ConfigReader,
    sizes: Sizes,
    bias: bool = False,
    output_bias: bool = False,
    output: str = "o_proj",
    **more: Any,
) -> Attention:
    """Separate projections `q_proj`, `k_proj`, `v_proj`; `more` are fields of `Attention`."""
    hidden, d = sizes.hidden, sizes.head_dim
    more.setdefault("dropout", reader.fraction("attention_dropout", 0.0))
    return Attention(
        heads=sizes.heads,
        kv_heads=sizes.kv_heads,
        head_dim=d,
        query=Linear("q_proj", hidden, sizes.heads * d, bias),
        key=Linear("k_proj", hidden, sizes.kv_heads * d, bias),
        value=Linear("v_proj", hidden, sizes.kv_heads * d, bias),
        fused=None,
        output=Linear(output, sizes.heads * d, hidden, output_bias),
        **more,
    )


def gated_mlp(sizes: Sizes, activation: str, bias: bool = False) -> Mlp:
    """`gate_proj`, `up_proj`, `down_proj`."""
    return Mlp(
        gate=Linear("gate_proj", sizes.hidden, sizes.width, bias),
        up=Linear("up_proj", sizes.hidden, sizes.width, bias),
        down=Linear("down_proj", sizes.width, sizes.hidden, bias),
        activation=activation,
    )


def fused_mlp(sizes: Sizes, activation: str) -> Mlp:
    """`gate_up_proj`, which makes gate and up side by side, and `down_proj`."""
    return Mlp(
        gate=None,
        up=Linear("gate_up_proj", sizes.hidden, 2 * sizes.width),
        down=Linear("down_proj", sizes.width, sizes.hidden),
        activation=activation,
        fused_gate=True,
    )


def plain_mlp(sizes: Sizes, activation: str, up: str, down: str, bias: bool) -> Mlp:
    """Two linears without a gate, of sizes that were read."""
    return two_linears(sizes.hidden, sizes.width, up, down, activation, bias)


def two_linears(
    hidden: int, width: int, up: str, down: str, activation: str, bias: bool = True
) -> Mlp:
    """Two linears without a gate: `up` to `width` features, `down` back to `hidden`."""
    return Mlp(
        gate=None,
        up=Linear(up, hidden, width, bias),
        down=Linear(down, width, hidden, bias),
        activation=activation,
    )


def model(
    reader: ConfigReader,
    sizes: Sizes,
    layers: tuple[Layer, ...],
    final_norm: Norm,
    tied: bool,
    head_bias: bool = False,
    **more: Any,
) -> ModelSpec:
    """Put layers together; `tied` is the family's default, `more` are fields of `ModelSpec`."""
    return ModelSpec(
        name=reader.name,
        model_type=reader.model_type,
        vocab_size=sizes.vocab,
        hidden_size=sizes.hidden,
        layers=layers,
        final_norm=final_norm,
        head=Linear("lm_head", sizes.hidden, sizes.vocab, head_bias),
        tied=reader.flag("tie_word_embeddings", tied),
        max_positions=reader.optional_size("max_position_embeddings"),
        **more,
    )


def layer_windows(
    reader: ConfigReader, count: int, window: int, is_sliding: list[bool]
) -> list[int | None]:
    """Return each layer's window: by `layer_types` where given, else by the family's default."""
    kinds = reader.layer_types(count)
    if kinds is not None:
        is_sliding = [kind == "sliding_attention" for kind in kinds]
    return [window if sliding else None for sliding in is_sliding]


def every(count: int, pattern: int) -> list[bool]:
    """Return whether each layer slides where each `pattern`-th layer does not."""
    return [(index + 1) % pattern != 0 for index in range(count)]


def by_kind(kinds: list[Kind], layer: Callable[[Kind], Layer]) -> tuple[Layer, ...]:
    """Make one `Layer` a kind, and return them in order."""
    made = {kind: layer(kind) for kind in set(kinds)}
    return tuple(made[kind] for kind in kinds)
