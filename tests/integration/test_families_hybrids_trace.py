"""Formulas of state spaces and recurrences beside attention against the trace."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.errors import UnsupportedError
from profiler.trace import trace_case

HYBRID = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "vocab_size": 500,
}
FALCON_H1 = {
    **HYBRID,
    "model_type": "falcon_h1",
    "num_key_value_heads": 2,
    "mamba_n_heads": 8,
    "mamba_d_state": 16,
    "mamba_chunk_size": 32,
    "mamba_d_ssm": 256,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "falcon_h1": FALCON_H1,
    "falcon_h1, norm behind the gate": {
        **FALCON_H1,
        "mamba_rms_norm": True,
        "mamba_norm_before_gate": False,
        "mamba_n_groups": 2,
        "projectors_bias": True,
    },
}
ZAMBA2 = {
    **HYBRID,
    "model_type": "zamba2",
    "n_mamba_heads": 8,
    "mamba_d_state": 16,
    "chunk_size": 32,
    "adapter_rank": 8,
}
FAMILIES |= {
    "zamba": {
        **HYBRID,
        "model_type": "zamba",
        "num_hidden_layers": 5,
        "num_key_value_heads": 8,
        "layers_block_type": ["mamba", "hybrid", "hybrid", "mamba", "hybrid"],
    },
    "zamba2": {
        **ZAMBA2,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "num_hidden_layers": 4,
        "add_bias_linear": True,
    },
    "zamba2, two blocks with adapters": {
        **ZAMBA2,
        "layers_block_type": ["mamba", *["hybrid"] * 5],
        "num_hidden_layers": 6,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "use_mem_rope": True,
        "mamba_ngroups": 2,
    },
}
RECURRENT_GEMMA = {
    **HYBRID,
    "model_type": "recurrent_gemma",
    "intermediate_size": 768,
    "lru_width": 256,
}
FAMILIES |= {
    "recurrent_gemma, sliding": {
        **RECURRENT_GEMMA,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "attention_window_size": 64,
    },
    "recurrent_gemma": {
        **RECURRENT_GEMMA,
        "block_types": ["recurrent", "attention"],
        "attention_bias": True,
        "attention_dropout": 0.1,
    },
}
WITHOUT = {"recurrent_gemma": ("LoRA, int8", "LoRA, autocast")}
"""Runs that a model type has no formulas for."""
TARGETS = {"falcon_h1": ["in_proj", "q_proj", "v_proj", "up_proj"]}
"""What adapters sit on where peft refuses all linears."""
ALONE = ("falcon_h1, norm behind the gate",)
"""Models that decode one sequence alone."""
RUNS: dict[str, dict[str, Any]] = {
    "full": {"task": "training", "batch_size": 2, "sequence_length": 90},
    "full, checkpointing, eager": {
        "task": "training",
        "batch_size": 3,
        "sequence_length": 64,
        "gradient_checkpointing": True,
        "attention": "eager",
    },
    "LoRA, fp32": {
        "task": "training",
        "method": "lora",
        "dtype": "float32",
        "batch_size": 1,
        "sequence_length": 70,
    },
    "LoRA, int8": {
        "task": "training",
        "method": "lora",
        "quantization": "int8",
        "batch_size": 2,
        "sequence_length": 50,
    },
    "QLoRA, checkpointing": {
        "task": "training",
        "method": "lora",
        "quantization": "nf4",
        "batch_size": 2,
        "sequence_length": 50,
        "gradient_checkpointing": True,
    },
    "LoRA, autocast": {
        "task": "training",
        "method": "lora",
        "dtype": "float32",
        "mixed_precision": "bf16",
        "batch_size": 2,
        "sequence_length": 64,
    },
    "chunked loss": {"task": "training", "batch_size": 2, "sequence_length": 80, "loss": "chunked"},
    "accumulated": {
        "task": "training",
        "batch_size": 2,
        "sequence_length": 32,
        "gradient_accumulation_steps": 2,
    },
    "prefill": {"batch_size": 3, "sequence_length": 90, "max_new_tokens": 3},
    "decode": {"batch_size": 4, "sequence_length": 8, "max_new_tokens": 200, "dtype": "float16"},
    "static": {"batch_size": 2, "sequence_length": 64, "max_new_tokens": 100, "cache": "static"},
}


def case_of(family: str, run: dict[str, Any]) -> Case:
    model = FAMILIES[family]
    fields = {"model": model, **run}
    if fields.get("method") == "lora" and model["model_type"] in TARGETS:
        fields["lora"] = {"target_modules": TARGETS[model["model_type"]]}
    if family in ALONE and fields.get("task") != "training":
        fields["batch_size"] = 1
    return Case.from_dict(fields)


@pytest.mark.parametrize("family", FAMILIES)
def test_requested_bytes_and_parameters_are_the_traces(family: str) -> None:
    unknown = WITHOUT.get(FAMILIES[family]["model_type"], ())
    for name, run in RUNS.items():
        case = case_of(family, run)
        if name in unknown:
            with pytest.raises(UnsupportedError):
                estimate(case)
            continue
        estimated, traced = estimate(case), trace_case(case)
        assert estimated.parameters == traced.parameters, name
        assert traced.peak.requested_bytes is not None
        assert estimated.peak.requested_bytes == pytest.approx(
            traced.peak.requested_bytes, rel=0.001
        ), name


@pytest.mark.parametrize("family", ["falcon_h1", "zamba", "zamba2"])
def test_qlora_under_autocast_is_the_traces(family: str) -> None:
    fields = {"task": "training", "method": "lora", "quantization": "nf4", "batch_size": 2}
    extra = {"mixed_precision": "bf16", "gradient_checkpointing": True, "sequence_length": 64}
    case = case_of(family, {**fields, **extra})
    requested = trace_case(case).peak.requested_bytes
    assert estimate(case).peak.requested_bytes == pytest.approx(requested, rel=0.001)


def test_weights_that_layers_share_and_autocast_casts_once_are_refused() -> None:
    fields = {"task": "training", "dtype": "float32", "mixed_precision": "bf16"}
    with pytest.raises(UnsupportedError, match="autocast of zamba2"):
        estimate(case_of("zamba2", fields))


def test_several_sequences_that_a_norm_mixes_up_are_refused() -> None:
    model = {**FALCON_H1, "mamba_rms_norm": True}
    with pytest.raises(UnsupportedError, match="several sequences with falcon_h1"):
        estimate(Case.from_dict({"model": model, "batch_size": 2, "max_new_tokens": 8}))


def test_what_modules_keep_of_checkpointing_is_there_after_the_step() -> None:
    fields = {"model": FAMILIES["recurrent_gemma"], **RUNS["full, checkpointing, eager"]}
    case = Case.from_dict({**fields, "optimizer": "sgd", "batch_size": 16, "sequence_length": 512})
    ends = [
        {phase.name: phase.end_allocated_bytes for phase in source(case).phases}
        for source in (estimate, trace_case)
    ]
    assert ends[0]["optimizer_step"] == pytest.approx(ends[1]["optimizer_step"], rel=0.01)
    # Weights and the cuBLAS workspaces alone would be far less.
    assert ends[1]["optimizer_step"] > 1.2 * ends[1]["load"] + 2 * 8_519_680
