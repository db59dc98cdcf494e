"""Cases: defaults, every error sentence, and that nothing else can come out."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.case import OPTIMIZERS, Case, Lora
from estimator.errors import CaseError


def make(**fields: Any) -> Case:
    return Case.from_dict({"model": "gpt2", **fields})


def test_defaults() -> None:
    data = make().to_dict()
    assert data["task"] == "inference"
    assert data["dtype"] == "bfloat16"
    assert (data["batch_size"], data["sequence_length"], data["max_new_tokens"]) == (1, 1024, 128)
    assert data["optimizer"] == "adamw_torch_fused"
    assert data["method"] == "full"
    assert data["lora"] is None
    assert data["prepare_kbit"] is True
    assert data["attention"] == "sdpa"
    assert data["cache"] == "dynamic"


def test_training_has_no_new_tokens() -> None:
    assert make(task="training").max_new_tokens is None


def test_lora_defaults() -> None:
    assert make(task="training", method="lora").lora == Lora(16, 16, 0.0, "all-linear", False)


def test_repeated_target_modules_count_once() -> None:
    lora = make(method="lora", lora={"target_modules": ["q_proj", "v_proj", "q_proj"]}).lora
    assert lora is not None
    assert lora.target_modules == ("q_proj", "v_proj")


def test_card_gets_its_catalogue_name() -> None:
    assert make(gpu="nvidia a100 80gb").gpu == "A100-80GB"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"batchsize": 1}, "unknown case field 'batchsize'; did you mean batch_size"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number from 1"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 1.5}, "batch_size is 1.5"),
        ({"batch_size": "1"}, "batch_size is '1'"),
        ({"batch_size": True}, "batch_size is True"),
        ({"batch_size": 2**31}, "batch_size is 2147483648"),
        ({"batch_size": None}, "batch_size is None"),
        ({"sequence_length": []}, "sequence_length is []"),
        ({"dtype": "bf16"}, "dtype is 'bf16', but must be bfloat16, float16 or float32"),
        ({"dtype": None}, "dtype is None"),
        ({"quantization": "int4"}, "must be null, int8, nf4 or fp4"),
        ({"task": "train"}, "inference or training; did you mean training?"),
        ({"optimizer": "adamw"}, "did you mean"),
        ({"method": "qlora"}, "must be full or lora"),
        ({"double_quantization": True}, "needs quantization nf4 or fp4"),
        ({"quantization": "nf4", "task": "training"}, "use method lora"),
        ({"lora": {"r": 8}}, "needs method lora"),
        ({"method": "lora", "lora": 3}, "must be an object or null"),
        ({"method": "lora", "lora": {"rank": 8}}, "unknown case field 'lora.rank'"),
        ({"method": "lora", "lora": {"r": 0}}, "lora.r is 0"),
        ({"method": "lora", "lora": {"lora_dropout": 1}}, "from 0 to below 1"),
        ({"method": "lora", "lora": {"target_modules": []}}, "lora.target_modules is []"),
        ({"method": "lora", "lora": {"target_modules": "q_proj"}}, "list of module names"),
        ({"method": "lora", "lora": {"use_dora": 1}}, "must be true or false"),
        ({"momentum": 0.9, "optimizer": "sgd"}, "is for training only"),
        ({"momentum": 0.9, "task": "training", "optimizer": "adafactor"}, "needs optimizer sgd"),
        ({"momentum": float("nan"), "task": "training", "optimizer": "sgd"}, "momentum is nan"),
        ({"gradient_checkpointing": True}, "is for training only"),
        (
            {"task": "training", "recompute_granularity": "selective"},
            "needs gradient_checkpointing",
        ),
        ({"task": "training", "recompute_granularity": "uniform"}, "must be full or selective"),
        (
            {
                "task": "training",
                "gradient_checkpointing": True,
                "recompute_granularity": "selective",
                "stack": "transformers-4.48",
            },
            "is not for older stacks",
        ),
        ({"gradient_accumulation_steps": 2}, "is for training only"),
        ({"keep_logits": True}, "is for training only"),
        ({"loss": "liger"}, "is for training only"),
        ({"loss": "fused", "task": "training"}, "must be standard, chunked or liger"),
        ({"loss": "liger", "task": "training", "keep_logits": True}, "others make no logits"),
        ({"loss": "chunked", "task": "training", "stack": "transformers-4.48"}, "it is older"),
        (
            {
                "loss": "liger",
                "task": "training",
                "method": "lora",
                "lora": {"target_modules": ["q_proj", "lm_head"]},
            },
            "reads the weight of lm_head without its adapter",
        ),
        ({"task": "training", "max_new_tokens": 5}, "is for inference only"),
        ({"task": "training", "cache": "static"}, "is for inference only"),
        ({"gpu": "H10"}, "did you mean H100"),
        ({"gpu": 7}, "must be a name or null"),
        ({"stack": "old"}, "stack is 'old'"),
        ({"task": "training", "parallelism": {"dp": 2}}, "only parallelism.sp_size is supported"),
        ({"task": "training", "parallelism": 2}, "must be null (one GPU) or"),
        ({"task": "training", "parallelism": {}}, "must be null (one GPU) or"),
        ({"task": "training", "parallelism": {"sp_size": 0}}, "parallelism.sp_size is 0"),
        ({"task": "training", "parallelism": {"sp_size": 3}}, "must divide sequence_length"),
        ({"parallelism": {"sp_size": 2}}, "is for training only"),
        (
            {"task": "training", "parallelism": {"sp_size": 2}, "attention": "eager"},
            "needs attention sdpa or flash_attention_2",
        ),
        (
            {"task": "training", "parallelism": {"sp_size": 2}, "stack": "transformers-4.48"},
            "is not for older stacks",
        ),
        ({"model": ""}, "model is ''"),
        ({"model": 3}, "model is 3"),
        ({"model": {}}, "model is {}"),
        ({"model": None}, "model is None"),
    ],
)
def test_wrong_fields(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(CaseError) as raised:
        make(**fields)
    message = str(raised.value)
    assert says in message
    assert "\n" not in message
    assert raised.value.exit_code == 2
    assert raised.value.field is not None


@pytest.mark.parametrize("data", [None, [], "gpt2", 3])
def test_what_is_no_object(data: Any) -> None:
    with pytest.raises(CaseError, match="must be a JSON object"):
        Case.from_dict(data)


def test_no_model() -> None:
    with pytest.raises(CaseError, match="names no model"):
        Case.from_dict({})


def test_label_tells_cases_apart() -> None:
    label = make(
        task="training", method="lora", quantization="nf4", gradient_checkpointing=True
    ).label
    assert label == "gpt2 qlora nf4 adamw_torch_fused ckpt 1x1024"
    selective = make(
        task="training", gradient_checkpointing=True, recompute_granularity="selective"
    ).label
    assert selective == "gpt2 full bf16 adamw_torch_fused ckpt-selective 1x1024"


def test_one_gpu_that_shares_a_sequence_is_one_gpu() -> None:
    alone = make(task="training", parallelism={"sp_size": 1})
    assert alone == make(task="training")
    assert alone.sp_size == 1
    shared = make(task="training", parallelism={"sp_size": 4})
    assert shared.local_length == 256
    assert shared.label == "gpt2 full bf16 adamw_torch_fused sp4 1x1024"
    assert shared.to_dict()["parallelism"] == {"sp_size": 4}
    assert Case.from_dict(shared.to_dict()) == shared


CASES = st.fixed_dictionaries(
    {"model": st.just("gpt2"), "task": st.just("training")},
    optional={
        "dtype": st.sampled_from(["bfloat16", "float16", "float32"]),
        "batch_size": st.integers(1, 2**31 - 1),
        "sequence_length": st.integers(1, 2**31 - 1),
        "method": st.sampled_from(["full", "lora"]),
        "optimizer": st.sampled_from(OPTIMIZERS),
        "gradient_checkpointing": st.booleans(),
        "attention": st.sampled_from(["sdpa", "eager"]),
        "mixed_precision": st.sampled_from([None, "bf16", "fp16"]),
    },
)


@given(CASES)
def test_complete_case_reads_back_to_itself(data: dict[str, Any]) -> None:
    case = Case.from_dict(data)
    again = Case.from_dict(json.loads(json.dumps(case.to_dict())))
    assert again == case
    assert again.case_id == case.case_id


def test_ids_leave_out_what_is_default() -> None:
    """Records are found by them: a field that a later version adds must not change them."""
    plain = Case.from_dict({"model": "gpt2"})
    spelled = Case.from_dict(plain.to_dict())
    adapted = Case.from_dict({"model": "gpt2", "task": "training", "method": "lora"})
    ranked = Case.from_dict(adapted.to_dict() | {"lora": {"r": 8}})
    assert plain.case_id == spelled.case_id == hashlib.sha256(b'{"model":"gpt2"}').hexdigest()[:12]
    assert len({plain.case_id, adapted.case_id, ranked.case_id}) == 3


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
FIELD_NAMES = st.sampled_from(list(make().to_dict())) | st.text(max_size=10)


@settings(max_examples=300)
@given(st.dictionaries(FIELD_NAMES, ANYTHING, max_size=5) | ANYTHING)
def test_anything_gives_a_case_or_one_sentence(data: Any) -> None:
    try:
        case = Case.from_dict(data)
    except CaseError as error:
        sentence = str(error)
    else:
        sentence = f"a case: {case.label}"
        assert Case.from_dict(case.to_dict()) == case
    assert sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("field", "value", "hint"),
    [
        ("quantization", "4bit", "did you mean nf4?"),
        ("quantization", "8-bit", "did you mean int8?"),
        ("dtype", "bf16", "did you mean bfloat16?"),
        ("method", "qlora", "did you mean lora with quantization nf4?"),
        ("attention", "flash", "did you mean flash_attention_2?"),
        ("optimizer", "adamw", "did you mean adamw_torch_fused?"),
    ],
)
def test_what_people_call_a_value_names_ours(field: str, value: str, hint: str) -> None:
    with pytest.raises(CaseError) as error:
        Case.from_dict({"model": "gpt2", field: value})
    assert str(error.value).endswith(hint)
