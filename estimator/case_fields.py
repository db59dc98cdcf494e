"""What each field of a case may say, read alone.

Readers are strict: a wrong type or a value that is not allowed raises `CaseError`, which names
the field, the value and what is allowed. The words are those of Hugging Face (see docs/case.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from estimator.errors import CaseError, show_choices, show_value
from estimator.stacks import STACKS
from estimator.suggest import did_you_mean

TASKS = ("inference", "training")
DTYPES = ("bfloat16", "float16", "float32")
QUANTIZATIONS = (None, "int8", "nf4", "fp4")
METHODS = ("full", "lora")
MIXED_PRECISIONS = (None, "bf16", "fp16")
ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
CACHES = ("dynamic", "static", "quantized", "paged")
RECOMPUTE_GRANULARITIES = ("full", "selective")
LOSSES = ("standard", "chunked", "liger")

OPTIMIZERS = (
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "sgd",
    "adafactor",
    "adagrad",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_32bit",
    "paged_ademamix_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
)
"""Names of `TrainingArguments.optim`; a source that lacks one of them says so itself."""

MAX_COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Lora:
    """Adapter settings, as `peft.LoraConfig` names them.

    `target_modules` is `all-linear` or the names of modules.
    """

    r: int = 16
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    target_modules: str | tuple[str, ...] = "all-linear"
    use_dora: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON object."""
        targets = self.target_modules
        return {
            "r": self.r,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets if isinstance(targets, str) else list(targets),
            "use_dora": self.use_dora,
        }


@dataclass(frozen=True, slots=True)
class Parallelism:
    """How a run is spread over GPUs, as `accelerate.ParallelismConfig` names it.

    `sp_size` GPUs share each sequence (DeepSpeed-Ulysses, accelerate's `sp_backend="deepspeed"`).
    """

    sp_size: int

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a JSON object."""
        return {"sp_size": self.sp_size}


def read_field(name: str, value: Any) -> Any:
    """Return the value of the field of this name.

    Raises:
        CaseError: with the field, the value and what is allowed.
    """
    choices = _CHOICES.get(name)
    if choices is not None:
        if not (value is None or isinstance(value, str)) or value not in choices:
            hint = _hint(value, choices) if isinstance(value, str) else ""
            raise CaseError(
                f"{name} is {show_value(value)}, but must be {show_choices(choices)}{hint}", name
            )
        return value
    return _READERS[name](name, value)


_ALSO_CALLED = {
    "4bit": "nf4",
    "8bit": "int8",
    "bf16": "bfloat16",
    "fp16": "float16",
    "fp32": "float32",
    "qlora": "lora",
    "flash": "flash_attention_2",
    "adamw": "adamw_torch_fused",
    "finetune": "training",
}
"""What people call values that do not look like it, without hyphens and underscores."""


def _hint(value: str, choices: tuple[str | None, ...]) -> str:
    meant = _ALSO_CALLED.get(value.lower().replace("-", "").replace("_", ""))
    if meant not in choices:
        return did_you_mean(value, [choice for choice in choices if choice])
    more = " with quantization nf4" if value.lower() == "qlora" else ""
    return f"; did you mean {meant}{more}?"


def _read_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise CaseError(f"{name} is {show_value(value)}, but must be true or false", name)
    return value


def _read_count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_COUNT:
        raise CaseError(
            f"{name} is {show_value(value)}, but must be a whole number from 1 to {MAX_COUNT}", name
        )
    return value


def _read_new_tokens(name: str, value: Any) -> int | None:
    return None if value is None else _read_count(name, value)


def _read_fraction(name: str, value: Any) -> float:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not ok or not 0 <= value < 1:
        raise CaseError(
            f"{name} is {show_value(value)}, but must be a number from 0 to below 1", name
        )
    return float(value)


def _read_model(name: str, value: Any) -> str | dict[str, Any]:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, Mapping) and value:
        return dict(value)
    raise CaseError(
        f"{name} is {show_value(value)}, but must be a name, a path or a configuration object", name
    )


def _read_optional_name(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise CaseError(f"{name} is {show_value(value)}, but must be a name or null", name)


def _read_targets(name: str, value: Any) -> str | tuple[str, ...]:
    if value == "all-linear":
        return "all-linear"
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, str) and v for v in value):
        return tuple(dict.fromkeys(value))
    raise CaseError(
        f"{name} is {show_value(value)}, but must be 'all-linear' or a list of module names", name
    )


def _read_lora(name: str, value: Any) -> Lora | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise CaseError(f"{name} is {show_value(value)}, but must be an object or null", name)
    readers: dict[str, Any] = {
        "r": _read_count,
        "lora_alpha": _read_count,
        "lora_dropout": _read_fraction,
        "target_modules": _read_targets,
        "use_dora": _read_bool,
    }
    for key in value:
        if key not in readers:
            hint = did_you_mean(str(key), readers)
            raise CaseError(f"unknown case field {show_value(f'lora.{key}')}{hint}", f"lora.{key}")
    return Lora(**{key: readers[key](f"lora.{key}", item) for key, item in value.items()})


def _read_parallelism(name: str, value: Any) -> Parallelism | None:
    """Read `{"sp_size": N}`; 1, accelerate's default, is one GPU."""
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise CaseError(
            f'{name} is {show_value(value)}, but must be null (one GPU) or {{"sp_size": N}}', name
        )
    for key in value:
        if key != "sp_size":
            field = f"{name}.{key}"
            raise CaseError(
                f"unknown case field {show_value(field)}: only {name}.sp_size is supported, "
                "GPUs that share each sequence",
                field,
            )
    if "sp_size" not in value:
        raise CaseError(f'{name} is {{}}, but must be null (one GPU) or {{"sp_size": N}}', name)
    size = _read_count(f"{name}.sp_size", value["sp_size"])
    return None if size == 1 else Parallelism(size)


_CHOICES: dict[str, tuple[str | None, ...]] = {
    "task": TASKS,
    "dtype": DTYPES,
    "quantization": QUANTIZATIONS,
    "method": METHODS,
    "mixed_precision": MIXED_PRECISIONS,
    "optimizer": OPTIMIZERS,
    "recompute_granularity": RECOMPUTE_GRANULARITIES,
    "attention": ATTENTIONS,
    "cache": CACHES,
    "loss": LOSSES,
    "stack": (None, *STACKS),
}

_READERS: dict[str, Any] = {
    "model": _read_model,
    "double_quantization": _read_bool,
    "prepare_kbit": _read_bool,
    "batch_size": _read_count,
    "sequence_length": _read_count,
    "max_new_tokens": _read_new_tokens,
    "lora": _read_lora,
    "momentum": _read_fraction,
    "gradient_checkpointing": _read_bool,
    "gradient_accumulation_steps": _read_count,
    "keep_logits": _read_bool,
    "gpu": _read_optional_name,
    "parallelism": _read_parallelism,
}
