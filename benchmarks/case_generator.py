"""Draws random cases over every axis that both the formulas and the trace know, from a seed.

The same seed gives the same cases on every machine. Cases take turns among the model types
(`drawn_models.slots`), so that a type is drawn as often as any other. Each axis of a case is drawn
from a stream of its own, named by the seed, the type and the axis: an axis, a type or a value more
leaves all other draws as they were.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from benchmarks.drawn_models import QUICK, Bounds, Slot, draw_model, slots
from estimator.architecture.attentions import recomputable
from estimator.architecture.sequence_parallel import spreadable
from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import UnsupportedError
from estimator.families import parse_spec
from estimator.losses import check_loss
from estimator.spec import HeadScan, LinearRecurrence, ModelSpec, Moe, SelectiveScan

__all__ = ["QUICK", "Bounds", "draw_cases"]

Axis = Callable[[str], random.Random]
"""The stream of an axis, by its name."""

_CARDS = (None, None, None, None, "A100-80GB", "H100", "RTX-4090", "B200")
# What Trainer's users choose most, and every other name that has a formula.
_OPTIMIZERS = (
    *("adamw_torch_fused",) * 5,
    *("adamw_torch",) * 3,
    *("adamw_bnb_8bit",) * 2,
    *("sgd",) * 2,
    *("adafactor",) * 2,
    *("paged_adamw_8bit", "paged_adamw_32bit", "adagrad", "rmsprop", "rmsprop_bnb"),
    *("rmsprop_bnb_8bit", "ademamix", "ademamix_8bit", "paged_ademamix_8bit"),
    *("lion_32bit", "lion_8bit", "paged_lion_8bit"),
)
_LONGEST_SCAN = 192
"""Tokens of a sequence that Mamba's scan goes through one by one: a trace of thousands takes an
hour."""
# Older stacks that the trace can play (profiler/stacks.py).
_STACKS = ("transformers-4.48", "fms-acceleration")


def draw_cases(seed: int, count: int, bounds: Bounds | None = None) -> Iterator[Case]:
    """Yield `count` valid cases, in rounds that each have every slot once."""
    bounds = bounds or Bounds()
    turns = slots(seed, bounds)
    for index in range(count):
        turn, place = divmod(index, len(turns))
        yield _draw(f"{seed}/{turns[place].name}/{turn}", turns[place], bounds)


def _draw(stream: str, slot: Slot, bounds: Bounds) -> Case:
    def axis(name: str) -> random.Random:
        return random.Random(f"{stream}/{name}")

    model = draw_model(axis("model"), slot, bounds)
    spec = parse_spec(load_config(model))
    longest = bounds.sequence_length[1]
    scans = (SelectiveScan, HeadScan, LinearRecurrence)
    if any(isinstance(block.mixer, scans) for layer in spec.layers for block in layer.blocks):
        longest = min(longest, max(bounds.sequence_length[0], _LONGEST_SCAN))
    if spec.positions_bounded and spec.max_positions is not None:
        longest = min(longest, spec.max_positions)
    training = axis("task").random() < 0.65
    dtype = axis("dtype").choice(("bfloat16", "bfloat16", "float16", "float32"))
    length = _between(axis("length"), min(longest, bounds.sequence_length[0]), longest)
    # Round lengths are what people use, odd ones what they forget.
    if axis("round length").random() < 0.5:
        length = max(32, length // 64 * 64)
    fields: dict[str, Any] = {
        "model": model,
        "task": "training" if training else "inference",
        "dtype": dtype,
        "batch_size": _between(axis("batch_size"), *bounds.batch_size),
        "sequence_length": length,
        "attention": axis("attention").choice(_attentions(dtype, spec)),
        "gpu": axis("gpu").choice(_CARDS),
    }
    adapters = axis("adapters").random() < (0.45 if training else 0.15)
    if adapters:
        fields["method"] = "lora"
        fields["lora"] = _lora(axis("lora"), spec)
    if training:
        fields |= _training(axis, dtype, _losses(spec))
        fields["gradient_checkpointing"] &= spec.checkpointable
    else:
        fields |= _inference(axis, dtype, spec, fields["attention"])
        new = _between(axis("max_new_tokens"), *bounds.max_new_tokens)
        fields["max_new_tokens"] = min(new, max(1, longest - length))
    if (adapters or not training) and axis("quantized").random() < 0.3:
        fields |= _quantization(axis("quantization"), training)
    standard = fields.get("loss", "standard") == "standard"
    ranks = axis("sp_size").choice((1,) * 8 + (2, 4))
    eager = fields["attention"] == "eager"
    if training and standard and not eager and spreadable(spec, ranks):
        fields["parallelism"] = {"sp_size": ranks}
        fields["sequence_length"] = max(ranks, length // ranks * ranks)
    elif axis("old stack").random() < 0.04 and standard:
        fields["stack"] = axis("stack").choice(_STACKS)
    elif fields.get("gradient_checkpointing") and recomputable(spec):
        granularity = axis("recompute_granularity").choice(("full", "full", "selective"))
        fields["recompute_granularity"] = granularity
    return Case.from_dict(fields)


def _attentions(dtype: str, spec: ModelSpec) -> list[str]:
    attentions = ["sdpa", "sdpa", "eager"]
    if dtype != "float32":
        # flash-attn knows half precision only.
        attentions.append("flash_attention_2")
    # What a class does not know, transformers refuses; without sdpa it takes eager.
    return [name for name in attentions if name == "sdpa" or name in spec.attentions]


def _losses(spec: ModelSpec) -> tuple[str, ...]:
    """Return the fused losses that a model can be trained with, or the standard one."""
    found = []
    for loss in ("liger", "chunked"):
        with suppress(UnsupportedError):
            check_loss(loss, spec)
            found.append(loss)
    return tuple(found) or ("standard",)


def _training(axis: Axis, dtype: str, losses: tuple[str, ...]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "optimizer": axis("optimizer").choice(_OPTIMIZERS),
        "gradient_checkpointing": axis("gradient_checkpointing").random() < 0.5,
        "gradient_accumulation_steps": axis("accumulation").choice((1, 1, 1, 2)),
        "keep_logits": axis("keep_logits").random() < 0.25,
        "mixed_precision": _mixed_precision(axis("mixed_precision"), dtype, 0.3),
    }
    if axis("fused loss").random() < 0.2:
        fields |= {"loss": axis("loss").choice(losses), "keep_logits": False}
    if fields["optimizer"] in ("sgd", "rmsprop"):
        fields["momentum"] = axis("momentum").choice((0.0, 0.9))
    return fields


def _inference(axis: Axis, dtype: str, spec: ModelSpec, attention: str) -> dict[str, Any]:
    caches = ["dynamic", "dynamic", "dynamic", "static", "quantized"]
    cache = axis("cache").choice(caches)
    impossible = (
        cache not in spec.caches
        or (cache == "static" and attention == "flash_attention_2")
        # transformers' QuantizedCache refuses layers with a window.
        or (cache == "quantized" and any(layer.attention.window for layer in spec.layers))
    )
    if impossible:
        cache = "dynamic"
    return {
        "cache": cache,
        "mixed_precision": _mixed_precision(axis("mixed_precision"), dtype, 0.1),
    }


def _mixed_precision(rng: random.Random, dtype: str, share: float) -> str | None:
    if rng.random() >= share:
        return None
    usual = "fp16" if dtype == "float16" else "bf16"
    return rng.choice((usual, usual, usual, "fp16" if usual == "bf16" else "bf16"))


def _quantization(rng: random.Random, training: bool) -> dict[str, Any]:
    kind = rng.choice(("int8", "nf4", "fp4"))
    fields: dict[str, Any] = {"quantization": kind}
    if kind != "int8":
        fields["double_quantization"] = rng.random() < 0.5
    if training:
        fields["prepare_kbit"] = rng.random() < 0.7
    return fields


def _lora(rng: random.Random, spec: ModelSpec) -> dict[str, Any]:
    linears = [linear for layer in spec.layers for linear in layer.linears]
    adaptable = {linear.name for linear in linears if linear.adaptable}
    # A layer's own name is a number, too.
    names = sorted(name for name in adaptable - set(spec.unadaptable) if not name.isdigit())
    drawn = rng.sample(names, rng.randint(1, len(names)))
    mixtures = [layer.mlp for layer in spec.layers if isinstance(layer.mlp, Moe)]
    some = sorted({*drawn, *_other_halves(drawn, mixtures)})
    r = rng.choice((1, 4, 8, 16, 64, 256))
    dropout = rng.choice((0.0, 0.0, 0.05, 0.1))
    targets = rng.choice(("all-linear", tuple(some)))
    if spec.unadaptable or any(mixture.router_name for mixture in mixtures):
        # peft fails on a router that is a linear of its own kind, and refuses Mamba's outputs.
        targets = tuple(some)
    if any(mixture.adapted(targets) for mixture in mixtures):
        # peft allows none on the input of stacked experts.
        dropout = 0.0
    return {
        "r": r,
        "lora_dropout": dropout,
        "use_dora": rng.random() < 0.15 and not mixtures,
        "target_modules": targets if isinstance(targets, str) else list(targets),
    }


def _other_halves(drawn: list[str], mixtures: list[Moe]) -> Iterator[str]:
    """Yield what peft asks for beside the targets drawn: experts fuse their gates and ups."""
    for mixture in mixtures:
        fused = set(mixture.adapter_names[1:3])
        if fused & set(drawn):
            yield from fused


def _between(rng: random.Random, low: int, high: int) -> int:
    return round(math.exp(rng.uniform(math.log(low), math.log(high))))
