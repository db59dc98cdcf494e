"""The formulas of older stacks against the trace, which makes today's code behave as they did."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import Case, estimate
from estimator.units import relative_error
from profiler.trace import trace_case

LLAMA = {
    "model_type": "llama",
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
BIGCODE = {
    "model_type": "gpt_bigcode",
    "vocab_size": 30000,
    "n_embd": 512,
    "n_layer": 3,
    "n_head": 8,
    "n_positions": 2048,
}
BART = {
    "model_type": "bart",
    "vocab_size": 30000,
    "d_model": 512,
    "decoder_layers": 3,
    "decoder_ffn_dim": 2048,
    "decoder_attention_heads": 8,
    "max_position_embeddings": 1024,
}
QLORA = {
    "method": "lora",
    "quantization": "nf4",
    "prepare_kbit": False,
    "mixed_precision": "bf16",
}


@pytest.mark.parametrize(
    "changes",
    [
        {"stack": "transformers-4.48", "batch_size": 4},
        {"stack": "transformers-4.48", "batch_size": 1, "gradient_checkpointing": True},
        {"stack": "transformers-4.48", "gradient_checkpointing": True, **QLORA},
        {
            "stack": "transformers-4.48",
            "gradient_checkpointing": True,
            "method": "lora",
            "quantization": "int8",
            "prepare_kbit": False,
        },
        {"stack": "fms-acceleration", "gradient_checkpointing": True, **QLORA},
        {"stack": "fms-acceleration", "gradient_checkpointing": True, "method": "lora"},
        {"stack": "transformers-4.48", "model": BIGCODE, "gradient_checkpointing": True},
        {"stack": "transformers-4.48", "model": BART, "keep_logits": True},
        {"stack": "transformers-4.48", "model": BART, "method": "lora"},
    ],
)
def test_training_as_an_older_stack_did(changes: dict[str, Any]) -> None:
    fields = {"model": LLAMA, "task": "training", "batch_size": 2, "sequence_length": 512}
    case = Case.from_dict({**fields, **changes})
    ours, traced = estimate(case), trace_case(case)
    assert ours.peak.requested_bytes is not None
    assert traced.peak.requested_bytes is not None
    requested = (ours.peak.requested_bytes, traced.peak.requested_bytes)
    assert abs(relative_error(*requested)) < 0.003
    # Of a model this small the rests at the ends of segments are a share.
    assert abs(relative_error(ours.peak.allocated_bytes, traced.peak.allocated_bytes)) < 0.01
    ends = (ours.phases[-1].end_allocated_bytes, traced.phases[-1].end_allocated_bytes)
    assert abs(relative_error(*ends)) < 0.01
