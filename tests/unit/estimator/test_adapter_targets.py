from __future__ import annotations

from typing import Any

import pytest

from estimator import estimate
from estimator.case import Case
from estimator.errors import CaseError, UnsupportedError
from estimator.report import MemoryReport

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
}
MIXTRAL = {**LLAMA, "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}


def answer(model: dict[str, Any], *targets: str) -> MemoryReport:
    lora = {"target_modules": list(targets)}
    return estimate(
        Case.from_dict({"model": model, "task": "training", "method": "lora", "lora": lora})
    )


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens", "self_attn.q_proj", "norm", "q_prj"])
def test_a_target_without_a_formula_is_refused_and_not_passed_over(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"no adapter on '{name}'.*q_proj.*gpumem trace"):
        answer(LLAMA, "q_proj", name)


def test_a_linear_of_other_families_is_passed_over_as_peft_does() -> None:
    report = answer(LLAMA, "q_proj", "c_attn")
    assert report.parameters.trainable == answer(LLAMA, "q_proj").parameters.trainable > 0
    assert any("has no c_attn" in line for line in report.assumptions)


def test_targets_that_match_nothing_are_refused_as_peft_does() -> None:
    with pytest.raises(CaseError, match="no such linears: name some of down_proj") as caught:
        answer(LLAMA, "c_attn")
    assert caught.value.field == "lora.target_modules"


@pytest.mark.parametrize("half", ["w1", "w3"])
def test_half_of_fused_experts_is_refused_as_peft_does(half: str) -> None:
    with pytest.raises(CaseError, match="fuse w1 and w3"):
        answer(MIXTRAL, "q_proj", half)
    assert answer(MIXTRAL, "q_proj", "w1", "w3").parameters.trainable > 0
