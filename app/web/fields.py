"""The form's fields: the case's, under the case's names, and those that describe a model.

One table for the widgets, the reader of the form and the link: name, label, default, choices, and
when a field is shown. A field that is not shown says nothing about the case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from estimator.case import (
    ATTENTIONS,
    CACHES,
    DTYPES,
    LOSSES,
    METHODS,
    MIXED_PRECISIONS,
    OPTIMIZERS,
    QUANTIZATIONS,
    RECOMPUTE_GRANULARITIES,
    TASKS,
)
from estimator.stacks import STACKS

NONE = "none"
"""What the form shows for null."""

SOURCES = ("catalogue", "config.json", "numbers")

Shown = tuple[tuple[str, tuple[str, ...]], ...]

_TRAINING: Shown = (("task", ("training",)),)
_INFERENCE: Shown = (("task", ("inference",)),)
_LORA: Shown = (("method", ("lora",)),)
_LOGITS: Shown = (("loss", ("standard",)),)
_NUMBERS: Shown = (("source", ("numbers",)),)


@dataclass(frozen=True, slots=True)
class Field:
    """One field. `kind` is choice, search, count, decimal, flag, text or long_text.

    `shown` names the fields, all of them of kind choice, and the values with which it is shown.
    """

    name: str
    label: str
    kind: str
    default: Any
    choices: tuple[str, ...] = ()
    info: str = ""
    shown: Shown = ()


def _named(values: tuple[str | None, ...]) -> tuple[str, ...]:
    return tuple(NONE if value is None else value for value in values)


MODEL_FIELDS = (
    Field("source", "Model from", "choice", "catalogue", SOURCES),
    Field(
        "model",
        "Model",
        "search",
        "meta-llama/Llama-3.1-8B",
        info="type to search the catalogue",
        shown=(("source", ("catalogue",)),),
    ),
    Field(
        "config",
        "config.json",
        "long_text",
        "",
        info="paste the model's config.json, or open the file",
        shown=(("source", ("config.json",)),),
    ),
    Field(
        "preset", "Start from", "search", NONE, info="fills in the numbers below", shown=_NUMBERS
    ),
    Field("parameters_billions", "Parameters, billions", "decimal", 8, shown=_NUMBERS),
    Field("hidden_size", "Hidden size", "count", 4096, shown=_NUMBERS),
    Field("num_hidden_layers", "Layers", "count", 32, shown=_NUMBERS),
    Field("num_attention_heads", "Attention heads", "count", 32, shown=_NUMBERS),
    Field("num_key_value_heads", "Key/value heads", "count", 8, shown=_NUMBERS),
    Field("vocab_size", "Vocabulary", "count", 128256, shown=_NUMBERS),
)

CASE_FIELDS = (
    Field("task", "Task", "choice", "inference", TASKS),
    Field("method", "Method", "choice", "full", METHODS, "LoRA: adapters on a frozen model"),
    Field("dtype", "Weights as loaded", "choice", "bfloat16", DTYPES),
    Field("quantization", "Quantization", "choice", NONE, _named(QUANTIZATIONS), "bitsandbytes"),
    Field("batch_size", "Batch size", "count", 1),
    Field("sequence_length", "Sequence length", "count", 1024, info="tokens; prompt in inference"),
    Field("max_new_tokens", "New tokens", "count", 128, shown=_INFERENCE),
    Field("optimizer", "Optimizer", "search", "adamw_torch_fused", OPTIMIZERS, shown=_TRAINING),
    Field("gradient_checkpointing", "Gradient checkpointing", "flag", False, shown=_TRAINING),
    Field("gpu", "Card", "search", "H100", info="its workspaces; the limit in the table below"),
)

ADVANCED_FIELDS = (
    Field("attention", "Attention", "choice", "sdpa", ATTENTIONS),
    Field("cache", "KV cache", "choice", "dynamic", CACHES, shown=_INFERENCE),
    Field(
        "mixed_precision",
        "Mixed precision (autocast)",
        "choice",
        NONE,
        _named(MIXED_PRECISIONS),
    ),
    Field("lora_r", "LoRA r", "count", 16, shown=_LORA),
    Field("lora_alpha", "LoRA alpha", "count", 16, shown=_LORA),
    Field("lora_dropout", "LoRA dropout", "decimal", 0, shown=_LORA),
    Field(
        "lora_target_modules",
        "LoRA target modules",
        "text",
        "all-linear",
        info="or names with commas",
        shown=_LORA,
    ),
    Field("use_dora", "DoRA", "flag", False, shown=_LORA),
    Field(
        "double_quantization",
        "Double quantization",
        "flag",
        False,
        shown=(("quantization", ("nf4", "fp4")),),
    ),
    Field(
        "prepare_kbit",
        "prepare_model_for_kbit_training",
        "flag",
        True,
        shown=(*_TRAINING, *_LORA, ("quantization", ("int8", "nf4", "fp4"))),
    ),
    Field(
        "gradient_accumulation_steps", "Gradient accumulation steps", "count", 1, shown=_TRAINING
    ),
    Field(
        "recompute_granularity",
        "Checkpointing recomputes",
        "choice",
        "full",
        RECOMPUTE_GRANULARITIES,
        "whole layers, or the core attention alone",
        shown=_TRAINING,
    ),
    Field("momentum", "Momentum (sgd, rmsprop)", "decimal", 0, shown=_TRAINING),
    Field(
        "loss",
        "Loss",
        "choice",
        "standard",
        LOSSES,
        "chunked: TRL's; liger: Liger's fused linear cross-entropy",
        shown=_TRAINING,
    ),
    Field(
        "keep_logits",
        "The loop keeps the outputs during backward (TRL's SFTTrainer does)",
        "flag",
        False,
        shown=(*_TRAINING, *_LOGITS),
    ),
    Field(
        "sp_size",
        "GPUs that share each sequence",
        "count",
        1,
        info="DeepSpeed-Ulysses: what one of them needs",
        shown=(*_TRAINING, *_LOGITS, ("attention", ("sdpa", "flash_attention_2"))),
    ),
    Field("stack", "Older software stack", "search", NONE, (NONE, *STACKS), shown=_LOGITS),
    Field(
        "trainable_percent",
        "Trainable parameters, % (the article's calculator)",
        "decimal",
        100,
        info="for the article's formulas alone; ours ask which adapters",
        shown=(*_NUMBERS, *_TRAINING),
    ),
)

FIELDS = (*MODEL_FIELDS, *CASE_FIELDS, *ADVANCED_FIELDS)

BY_NAME = {field.name: field for field in FIELDS}

DEFAULTS: dict[str, Any] = {field.name: field.default for field in FIELDS}


def is_shown(field: Field, state: Mapping[str, Any]) -> bool:
    """Whether the form shows a field in a state."""
    return all(state.get(name) in values for name, values in field.shown)
