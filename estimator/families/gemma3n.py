"""Gemma 3n, text: streams of hidden states, inputs by token, layers that read others' keys.

Source: transformers/models/gemma3n/{modeling,configuration}_gemma3n.py.
"""

from __future__ import annotations

from dataclasses import replace
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
from estimator.families.gemma4 import Sharing, sharing_of
from estimator.families.reader import MAX_SIZE, ConfigReader
from estimator.spec import (
    AltUp,
    Attention,
    Layer,
    Linear,
    Mlp,
    ModelSpec,
    Norm,
    StreamEnds,
    TokenInputs,
    TokenTables,
)

_SCALE_BYTES = 2
"""Numbers that embeddings, inputs and each layer's router are multiplied by are buffers."""


def parse(reader: ConfigReader) -> ModelSpec:
    """Gemma3nForCausalLM of a text configuration.

    Raises:
        ModelError: as `ConfigReader`, and where layers read keys and values that none has.
    """
    widths = _by_layer(reader, "intermediate_size", int)
    sizes = read_sizes(_with_one_width(reader, widths), head_dim=256, kv_heads=2)
    count = sizes.count
    window = reader.size("sliding_window", default=512)
    windows = layer_windows(reader, count, window, every(count, 5))
    features = reader.size("hidden_size_per_layer_input", default=256)
    norm = Norm("rms_pow", sizes.hidden)
    altup = _altup(reader, sizes.hidden, norm)
    tables = TokenTables(
        rows=reader.size("vocab_size_per_layer_input", default=262_144),
        projection=Linear("per_layer_model_projection", sizes.hidden, count * features),
        norm=Norm("rms_pow", features),
        scaled_in_place=True,
    )
    kinds = list(
        zip(
            windows,
            sharing_of(reader, windows, 15),
            widths * count if len(widths) == 1 else widths,
            _cut_off(reader, count),
            (index == count - 1 for index in range(count)),
            strict=True,
        )
    )

    def layer(kind: tuple[int | None, Sharing, int, bool, bool]) -> Layer:
        seen, sharing, width, cut_off, last = kind
        return Layer(
            norm,
            _attention(reader, sizes, seen, sharing),
            norm,
            _mlp(reader, replace(sizes, width=width), cut_off),
            attention_out_norm=norm,
            mlp_out_norm=norm,
            recipe="altup",
            token_inputs=_token_inputs(reader, sizes, norm, features, last),
            altup=altup,
        )

    others = altup.streams - 1
    return model(
        reader,
        sizes,
        by_kind(kinds, layer),
        norm,
        tied=True,
        embedding_scaled=True,
        buffers=(_SCALE_BYTES,) * (4 + count),
        masks=(None, window),
        logits_softcap=reader.number("final_logit_softcapping", 30.0) is not None,
        rope_tables=2 * len(set(windows)),
        token_tables=tables,
        stream_ends=StreamEnds(_between(sizes.hidden, others), _between(sizes.hidden, others)),
    )


def _between(hidden: int, count: int) -> tuple[Linear, ...]:
    return tuple(Linear(str(index), hidden, hidden) for index in range(count))


def _altup(reader: ConfigReader, hidden: int, norm: Norm) -> AltUp:
    streams = reader.size("altup_num_inputs", default=4, least=2)
    rank = reader.size("laurel_rank", default=64)
    if reader.number("altup_coef_clip", 120.0) is None:
        raise reader.unsupported("coefficients that are not clipped (altup_coef_clip)")
    return AltUp(
        streams=streams,
        router=Linear("modality_router", hidden, streams),
        prediction=Linear("prediction_coefs", streams, streams * streams),
        correction=Linear("correction_coefs", streams, streams, bypassed=True),
        norm=norm,
        left=Linear("linear_left", hidden, rank),
        right=Linear("linear_right", rank, hidden),
        laurel_norm=norm,
        scaled=reader.flag("altup_correct_scale", True),
    )


def _attention(
    reader: ConfigReader, sizes: Sizes, window: int | None, sharing: Sharing
) -> Attention:
    bias = reader.flag("attention_bias", False)
    normed = Norm("rms_pow", sizes.head_dim)
    more: dict[str, Any] = {"qk_norm": normed, "window": window, "recipe": "gemma4"}
    return sharing.applied(attention(reader, sizes, bias, bias, **more))


def _mlp(reader: ConfigReader, sizes: Sizes, cut_off: bool) -> Mlp:
    return replace(gated_mlp(sizes, _activation(reader)), cut_off=cut_off)


def _activation(reader: ConfigReader) -> str:
    return reader.text("hidden_activation", "gelu_pytorch_tanh")


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


def _cut_off(reader: ConfigReader, count: int) -> list[bool]:
    """Return in which layers gates below a quantile are set to 0."""
    if reader.config.get("activation_sparsity_pattern") is None:
        return [count > 10 and index < 10 for index in range(count)]
    shares = _by_layer(reader, "activation_sparsity_pattern", float)
    if len(shares) != count:
        allowed = f"a list of {count} shares"
        raise reader.error("activation_sparsity_pattern", shares, allowed)
    return [share > 0 for share in shares]


def _by_layer(reader: ConfigReader, name: str, kind: type[int] | type[float]) -> list[Any]:
    """Return a field's numbers: one a layer, or a single one for all."""
    value: Any = reader.config.get(name)
    listed: list[Any] = value if isinstance(value, list) else [value]
    least = 1 if kind is int else 0
    for item in listed:
        numeric = isinstance(item, (int, kind)) and not isinstance(item, bool)
        if not (numeric and least <= item <= MAX_SIZE):
            raise reader.error(name, item, "a number a layer")
    return listed


def _with_one_width(reader: ConfigReader, widths: list[Any]) -> ConfigReader:
    """Return a reader of the same configuration with one width for all layers."""
    count = reader.size("num_hidden_layers")
    if len(widths) not in (1, count):
        raise reader.error("intermediate_size", widths, f"a width, or a list of {count}")
    return reader.with_field("intermediate_size", widths[0])
