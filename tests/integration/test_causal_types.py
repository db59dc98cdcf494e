"""Model types of many kinds, traced by their own code, small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from estimator.case import Case
from estimator.errors import GpumemError, UnsupportedError
from estimator.report import MemoryReport
from profiler.trace import decoding, trace_case
from profiler.trace.answers import ROUTING_LINE

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 200,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MLA = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}

TYPES: dict[str, dict[str, Any]] = {
    # State spaces, linear attention and hybrids of both with attention.
    "mamba": {"state_size": 8, "num_hidden_layers": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2},
    "qwen3_next": {
        **EXPERTS,
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 4,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "shared_expert_intermediate_size": 48,
    },
    # States of their own.
    "rwkv": {"attention_hidden_size": 64},
    "xlnet": {"d_model": 64, "n_layer": 2, "n_head": 4, "d_inner": 96},
    "minimax": {"num_local_experts": 4, "head_dim": 16},
    # Latent attention, with experts; a sparse indexer.
    "deepseek_v3": {**MLA, **EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    # Experts that are chosen in Python loops and lists.
    "jetmoe": {"num_local_experts": 4, "kv_channels": 16},
    "mixtral": {"num_local_experts": 4},
    # Sliding windows, parallel residuals, one key/value head, no sdpa.
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": {},
    "gpt_bigcode": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_inner": 96},
    "bloom": {"n_layer": 2, "n_head": 4},
    "cpmant": {"dim_head": 16, "dim_ff": 96},
}

CASES: dict[str, dict[str, Any]] = {
    "training": {"task": "training"},
    "lora": {"task": "training", "method": "lora"},
    "inference": {"max_new_tokens": 12},
}


def case_of(model_type: str, name: str) -> Case:
    model = {"model_type": model_type, **SIZES, **TYPES[model_type]}
    # XLNet's code mixes types in half precision, and fails.
    dtype = "float32" if model_type == "xlnet" else "bfloat16"
    return Case.from_dict({"model": model, "sequence_length": 24, "dtype": dtype, **CASES[name]})


@pytest.mark.parametrize("model_type", TYPES)
def test_a_training_step_is_traced(model_type: str) -> None:
    report = trace_case(case_of(model_type, "training"))
    weights = 2 * report.parameters.total
    assert report.parameters.trainable == report.parameters.total
    assert [phase.name for phase in report.phases] == [
        "load",
        "forward",
        "backward",
        "optimizer_step",
    ]
    # Weights, gradients and AdamW's two states, in bfloat16, are there when the optimizer steps.
    assert report.phases[-1].peak_allocated_bytes >= 4 * weights


@pytest.mark.parametrize("model_type", TYPES)
def test_skipped_decode_steps_change_nothing(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = case_of(model_type, "inference")
    skipped = trace_case(case)
    tokens = case.max_new_tokens
    assert tokens is not None
    monkeypatch.setattr(decoding, "played_steps", lambda _: list(range(tokens - 1)))
    played = trace_case(case)
    assert skipped.phases[-1].name == "decode"
    assert skipped.phases == played.phases
    assert skipped.peak.allocated_bytes == played.peak.allocated_bytes


@pytest.mark.parametrize("model_type", ["mixtral", "gemma3_text", "bloom"])
def test_adapters_are_traced(model_type: str) -> None:
    report = trace_case(case_of(model_type, "lora"))
    assert 0 < report.parameters.trainable < report.parameters.total


def lines_of(model_type: str, name: str) -> tuple[str, ...]:
    return trace_case(case_of(model_type, name)).assumptions


def test_routing_that_was_assumed_is_said() -> None:
    assert ROUTING_LINE in lines_of("jetmoe", "training")
    assert ROUTING_LINE not in lines_of("gpt_neox", "training")


def test_attention_that_a_class_lacks_is_transformers_choice() -> None:
    chosen = "BloomForCausalLM supports no sdpa: its attention is eager, as transformers chooses"
    assert chosen in lines_of("bloom", "training")
    assert any(line.startswith("sdpa chooses") for line in lines_of("gpt_neox", "training"))


def test_attention_that_is_asked_for_is_not_replaced() -> None:
    case = Case.from_dict({**case_of("bloom", "training").to_dict(), "attention": "eager"})
    assert not any("sdpa" in line for line in trace_case(case).assumptions)


def test_flash_attention_that_a_class_lacks_is_refused() -> None:
    case = {**case_of("cpmant", "training").to_dict(), "attention": "flash_attention_2"}
    with pytest.raises(UnsupportedError, match=r"supports no flash_attention_2; use attention"):
        trace_case(Case.from_dict(case))


def test_decode_gathers_the_weights_of_the_chosen_experts() -> None:
    """generate's batched experts hold a copy of each chosen expert's weights in a layer."""

    def decode(experts: int) -> MemoryReport:
        model = {"model_type": "mixtral", **SIZES, "num_local_experts": 8}
        model["num_experts_per_tok"] = experts
        return trace_case(
            Case.from_dict({"model": model, "sequence_length": 2, "max_new_tokens": 3})
        )

    few, many = (decode(experts).phases[-1] for experts in (1, 8))
    up_projections = 2 * (2 * 96 * 64)
    grown = many.peak_allocated_bytes - few.peak_allocated_bytes
    assert grown >= 7 * up_projections


REFUSED: dict[str, tuple[dict[str, Any], str, Callable[[str], bool]]] = {
    "bamba": (
        {**SIZES, "mamba_n_heads": 8, "mamba_d_head": 16},
        "inference",
        lambda text: "get_seq_length" in text,
    ),
    "mamba": ({**SIZES, "state_size": 8}, "lora", lambda text: "out_proj" in text),
    "falcon": ({"num_hidden_layers": "two"}, "training", lambda text: "falcon" in text),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_refusal_is_one_sentence(model_type: str) -> None:
    fields, name, says = REFUSED[model_type]
    case = Case.from_dict(
        {"model": {"model_type": model_type, **fields}, "sequence_length": 24, **CASES[name]}
    )
    with pytest.raises(GpumemError) as caught:
        trace_case(case)
    message = str(caught.value)
    assert "\n" not in message
    assert says(message)


def test_a_model_whose_own_code_fails_is_unsupported_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    def fails(*_: Any) -> None:
        raise TypeError("no such number of experts")

    monkeypatch.setattr(LlamaMLP, "forward", fails)
    case = Case.from_dict({"model": {"model_type": "llama", **SIZES}, "sequence_length": 24})
    with pytest.raises(UnsupportedError, match=r"its code fails with transformers .*no such numb"):
        trace_case(case)
