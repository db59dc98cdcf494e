"""`Case`: one run to be estimated, traced or measured.

Parsing is strict: an unknown field, a wrong type or an impossible combination raises
`CaseError`, which names the field, the value and what is allowed. What each field may say is
in `estimator.case_fields`, what goes together in `estimator.case_combinations`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from estimator.case_combinations import complete
from estimator.case_fields import (
    ATTENTIONS,
    CACHES,
    DTYPES,
    LOSSES,
    MAX_COUNT,
    METHODS,
    MIXED_PRECISIONS,
    OPTIMIZERS,
    QUANTIZATIONS,
    RECOMPUTE_GRANULARITIES,
    TASKS,
    Lora,
    Parallelism,
    read_field,
)
from estimator.errors import CaseError, show_value
from estimator.suggest import did_you_mean

__all__ = (
    "ATTENTIONS",
    "CACHES",
    "DTYPES",
    "LOSSES",
    "MAX_COUNT",
    "METHODS",
    "MIXED_PRECISIONS",
    "OPTIMIZERS",
    "QUANTIZATIONS",
    "RECOMPUTE_GRANULARITIES",
    "TASKS",
    "Case",
    "Lora",
    "Parallelism",
    "sequence_parallel_lines",
)


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
        values = {name: read_field(name, data[name]) for name in data}
        return complete(cls(**values))

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


def scaler_lines(case: Case) -> tuple[str, ...]:
    """Return what keeps Trainer from a step that answers are given for, for their assumptions.

    Source: torch/amp/grad_scaler.py, `_unscale_grads_` (fp16); aten's AmpKernels.cu (bf16).
    """
    half = case.dtype != "float32"
    if not case.training or case.mixed_precision != "fp16" or case.method != "full" or not half:
        return ()
    return (
        f"a loop without a gradient scaler: Trainer's unscales no {case.dtype} gradients, and "
        "stops at its first step; train float32 weights under fp16, or adapters",
    )


_FIELD_NAMES = tuple(field.name for field in fields(Case))

_DEFAULTS = {field.name: field.default for field in fields(Case)}


def _beyond(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value != defaults[name]}
