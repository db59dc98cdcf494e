"""The models of random cases: those of the catalogue, whole or changed, and made-up ones.

A slot is a model type and where its configuration comes from. Every type that has formulas has a
slot; the types that people use most have one more, whose configurations are made up for the
purpose: odd widths, every split of heads, biases, windows, tied or not.
"""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from benchmarks.base_configurations import BASE_CONFIGURATIONS
from estimator.catalogue import entries
from estimator.config_source import load_config
from estimator.errors import GpumemError
from estimator.families import parse_spec

MADE_UP = ("gemma", "gpt2", "llama", "mistral", "qwen2", "qwen3")
"""Types whose configurations are made up, too."""
_VOCABULARIES = (32_000, 32_001, 50_257, 100_277, 128_256, 151_936, 256_000)
_HEAD_SIZES = (32, 64, 64, 80, 96, 100, 128, 128, 128, 192, 256)
_ACTIVATIONS = ("silu", "silu", "gelu", "gelu_pytorch_tanh", "relu", "gelu_new")
_LAYER_FIELDS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The ranges that cases are drawn from; sizes are drawn evenly over their logarithms."""

    parameters: tuple[float, float] = (0.1e9, 70e9)
    """Of the models; a deeper one is cut, and a type whose largest is smaller keeps it."""
    made_up: tuple[float, float] = (0.1e9, 70e9)
    """Parameters of made-up models, without embeddings, about."""
    batch_size: tuple[int, int] = (1, 16)
    sequence_length: tuple[int, int] = (128, 16_384)
    max_new_tokens: tuple[int, int] = (1, 512)
    layers: int = 100


QUICK = Bounds(
    parameters=(0, 20e9),
    made_up=(0.5e6, 40e6),
    batch_size=(1, 8),
    sequence_length=(32, 4_096),
    max_new_tokens=(1, 64),
    layers=3,
)
"""Bounds of models so shallow that a case is traced in a fraction of a second."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a case's model comes from: a model type, and whether it is made up."""

    model_type: str
    made_up: bool

    @property
    def name(self) -> str:
        """What seeds its stream of random numbers."""
        return f"{self.model_type}/{'made-up' if self.made_up else 'known'}"


def slots(seed: int, bounds: Bounds) -> list[Slot]:
    """Return every slot once, in an order of the seed that a new type does not change."""
    everything = [Slot(name, made_up=False) for name in _known(bounds)]
    everything += [Slot(name, made_up=True) for name in MADE_UP]
    return sorted(everything, key=lambda slot: random.Random(f"{seed}/{slot.name}").random())


def draw_model(rng: random.Random, slot: Slot, bounds: Bounds) -> str | dict[str, Any]:
    """Return what a case names as its model: a catalogue name or a configuration."""
    if slot.made_up:
        return _made_up(rng, slot.model_type, bounds)
    model = rng.choice(_known(bounds)[slot.model_type])
    whole = _layers(model.config) <= bounds.layers and model.within(bounds)
    if whole and rng.random() < 0.5:
        return model.name or model.config
    return _changed(rng, model, bounds)


@dataclass(frozen=True, slots=True)
class _Known:
    """A model with formulas; `name` is the catalogue's, None for a base configuration."""

    name: str | None
    config: dict[str, Any]
    parameters: int

    def within(self, bounds: Bounds) -> bool:
        low, high = bounds.parameters
        return low <= self.parameters <= high


@cache
def _known(bounds: Bounds) -> dict[str, list[_Known]]:
    """Return the models of each type; small ones only where a type has no larger."""
    by_type: dict[str, list[_Known]] = {}
    for model in _models():
        by_type.setdefault(model.config["model_type"], []).append(model)
    low, _ = bounds.parameters
    return {
        name: [model for model in models if model.parameters >= low] or models
        for name, models in sorted(by_type.items())
    }


def _models() -> Iterator[_Known]:
    for entry in entries():
        # A known type may have settings without formulas.
        with contextlib.suppress(GpumemError):
            parse_spec(load_config(entry.name))
            yield _Known(entry.name, entry.config, entry.parameters)
    for model_type, config in BASE_CONFIGURATIONS.items():
        whole = {"model_type": model_type, **config}
        yield _Known(None, whole, parse_spec(load_config(whole)).parameters)


def _layers(config: dict[str, Any]) -> int:
    return int(next((config[name] for name in _LAYER_FIELDS if name in config), 0))


