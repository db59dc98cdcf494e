"""Published inference runs: which rows state a case of ours, source by source."""

from __future__ import annotations

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

_ATTENTIONS = (
    ("BetterTransformer", "sdpa"),
    ("flash_attention_2", "flash_attention_2"),
    ("sdpa", "sdpa"),
    ("eager", "eager"),
)


def qwen2_speed(row: Printed) -> Stated:
    """Qwen2's table of generation speed: one prompt, 2048 new tokens."""
    if row["n_gpus"] != "1":
        raise NotStated(f"{row['n_gpus']} GPUs: a case is a run on one")
    case = _inference(row, "transformers-4.38")
    return Stated(case, "allocated")


def qwen3_speed(row: Printed) -> Stated:
    """Qwen3's table, whose figures fit no peak: what is left when the last token is made."""
    if row["seq"] == "1":
        raise NotStated("may have stopped before 2048 tokens")
    attention = {**row, "attn": "flash_attention_2"}
    return Stated(
        _inference(attention, None),
        "allocated",
        "after_generate",
        "the figures fit weights and cache without prefill's transient, and are read as that",
    )


def optimum_benchmark(row: Printed) -> Stated:
    """optimum-benchmark's tables: one forward of the prompt, or generate."""
    counter = {
        "torch.cuda.max_memory_allocated": "allocated",
        "torch.cuda.max_memory_reserved": "reserved",
        "NVML used (sampled)": "device",
        "NVML peak (sampled)": "device",
    }[row["metric"]]
    return Stated(_inference(row, "transformers-4.35"), counter)


def octocoder(row: Printed) -> Stated:
    """transformers' tutorial on speed and memory."""
    caveat = "about 25 prompt tokens"
    stack = "transformers-4.35" if row["quant"] == "none" else "transformers-4.32-defaults"
    case = _inference({**row, "seq": "25"}, stack)
    if row["seq"] != "~25 prompt tokens":
        raise NotStated(f"sequence length: {row['seq']}")
    return Stated(case, "allocated", caveat=caveat)


def _inference(row: Printed, stack: str | None) -> dict[str, Any]:
    weights = quantization(row)
    # A forward without generate is a prefill.
    return {
        "model": catalogue_model(row["model"]),
        "task": "inference",
        "dtype": dtype(row),
        **weights,
        "batch_size": whole(row, "batch"),
        "sequence_length": whole(row, "seq"),
        "max_new_tokens": max(1, whole(row, "new_tokens")),
        "attention": _attention(row["attn"]),
        "stack": stack,
        "gpu": card(row["gpu"]),
    }


def _attention(text: str) -> str:
    for words, name in _ATTENTIONS:
        if words in text:
            return name
    raise NotStated(f"attention: {text or 'not stated'}")
