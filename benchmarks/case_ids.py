"""Readable ids of cases, for suites, file names and `-k`.

An id spells out every field that differs from its default, so that two different cases of one
model never share one. It does not replace `Case.case_id`, which is what records are paired by.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import fields

from estimator.case import Case, Lora, Parallelism

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
_SPELT_OUT = frozenset(
    {"model", "task", "dtype", "quantization", "method", "lora", "optimizer"}
    | {"gradient_checkpointing", "attention", "batch_size", "sequence_length", "max_new_tokens"}
)


def model_slug(case: Case) -> str:
    """Return the model's short name in lower case, safe in a file name.

    A configuration object gets six digits of its hash, because its name does not identify it.
    """
    slug = re.sub(r"[^a-z0-9._]+", "-", case.model_name.lower()).strip("-.")[:60] or "model"
    if isinstance(case.model, str):
        return slug
    text = json.dumps(case.model, sort_keys=True, separators=(",", ":"))
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def case_slug(case: Case) -> str:
    """Return a readable id, such as `smollm2-135m-lora-bf16-adamw_torch-ckpt-2x512-r8`."""
    parts = [model_slug(case), case.method if case.training else "infer"]
    if not case.training and case.method == "lora":
        parts.append("lora")
    if case.quantization:
        parts.append(case.quantization)
    parts.append(_DTYPES[case.dtype])
    if case.training or case.optimizer != "adamw_torch_fused":
        parts.append(case.optimizer)
    if case.gradient_checkpointing:
        parts.append("ckpt")
    if case.attention != "sdpa":
        parts.append(case.attention)
    shape = f"{case.batch_size}x{case.sequence_length}"
    parts.append(shape if case.training else f"{shape}+{case.max_new_tokens}")
    parts.extend(_lora_parts(case.lora))
    parts.extend(_other_parts(case))
    return "-".join(parts)


def _lora_parts(lora: Lora | None) -> list[str]:
    if lora is None:
        return []
    parts = []
    defaults = Lora()
    if lora.r != defaults.r:
        parts.append(f"r{lora.r}")
    if lora.lora_alpha != defaults.lora_alpha:
        parts.append(f"alpha{lora.lora_alpha}")
    if lora.lora_dropout != defaults.lora_dropout:
        parts.append(f"drop{lora.lora_dropout!r}")
    if lora.target_modules != defaults.target_modules:
        names = "+".join(lora.target_modules)
        parts.append(re.sub(r"[^A-Za-z0-9._+]+", "-", names).lower())
    if lora.use_dora:
        parts.append("dora")
    return parts


def _other_parts(case: Case) -> list[str]:
    """Spell out what has no short form: `momentum0.9`, `no-prepare_kbit`, `keep_logits`."""
    defaults = Case(model=case.model)
    parts = []
    for field in fields(case):
        value = getattr(case, field.name)
        if field.name in _SPELT_OUT or value == getattr(defaults, field.name):
            continue
        if isinstance(value, bool):
            parts.append(field.name if value else f"no-{field.name}")
        elif isinstance(value, Parallelism):
            parts.append(f"sp{value.sp_size}")
        else:
            text = re.sub(r"[^A-Za-z0-9._+]+", "-", str(value)).lower()
            parts.append(f"{field.name}{text}" if isinstance(value, (int, float)) else text)
    return parts
