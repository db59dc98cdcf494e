"""Gemma 4, text: wide heads in full layers, values normalized, experts beside the MLP.

Source: transformers/models/gemma4/{modeling,configuration}_gemma4.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
from estimator.spec import (
    Attention,
    Layer,
    Linear,
    Mlp,
    ModelSpec,
    Moe,
    Norm,
    TokenInputs,
    TokenTables,
)

_SCALE_BYTES = 2
"""The embeddings' factor, and each layer's, is a buffer of one number in the weights' dtype."""


def parse(reader: ConfigReader) -> ModelSpec:
    """Gemma4ForCausalLM of a text configuration.

    The last layers of small models (E2B, E4B) attend to an earlier one's keys and values, and each
    layer has an input of its own by token.

    Raises:
        UnsupportedError: for attention in both directions.
        ModelError: as `ConfigReader`, and where layers read keys and values that none has.
    """
    return _model(reader, reader.count("hidden_size_per_layer_input", 256), default_window=512)


def parse_unified(reader: ConfigReader) -> ModelSpec:
    """Gemma4UnifiedForCausalLM of a text configuration: without experts or inputs by token.

    Raises:
        UnsupportedError: for attention in both directions.
        ModelError: as `parse`.
    """
    return _model(reader, 0, default_window=1024)


def _model(reader: ConfigReader, features: int, default_window: int) -> ModelSpec:
    """Return the spec of a model with so many features of each layer's input by token."""
    if reader.config.get("use_bidirectional_attention") == "all":
        raise reader.unsupported("attention in both directions (use_bidirectional_attention)")
    sizes = read_sizes(reader, head_dim=256, kv_heads=4)
    norm = Norm("rms_pow", sizes.hidden)
    window = reader.size("sliding_window", default=default_window)
    windows = layer_windows(reader, sizes.count, window, every(sizes.count, 6))
    # The last layer is made a full one.
    windows[-1] = None
    own = _token_tables(reader, sizes, features)
    kinds = [
        (seen, sharing, index == sizes.count - 1)
        for index, (seen, sharing) in enumerate(
            zip(windows, sharing_of(reader, windows), strict=True)
        )
    ]

    def layer(kind: tuple[int | None, Sharing, bool]) -> Layer:
        seen, sharing, last = kind
        inner = _full_sizes(reader, sizes) if seen is None else sizes
        doubled = sharing.reads and reader.flag("use_double_wide_mlp", False)
        wide = replace(sizes, width=2 * sizes.width)
        return Layer(
            norm,
            _attention(reader, inner, seen, sharing),
            norm,
            _block(reader, wide if doubled else sizes, norm),
            attention_out_norm=norm,
            mlp_out_norm=norm,
            recipe="gemma4",
            token_inputs=_token_inputs(reader, sizes, norm, features, last) if features else None,
        )

    return model(
        reader,
        sizes,
        by_kind(kinds, layer),
        norm,
        tied=True,
        embedding_scaled=True,
        buffers=(_SCALE_BYTES,) * (sizes.count + 1 + (own is not None)),
        masks=(None, window),
        logits_softcap=reader.number("final_logit_softcapping", None) is not None,
        rope_tables=2 * len(set(windows)),
        token_tables=own,
    )


@dataclass(frozen=True, slots=True)
class Sharing:
    """Whether a layer names its keys and values for others, whether there are any that read them,
    and whether it is one of these, or the last one."""

    shares: bool
    is_read: bool
    reads: bool
    reads_last: bool

    def applied(self, block: Attention) -> Attention:
        """Return a layer's attention as this has it: without projections of what it reads."""
        shared = replace(
            block,
            shares_states=self.shares,
            states_read=self.is_read,
            reads_states=self.reads,
            reads_last=self.reads_last,
        )
        return replace(shared, key=None, value=None) if self.reads else shared


def sharing_of(reader: ConfigReader, windows: list[int | None], default: int = 0) -> list[Sharing]:
    """Return what each layer has to do with others' keys and values: the last layers read those of
    the last layer of their kind before them."""
    count = len(windows)
    shared = reader.count("num_kv_shared_layers", default)
    first = count - shared
    if first < 1 or not set(windows[first:]) <= set(windows[:first]):
        raise reader.error(
            "num_kv_shared_layers", shared, "a number that leaves a layer of each kind before them"
        )
    named = {seen: index for index, seen in enumerate(windows[:first])}
    last = {seen: index for index, seen in enumerate(windows)}
    return [
        Sharing(
            shares=named[seen] == index,
            is_read=named[seen] == index and last[seen] >= first,
            reads=index >= first,
            reads_last=index >= first and last[seen] == index,
        )
        for index, seen in enumerate(windows)
    ]


def _token_tables(reader: ConfigReader, sizes: Sizes, features: int) -> TokenTables | None:
    """Return what makes the layers' own inputs; None where there are none."""
    if not features:
        return None
    return TokenTables(
        rows=reader.size("vocab_size_per_layer_input", default=262_144),
        projection=Linear("per_layer_model_projection", sizes.hidden, sizes.count * features),
        norm=Norm("rms_pow", features),
    )


def _token_inputs(
    reader: ConfigReader, sizes: Sizes, norm: Norm, features: int, last: bool
) -> TokenInputs:
    return TokenInputs(
        gate=Linear("per_layer_input_gate", sizes.hidden, features),
        out=Linear("per_layer_projection", features, sizes.hidden),
        norm=norm,
        activation=_activation(reader),
        last=last,
    )


def _full_sizes(reader: ConfigReader, sizes: Sizes) -> Sizes:
    """Return the sizes of full layers: heads of their own size, and with shared keys and values
    their own number of them."""
    kv_heads = sizes.kv_heads
    if reader.flag("attention_k_eq_v", False):
        kv_heads = reader.optional_size("num_global_key_value_heads") or kv_heads
    if sizes.heads % kv_heads:
        allowed = f"a divisor of the {sizes.heads} query heads"
        raise reader.error("num_global_key_value_heads", kv_heads, allowed)
    return replace(sizes, head_dim=reader.size("global_head_dim", default=512), kv_heads=kv_heads)


def _attention(
    reader: ConfigReader, sizes: Sizes, window: int | None, sharing: Sharing
) -> Attention:
    bias = reader.flag("attention_bias", False)
    normed = Norm("rms_pow", sizes.head_dim)
    more: dict[str, Any] = {"qk_norm": normed, "window": window, "recipe": "gemma4"}
    block = attention(reader, sizes, bias, bias, **more)
    block = sharing.applied(block)
    if sharing.reads:
        return block
    same = window is None and reader.flag("attention_k_eq_v", False)
    return replace(block, value=None) if same else block


def _activation(reader: ConfigReader) -> str:
    return reader.text("hidden_activation", "gelu_pytorch_tanh")


def _block(reader: ConfigReader, sizes: Sizes, norm: Norm) -> Mlp | Moe:
    """Return the MLP, with the experts that run beside it where there are any."""
    activation = _activation(reader)
    dense = gated_mlp(sizes, activation)
    if not reader.flag("enable_moe_block", False):
        return dense
    experts = reader.size("num_experts")
    return Moe(
        hidden=sizes.hidden,
        width=reader.size("moe_intermediate_size"),
        experts=experts,
        active=reader.size("top_k_experts", most=experts),
        activation=activation,
        scores_fp32=True,
        shared=dense,
        router_linear=Linear("proj", sizes.hidden, experts),
        norms=(norm, norm, norm),
    )
