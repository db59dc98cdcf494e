"""generate on meta tensors: steps that are left out change nothing that is read."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers

from estimator.case import Case
from profiler.trace import decoding, record_timeline
from profiler.trace.decoding import played_steps
from profiler.trace.timeline import Timeline

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama"},
    "qwen2": {"model_type": "qwen2"},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4},
    "opt": {"model_type": "opt", "ffn_dim": 96, "word_embed_proj_dim": 64},
    "bloom": {"model_type": "bloom", "n_layer": 2, "n_head": 4},
    "falcon": {"model_type": "falcon"},
    "gemma3": {
        "model_type": "gemma3_text",
        "head_dim": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "mistral, window": {"model_type": "mistral", "sliding_window": 24},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "deepseek": {
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "qwen3_next": {
        "model_type": "qwen3_next",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "mamba": {"model_type": "mamba", "state_size": 4},
    "rwkv": {"model_type": "rwkv", "attention_hidden_size": 64},
}
RUNS = [
    (name, fields)
    for name in MODELS
    for fields in (
        {},
        {"batch_size": 3, "cache": "static"},
        {"batch_size": 3, "method": "lora", "lora": {"target_modules": "all-linear"}},
    )
    if not (
        (name in ("rwkv", "mamba", "bloom") and "cache" in fields)
        or (name in ("rwkv", "mamba") and "method" in fields)
    )
]


def case_of(name: str, **fields: Any) -> Case:
    model = {**SIZES, **MODELS[name]}
    given = {"sequence_length": 20, "max_new_tokens": 9}
    return Case.from_dict({"model": model, **given, **fields})


def peaks(timeline: Timeline) -> dict[str, tuple[int, int]]:
    """The requested bytes at each phase's peak and at its end."""
    alive, found = 0, {}
    ends = [span.first_event for span in timeline.spans[1:]] + [len(timeline.events)]
    for span, end in zip(timeline.spans, ends, strict=True):
        highest = alive
        for event in timeline.events[span.first_event : end]:
            size = timeline.allocations[event if event >= 0 else ~event].size_bytes
            alive += size if event >= 0 else -size
            highest = max(highest, alive)
        found[span.name] = (highest, alive)
    return found


@pytest.mark.parametrize(("name", "fields"), RUNS)
def test_a_shortened_run_is_the_whole_generate(
    name: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real generate, all of its steps played, has the same peaks, byte by byte."""
    case = case_of(name, **fields)
    shortened, _ = record_timeline(case)
    monkeypatch.setattr(decoding, "played_steps", lambda case: list(range(8)))
    whole, _ = record_timeline(case)
    assert len(whole.events) > len(shortened.events)
    assert peaks(shortened) == peaks(whole)


@pytest.mark.parametrize(
    ("cache", "tokens", "steps"),
    [
        ("dynamic", 1, []),
        ("dynamic", 2, [0]),
        ("dynamic", 3, [0, 1]),
        ("static", 128, [0, 125, 126]),
        ("quantized", 300, [0, 255, 297, 298]),
    ],
)
def test_which_steps_are_played(cache: str, tokens: int, steps: list[int]) -> None:
    assert played_steps(case_of("llama", cache=cache, max_new_tokens=tokens)) == steps


def test_experts_are_switched_for_decode_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Off the CPU generate runs experts as one batched product from the second token on."""
    seen: list[str] = []
    forward = transformers.MixtralForCausalLM.forward

    @functools.wraps(forward)
    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.config._experts_implementation)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(transformers.MixtralForCausalLM, "forward", noting)
    record_timeline(case_of("mixtral", max_new_tokens=3))
    assert seen == ["grouped_mm", "batched_mm", "batched_mm"]


def test_the_class_is_as_before() -> None:
    before = dict(vars(transformers.LlamaForCausalLM))
    record_timeline(case_of("llama"))
    assert dict(vars(transformers.LlamaForCausalLM)) == before
    assert torch.is_grad_enabled()
