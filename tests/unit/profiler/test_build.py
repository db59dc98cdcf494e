"""Models are built as a user would have them: types, adapters, checkpointing, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from estimator.case import Case
from estimator.errors import ModelError, UnsupportedError
from profiler import build

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}


def model_of(device: str = "meta", config: dict[str, Any] | None = None, **fields: Any) -> Any:
    case = Case.from_dict({"model": {**CONFIG, **(config or {})}, **fields})
    return build.build_model(case, device)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_weights_are_of_the_cases_type_on_its_device(dtype: str) -> None:
    model = model_of(dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_inference_needs_no_gradients_and_a_cache() -> None:
    model = model_of()
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.config.use_cache


def test_training_switches_the_cache_off_and_everything_on() -> None:
    model = model_of(task="training")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not model.config.use_cache
    assert not model.is_gradient_checkpointing


def test_checkpointing_is_not_reentrant() -> None:
    model = model_of(task="training", gradient_checkpointing=True)
    assert model.is_gradient_checkpointing
    layer = model.model.layers[0]
    assert layer._gradient_checkpointing_func.keywords["use_reentrant"] is False


@pytest.mark.parametrize(("name", "expected"), [("sdpa", "sdpa"), ("eager", "eager")])
def test_attention_is_as_named(name: str, expected: str) -> None:
    assert model_of(attention=name).config._attn_implementation == expected


def test_flash_attention_is_played_on_meta_without_its_package() -> None:
    name = model_of(attention="flash_attention_2").config._attn_implementation
    assert name == "gpumem_fused"


def test_tied_weights_are_one_parameter() -> None:
    tied = model_of(config={"tie_word_embeddings": True})
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    free = model_of()
    assert free.lm_head.weight is not free.model.embed_tokens.weight


def test_adapters_are_fp32_and_alone_in_training() -> None:
    model = model_of(task="training", method="lora", lora={"r": 8, "target_modules": ["q_proj"]})
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trainable) == 2 * 2
    assert all("q_proj.lora_" in name for name in trainable)
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert sum(p.numel() for p in trainable.values()) == 2 * 8 * (64 + 64)


def test_all_linear_leaves_out_the_head() -> None:
    model = model_of(task="training", method="lora")
    adapted = {name for name, _ in model.named_modules() if name.endswith("lora_A")}
    assert len(adapted) == 2 * 7
    assert not any("lm_head" in name for name in adapted)


def test_targets_that_are_not_there_are_refused_in_one_sentence() -> None:
    with pytest.raises(ModelError, match="peft refuses the adapters of llama") as caught:
        model_of(task="training", method="lora", lora={"target_modules": ["no_such_module"]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ({"model_type": "no-such-type"}, UnsupportedError),
        ({"num_key_value_heads": 3}, ModelError),
        ({"hidden_size": -1}, ModelError),
        ({"hidden_act": "no_such_activation"}, ModelError),
        ({"rope_scaling": "far"}, ModelError),
        ({"torch_dtype": "float64"}, None),
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, None),
    ],
    ids=str,
)
def test_a_configuration_is_built_or_refused_in_one_sentence(
    config: dict[str, Any], error: type[Exception] | None
) -> None:
    if error is None:
        assert model_of(config=config).dtype == torch.bfloat16
        return
    with pytest.raises(error) as caught:
        model_of(config=config)
    assert "\n" not in str(caught.value)


def test_random_weights_on_a_real_device() -> None:
    torch.manual_seed(0)
    model = model_of("cpu", {"tie_word_embeddings": True}, dtype="float32")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    weight = model.model.layers[0].self_attn.q_proj.weight
    assert weight.device.type == "cpu"
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert not any(p.device.type == "meta" for p in model.parameters())
    assert not any(b.device.type == "meta" for b in model.buffers())
    ids = torch.zeros(1, 3, dtype=torch.int64)
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_a_checkpoint_is_a_folder_with_safetensors(tmp_path: Path) -> None:
    model_of("cpu", dtype="float32").save_pretrained(tmp_path)
    case = Case.from_dict({"model": str(tmp_path), "dtype": "float32"})
    assert build.checkpoint_folder(case) == tmp_path
    loaded = build.build_model(case, "cpu")
    assert loaded.num_parameters() == model_of().num_parameters()
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert build.checkpoint_folder(case) is None
    assert build.checkpoint_folder(Case.from_dict({"model": "gpt2"})) is None


def test_the_optimizer_is_over_what_trains() -> None:
    case = Case.from_dict({"model": CONFIG, "task": "training", "method": "lora", "lora": {"r": 2}})
    model = build.build_model(case, "meta")
    optimizer = build.build_optimizer(case, model)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(held) == sum(1 for p in model.parameters() if p.requires_grad)
