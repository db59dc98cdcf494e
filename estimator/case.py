"""`Case`: one run to be estimated, traced or measured.

Parsing is strict: an unknown field, a wrong type or an impossible combination raises
`CaseError`, which names the field, the value and what is allowed. The words are those of
Hugging Face (see docs/case.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
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


@dataclass(frozen=True, slots=True)
class Case:
    """One run. Build it with `Case.from_dict`, which validates; see DESIGN's table of fields.

    `model` is a catalogue name, a Hub id, a path, or a configuration object. `sequence_length`
    is in tokens: the prompt in inference, the full length in training.
    """

    model: str | dict[str, Any]
    task: str = "inference"
    dtype: str = "bfloat16"
    quantization: str | None = None
    double_quantization: bool = False
    prepare_kbit: bool = True
    batch_size: int = 1
    sequence_length: int = 1024
    max_new_tokens: int | None = 128
    method: str = "full"
    lora: Lora | None = None
    mixed_precision: str | None = None
    optimizer: str = "adamw_torch_fused"
    momentum: float = 0.0
    gradient_checkpointing: bool = False
    recompute_granularity: str = "full"
    gradient_accumulation_steps: int = 1
    attention: str = "sdpa"
    cache: str = "dynamic"
    keep_logits: bool = False
    loss: str = "standard"
    stack: str | None = None
    gpu: str | None = None
    parallelism: Parallelism | None = None

    @classmethod
    def from_dict(cls, data: Any) -> Case:
        """Validate a JSON object and fill in the defaults.

        Raises:
            CaseError: with the field, the value and what is allowed.
        """
        if not isinstance(data, Mapping):
            raise CaseError(f"a case must be a JSON object, not {show_value(data)}")
        for name in data:
            if name not in _FIELD_NAMES:
                hint = did_you_mean(str(name), _FIELD_NAMES)
                raise CaseError(f"unknown case field {show_value(name)}{hint}", str(name))
        if "model" not in data:
            raise CaseError("the case names no model: give `model`", "model")
        values = {name: _read_field(name, data[name]) for name in data}
        return _complete(cls(**values))

    def to_dict(self) -> dict[str, Any]:
        """Return the complete case as a JSON object; `from_dict` reads it back to an equal case."""
        result = {name: getattr(self, name) for name in _FIELD_NAMES}
        result["lora"] = None if self.lora is None else self.lora.to_dict()
        spread = self.parallelism
        result["parallelism"] = None if spread is None else spread.to_dict()
        return result

    @property
    def training(self) -> bool:
        """Whether the case trains."""
        return self.task == "training"

    @property
    def sp_size(self) -> int:
        """GPUs that share each sequence."""
        return 1 if self.parallelism is None else self.parallelism.sp_size

    @property
    def local_length(self) -> int:
        """Tokens of each sequence that one GPU holds outside of attention."""
        return -(-self.sequence_length // self.sp_size)

    @property
    def checkpoints_layers(self) -> bool:
        """Whether whole layers are recomputed, as Hugging Face checkpoints."""
        return self.gradient_checkpointing and self.recompute_granularity == "full"

    @property
    def recomputes_attention(self) -> bool:
        """Whether the core attention alone is recomputed, as Megatron-LM does selectively."""
        return self.gradient_checkpointing and self.recompute_granularity == "selective"

    @property
    def case_id(self) -> str:
        """Twelve hex digits, equal for equal cases on every machine.

        Of what the case says beyond the defaults, so that records keep their id when a later
        version knows a field more.
        """
        import hashlib  # Only records and their files are named by it.

        said = _beyond(self.to_dict(), _DEFAULTS)
        if self.lora is not None:
            said["lora"] = _beyond(self.lora.to_dict(), Lora().to_dict())
        text = json.dumps(said, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def model_name(self) -> str:
        """A short name of the model for people."""
        if isinstance(self.model, str):
            return self.model.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json")
        return str(self.model.get("_name_or_path") or self.model.get("model_type") or "config")

    @property
    def label(self) -> str:
        """A one-line description for tables: model, method, dtype, shape."""
        dtype = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[self.dtype]
        parts = [self.model_name]
        if self.training:
            adapters = "dora" if self.lora is not None and self.lora.use_dora else self.method
            parts.append("q" + adapters if self.quantization in ("nf4", "fp4") else adapters)
        else:
            parts += ["infer", *(["lora"] if self.method == "lora" else [])]
        parts.append(self.quantization or dtype)
        if self.mixed_precision:
            parts.append("amp-" + self.mixed_precision)
        if self.training:
            parts.append(self.optimizer)
            if self.gradient_checkpointing:
                parts.append("ckpt" if self.checkpoints_layers else "ckpt-selective")
            if self.loss != "standard":
                parts.append(f"{self.loss}-loss")
        elif self.cache != "dynamic":
            parts.append(f"{self.cache}-cache")
        if self.attention != "sdpa":
            parts.append(self.attention)
        if self.parallelism is not None:
            parts.append(f"sp{self.sp_size}")
        length = f"{self.batch_size}x{self.sequence_length}"
        parts.append(length if self.training else f"{length}+{self.max_new_tokens}")
        return " ".join(parts)


def sequence_parallel_lines(case: Case) -> tuple[str, ...]:
    """Return what an answer for one of several GPUs assumes, for its list of assumptions."""
    if case.parallelism is None:
        return ()
    return (
        f"bytes of one of the {case.sp_size} GPUs that share each sequence (DeepSpeed-Ulysses)",
        "each GPU holds all weights, gradients and optimizer states: no ZeRO, no buckets",
        "NCCL's buffers are outside of PyTorch's counters",
    )


_FIELD_NAMES = tuple(field.name for field in fields(Case))

_DEFAULTS = {field.name: field.default for field in fields(Case)}


def _beyond(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != defaults[name]}


def _read_field(name: str, value: Any) -> Any:
    choices = _CHOICES.get(name)
    if choices is not None:
        if not (value is None or isinstance(value, str)) or value not in choices:
            hint = did_you_mean(value, [c for c in choices if c]) if isinstance(value, str) else ""
            raise CaseError(
                f"{name} is {show_value(value)}, but must be {show_choices(choices)}{hint}", name
            )
        return value
    return _READERS[name](name, value)


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


def _complete(case: Case) -> Case:
    """Check combinations, and fill in what depends on other fields."""
    if case.double_quantization and case.quantization not in ("nf4", "fp4"):
        _impossible(case, "double_quantization", "needs quantization nf4 or fp4", case.quantization)
    if case.method == "full" and case.lora is not None:
        _impossible(case, "lora", "needs method lora", case.method)
    if case.recompute_granularity != "full" and not case.gradient_checkpointing:
        _impossible(case, "recompute_granularity", "needs gradient_checkpointing true", False)
    if case.recomputes_attention and case.stack is not None:
        _impossible(case, "recompute_granularity", "is not for older stacks", case.stack)
    if case.parallelism is not None:
        _check_parallelism(case)
    if case.momentum and case.optimizer not in ("sgd", "rmsprop"):
        _impossible(case, "momentum", "needs optimizer sgd or rmsprop", case.optimizer)
    if case.training:
        if case.quantization is not None and case.method == "full":
            _impossible(
                case, "quantization", "cannot be trained in full: use method lora", case.method
            )
        if case.max_new_tokens not in (None, 128):
            _impossible(case, "max_new_tokens", "is for inference only", case.task)
        if case.cache != "dynamic":
            _impossible(case, "cache", "is for inference only", case.task)
        if case.loss != "standard":
            _check_fused_loss(case)
        case = replace(case, max_new_tokens=None)
    else:
        for name in ("gradient_checkpointing", "keep_logits", "momentum"):
            if getattr(case, name):
                _impossible(case, name, "is for training only", case.task)
        if case.gradient_accumulation_steps != 1:
            _impossible(case, "gradient_accumulation_steps", "is for training only", case.task)
        if case.loss != "standard":
            _impossible(case, "loss", "is for training only", case.task)
        if case.max_new_tokens is None:
            case = replace(case, max_new_tokens=128)
    if case.method == "lora" and case.lora is None:
        case = replace(case, lora=Lora())
    if case.gpu is not None:
        from estimator.gpus import find_gpu

        case = replace(case, gpu=find_gpu(case.gpu).name)
    return case


def _check_fused_loss(case: Case) -> None:
    """Check what a loss that multiplies by the head's weight itself goes together with."""
    if case.keep_logits:
        _impossible(case, "keep_logits", "needs loss standard: others make no logits", case.loss)
    if case.stack is not None:
        _impossible(case, "stack", "needs loss standard: it is older than the others", case.loss)
    targets = () if case.lora is None else case.lora.target_modules
    if isinstance(targets, tuple) and "lm_head" in targets:
        raise CaseError(
            f"lora.target_modules is {show_value(list(targets))}, but loss {case.loss!r} reads the "
            "weight of lm_head without its adapter, which would never train: leave it out",
            "lora.target_modules",
        )


def _check_parallelism(case: Case) -> None:
    name = "parallelism"
    if not case.training:
        _impossible(case, name, "is for training only", case.task)
    if case.attention == "eager":
        _impossible(case, name, "needs attention sdpa or flash_attention_2", case.attention)
    if case.loss != "standard":
        _impossible(case, name, "needs loss standard", case.loss)
    if case.recomputes_attention:
        _impossible(case, name, "needs recompute_granularity full", case.recompute_granularity)
    if case.stack is not None:
        _impossible(case, name, "is not for older stacks", case.stack)
    if case.sequence_length % case.sp_size:
        _impossible(case, name, "must divide sequence_length", case.sequence_length)


def _impossible(case: Case, name: str, why: str, other: Any) -> None:
    value = getattr(case, name)
    shown = value.to_dict() if isinstance(value, (Lora, Parallelism)) else value
    raise CaseError(
        f"{name} is {show_value(shown)}, but {why} (here it meets {show_value(other)})", name
    )
