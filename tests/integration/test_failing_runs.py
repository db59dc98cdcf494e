"""What the libraries stop with an error, the formulas refuse, and the trace stops at."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.errors import GpumemError
from profiler.trace import trace_case

HYBRID = {
    "model_type": "lfm2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}
BART = {"model_type": "bart", "d_model": 128, "decoder_attention_heads": 4, "vocab_size": 500}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 120,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 500,
}
CTRL = {"model_type": "ctrl", "n_embd": 128, "n_head": 4, "n_layer": 2, "vocab_size": 500}
CTRL |= {"dff": 256, "n_positions": 128}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], str]] = {
    "no attention layer": (
        {"model": {**HYBRID, "num_hidden_layers": 2, "layer_types": ["conv"] * 2}},
        {"model": {**HYBRID, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}},
        {"max_new_tokens": 2},
        "has no attention layer",
    ),
    "a cache of too few layers": (
        {"model": {**BART, "encoder_layers": 2, "decoder_layers": 3}},
        {"model": {**BART, "encoder_layers": 3, "decoder_layers": 3}},
        {"max_new_tokens": 2},
        "makes a cache of 2 layers",
    ),
    "groups that do not go into a prompt": (
        {"sequence_length": 33},
        {"sequence_length": 64},
        {"model": LLAMA, "cache": "quantized", "max_new_tokens": 2},
        "groups of 64",
    ),
    "a target that is a layer's number": (
        {"lora": {"r": 4, "target_modules": ["0", "Wq"]}},
        {"lora": {"r": 4, "target_modules": ["Wq"]}},
        {"model": CTRL, "task": "training", "method": "lora"},
        "is a layer of",
    ),
    "positions that DeepSpeed is not given": (
        {"parallelism": {"sp_size": 3}},
        {},
        {"model": {**LLAMA, "model_type": "ministral3"}, "task": "training"},
        "sequence parallelism of ministral3",
    ),
    "Mamba with flash-attn": (
        {"attention": "flash_attention_2"},
        {"attention": "eager"},
        {
            "model": {
                "model_type": "mamba",
                "hidden_size": 64,
                "num_hidden_layers": 1,
                "vocab_size": 500,
            },
            "task": "training",
        },
        "flash_attention_2",
    ),
    "fp32 norms before a head in half precision": (
        {"quantization": "nf4", "stack": "fms-acceleration"},
        {"quantization": "nf4"},
        {"model": LLAMA, "max_new_tokens": 2},
        "fms-acceleration",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_both_sources_refuse_what_fails_and_answer_what_runs(name: str) -> None:
    failing, running, fields, sentence = RUNS[name]
    fields = {"batch_size": 2, "sequence_length": 48, **fields}
    case = Case.from_dict({**fields, **failing})
    with pytest.raises(GpumemError, match=sentence):
        estimate(case)
    with pytest.raises(GpumemError):
        trace_case(case)
    mended = Case.from_dict({**fields, **running})
    traced = trace_case(mended).peak.requested_bytes
    assert estimate(mended).peak.requested_bytes == pytest.approx(traced, rel=0.001)


@pytest.mark.parametrize("optimizer", ["adagrad", "rmsprop", "adamw_torch"])
def test_adagrad_has_states_for_what_never_gets_a_gradient(optimizer: str) -> None:
    """BART's attention to an encoder that is not there: the others make states when they step."""
    case = Case.from_dict(
        {
            "model": {**BART, "encoder_layers": 2, "decoder_layers": 2},
            "task": "training",
            "method": "lora",
            "lora": {"r": 64},
            "optimizer": optimizer,
            "batch_size": 2,
            "sequence_length": 48,
        }
    )
    ours, theirs = estimate(case), trace_case(case)
    assert ours.peak.requested_bytes == pytest.approx(theirs.peak.requested_bytes, rel=0.0005)
