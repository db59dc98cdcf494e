"""Published training runs: which rows state a case of ours, source by source."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.evidence.reading import (
    NotStated,
    Printed,
    Stated,
    card,
    catalogue_model,
    dtype,
    quantization,
    whole,
)
from benchmarks.evidence.units import UNITS

ANOTHER_MODEL = "{} runs its own implementation of the model, not transformers'"

_FMS_LORA = re.compile(r"LoRA r=(\d+) alpha=(\d+) dropout=([0-9.]+) targets=(.*)")

_FMS_STACKS = {
    "none": "fms-acceleration",
    # The baseline's norms were cast to fp32; the accelerated plug-in leaves them as loaded.
    "baseline-peft-bnb": "fms-acceleration",
    "accelerated-peft-bnb": "transformers-4.48",
    "foak-fast-kernels": "fms-fast-kernels",
    "accelerated-peft-bnb-foak": "fms-fast-kernels",
}

_FMS_FIGURES = (
    ("nvidia-smi", "device", "peak"),
    ("max_memory_allocated", "allocated", "peak"),
    ("end-of-train", "allocated", "after_step"),
)


def fms(row: Printed) -> Stated:
    """Runs of foundation-model-stack/fms-acceleration: SFTTrainer on an A100."""
    _one_gpu(row)
    method, _, plugin = row["method"].partition("; plugin=")
    if "autogptq" in plugin:
        raise NotStated("weights in GPTQ int4: not a case's")
    if plugin not in _FMS_STACKS:
        raise NotStated(f"plugin {plugin} is not a stack of ours")
    if "Mixtral" in row["model"]:
        raise NotStated(
            "in that stack the experts were linears and were quantized; in transformers 5 they "
            "are fused parameters that bitsandbytes does not touch"
        )
    counter, instant = next(
        (counter, instant) for words, counter, instant in _FMS_FIGURES if words in row["metric"]
    )
    case: dict[str, Any] = {
        "model": catalogue_model(row["model"]),
        "task": "training",
        "dtype": dtype(row),
        **quantization(row),
        "batch_size": whole(row, "batch"),
        "sequence_length": whole(row, "seq"),
        "optimizer": "adamw_torch",
        "gradient_checkpointing": row["grad_ckpt"] == "True",
        "attention": row["attn"],
        "stack": _FMS_STACKS[plugin],
        "gpu": card(row["gpu"]),
    }
    adapters = _FMS_LORA.match(method)
    if adapters is not None:
        rank, alpha, dropout, targets = adapters.groups()
        case["method"] = "lora"
        case["lora"] = {
            "r": int(rank),
            "lora_alpha": int(alpha),
            "lora_dropout": float(dropout),
            "target_modules": targets.split(),
        }
    mixed = re.match(r"autocast (bf16|fp16)", row["notes"])
    if mixed is not None:
        case["mixed_precision"] = mixed.group(1)
    if "quantization" in case:
        case |= {"double_quantization": True, "prepare_kbit": False}
    return Stated(case, counter, instant)


def fms_varied(row: Printed) -> Stated:
    """The same, on batches whose lengths vary: only what no length enters is stated."""
    stated = fms(row)
    if stated.instant != "after_step":
        raise NotStated("batches vary in length, and only their mean is stated")
    return Stated(
        stated.case,
        stated.counter,
        stated.instant,
        "batches vary in length; their mean enters, but hardly matters after the step",
    )


def peft(row: Printed) -> Stated:
    """PEFT's method comparison on MetaMathQA: batches of varying length."""
    kind = row["method"].split(" ", 1)[0]
    if kind not in ("LORA", "full-finetuning"):
        raise NotStated(f"method {kind}: not a case's")
    raise NotStated(
        "batches vary in length (at most 768 tokens), and the last batch's logits are counted in"
    )


def swift(row: Printed) -> Stated:
    """ms-swift's table of settings."""
    _one_gpu(row)
    raise NotStated("autocast and the adapters' dtype are not stated")


def unclear(row: Printed) -> Stated:
    """Runs whose text leaves out what decides."""
    _one_gpu(row)
    if row["unit"] not in UNITS:
        raise NotStated(f"the unit is not known: {row['unit'] or 'none'}")
    if "unspecified" in row["metric"] or "unstated" in row["metric"]:
        raise NotStated("what was counted is not stated")
    raise NotStated("the loop, or the settings it ran with, are not stated")


def another(name: str) -> Any:
    """Return a rule for runs of another implementation of the model."""

    def rule(row: Printed) -> Stated:
        raise NotStated(ANOTHER_MODEL.format(name))

    return rule


def _one_gpu(row: Printed) -> None:
    if row["n_gpus"] != "1":
        raise NotStated(f"{row['n_gpus']} GPUs: a case is a run on one")
