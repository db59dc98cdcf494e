"""Published runs that ran out of memory: the case that needed more than its card has."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.evidence.reading import NotStated, Printed, Stated, card, catalogue_model, whole

_LITGPT = (
    "litgpt's own implementation of the model, told in transformers' words: one-sided evidence only"
)
_LIT_TARGETS = {"q,v": ["q_proj", "v_proj"], "query,value": ["q_proj", "v_proj"]}


def litgpt(row: Printed) -> Stated:
    """litgpt's tables of resources: LoRA, full fine-tuning and generation."""
    _one_gpu(row)
    length = re.search(r"\d+(?= Llama2)|^\d+$|(?<=<= )\d+|(?<=Llama2 )\d+", row["seq"])
    text = row["seq"]
    if text.startswith("Alpaca longest"):
        tokens = 1304
    elif length is not None:
        tokens = int(length.group())
    elif text == "short prompt":
        tokens = 32
    else:
        raise NotStated(f"sequence length: {text}")
    wide = "fp32 weights" in row["weights_dtype"]
    case: dict[str, Any] = {
        "model": catalogue_model(row["model"]),
        "task": "training" if row["task"] == "train" else "inference",
        "dtype": "float32" if wide else "bfloat16",
        "batch_size": whole(row, "batch"),
        "sequence_length": tokens,
        "gpu": card(row["gpu"]),
    }
    if "nf4" in row["quant"]:
        double = "double" in row["quant"]
        case |= {"quantization": "nf4", "double_quantization": double, "prepare_kbit": False}
    if row["task"] != "train":
        return Stated({**case, "max_new_tokens": 50}, "device", caveat=_LITGPT)
    case["optimizer"] = "adamw_torch"
    if wide:
        case["mixed_precision"] = "bf16"
    adapters = re.match(r"LoRA r=(\d+)(?:.*targets=([a-z,]+))", row["method"])
    if adapters is not None:
        targets = _LIT_TARGETS.get(adapters.group(2), "all-linear")
        case |= {"method": "lora", "lora": {"r": int(adapters.group(1)), "target_modules": targets}}
    return Stated(case, "device", caveat=_LITGPT)


def deepseek(row: Printed) -> Stated:
    """DeepSeek-LLM's table: a prompt's forward at least, whatever the loop did after it."""
    _one_gpu(row)
    case = {
        "model": catalogue_model(row["model"]),
        "task": "inference",
        "batch_size": whole(row, "batch"),
        "sequence_length": whole(row, "seq"),
        "max_new_tokens": 1,
        "attention": "eager",
        "stack": "transformers-4.35",
        "gpu": card(row["gpu"]),
    }
    return Stated(case, "device", caveat="the loop is not stated: the prompt's forward alone")


def unclear(row: Printed) -> Stated:
    """Runs whose text leaves out what decides."""
    _one_gpu(row)
    raise NotStated("the settings that decide are not stated")


def _one_gpu(row: Printed) -> None:
    if row["n_gpus"] != "1" or re.match(r"[2-9]", row["gpu"]):
        raise NotStated("several GPUs: a case is a run on one")