def _changed(rng: random.Random, model: _Known, bounds: Bounds) -> dict[str, Any]:
    """Return a configuration of another depth, and now and then of a larger vocabulary."""
    config = dict(model.config)
    depth = min(_layers(config), bounds.layers)
    low, high = bounds.parameters
    drawn = _between(rng, min(2, depth), depth)
    cut = _cut(config, drawn)
    while drawn > 1 and _parameters(cut) > high:
        drawn = max(1, drawn * 3 // 4)
        cut = _cut(config, drawn)
    while drawn < depth and _parameters(cut) < low:
        drawn = min(depth, drawn * 2)
        cut = _cut(config, drawn)
    larger = [size for size in _VOCABULARIES if size > cut.get("vocab_size", 2**31)]
    if larger and rng.random() < 0.3:
        cut["vocab_size"] = rng.choice(larger)
    return cut


def _cut(config: dict[str, Any], depth: int) -> dict[str, Any]:
    """Return a configuration of `depth` layers: lists of one item a layer are as long, and so is
    a pattern of one letter a layer."""
    layers = _layers(config)
    cut = dict(config)
    for name, value in config.items():
        by_layer = isinstance(value, list) or (isinstance(value, str) and "pattern" in name)
        if by_layer and len(value) == layers:
            cut[name] = value[:depth]
    if "attn_layer_indices" in cut:
        cut["attn_layer_indices"] = [n for n in cut["attn_layer_indices"] if n < depth]
    for name in _LAYER_FIELDS:
        if name in cut:
            cut[name] = depth
    if "attention_types" in cut:
        # GPT-Neo's pattern is repeated to the depth.
        cut["attention_types"] = [[["global"], 1], [["local"], depth - 1]][: min(2, depth)]
    if cut.get("num_kv_shared_layers"):
        # One layer of each kind stays in front of those that read its keys and values; the last
        # layer is made a full one.
        kinds = [*cut["layer_types"][:-1], "full_attention"]
        own = 1 + max(kinds.index(kind) for kind in set(kinds))
        cut["num_kv_shared_layers"] = min(cut["num_kv_shared_layers"], depth - own)
    if cut["model_type"] == "recurrent_gemma" and depth < 3:
        # Its code asks for the first layer with attention.
        cut["block_types"] = ["recurrent", "attention"]
    if cut["model_type"] in ("zamba", "zamba2"):
        # What layers share must be shared by two, and a cache without attention has no length.
        depth = cut["num_hidden_layers"] = max(2, depth)
        cut["layers_block_type"] = [*config["layers_block_type"][: depth - 2], *["hybrid"] * 2]
    if "max_window_layers" in cut:
        cut["max_window_layers"] = min(cut["max_window_layers"], depth)
    return cut


def _parameters(config: dict[str, Any]) -> int:
    return parse_spec(load_config(config)).parameters


def _made_up(rng: random.Random, model_type: str, bounds: Bounds) -> dict[str, Any]:
    target = math.exp(rng.uniform(*map(math.log, bounds.made_up)))
    # Depth grows with the cube root of the size, as it does for published models.
    layers = max(2, min(bounds.layers, round(2 * (target / 1e6) ** (1 / 3))))
    head_size = rng.choice(_HEAD_SIZES)
    heads = max(1, round(math.sqrt(target / (12 * layers)) / head_size))
    hidden = heads * head_size
    vocab = rng.choice(_VOCABULARIES)
    if model_type == "gpt2":
        return {
            "model_type": model_type,
            "n_embd": hidden,
            "n_head": heads,
            "n_layer": layers,
            "n_positions": rng.choice((1024, 2048)),
            "n_inner": rng.choice((None, round(hidden * rng.uniform(2, 5)))),
            "vocab_size": vocab,
            "activation_function": rng.choice(("gelu_new", *_ACTIVATIONS)),
            "tie_word_embeddings": rng.random() < 0.7,
            **{
                name: rng.choice((0.0, 0.1, 0.1))
                for name in ("attn_pdrop", "resid_pdrop", "embd_pdrop")
            },
        }
    config: dict[str, Any] = {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": _width(rng, hidden),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([n for n in range(1, heads + 1) if heads % n == 0]),
        "vocab_size": vocab,
        "hidden_act": rng.choice(_ACTIVATIONS),
        "tie_word_embeddings": rng.random() < 0.4,
        "max_position_embeddings": 131_072,
        "attention_dropout": rng.choice((0.0, 0.0, 0.0, 0.1)),
    }
    # Llama's own code asserts that head_dim is hidden_size over heads only where it is absent.
    config["head_dim"] = head_size if rng.random() < 0.7 else rng.choice(_HEAD_SIZES)
    if model_type in ("llama", "qwen3", "gemma"):
        config["attention_bias"] = rng.random() < 0.25
    if model_type == "llama":
        config["mlp_bias"] = rng.random() < 0.25
    if model_type == "mistral":
        config["sliding_window"] = rng.choice((None, None, 256, 1024, 4096))
    if model_type in ("qwen2", "qwen3") and rng.random() < 0.4:
        config |= {
            "use_sliding_window": True,
            "sliding_window": rng.choice((256, 1024, 4096)),
            "max_window_layers": rng.randint(0, layers),
        }
    if model_type == "qwen2":
        # Qwen2Config has no head_dim of its own.
        del config["head_dim"]
    return config


def _width(rng: random.Random, hidden: int) -> int:
    width = round(hidden * rng.uniform(1.5, 6))
    return width if rng.random() < 0.3 else max(64, width // 64 * 64)


def _between(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
