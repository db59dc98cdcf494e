"""The training loop on small real models: Trainer's step, phase by phase."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from estimator.case import Case
from profiler import build, loops

CONFIG = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
}


class Diary:
    """Writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def phase(self, name: str) -> None:
        self.heard.append(name)

    def step(self, index: int) -> None:
        self.heard.append(f"step {index}")


def case(**fields: Any) -> Case:
    return Case.from_dict(
        {
            "model": CONFIG,
            "dtype": "float32",
            "attention": "eager",
            "batch_size": 2,
            "sequence_length": 7,
            **fields,
        }
    )


def model_of(case: Case) -> Any:
    torch.manual_seed(0)
    return build.build_model(case, "cpu", weights="random")


def train(steps: int = 2, **fields: Any) -> tuple[Diary, Any]:
    this = case(task="training", optimizer="sgd", **fields)
    model = model_of(this)
    diary = Diary()
    batch = loops.make_batch(this, CONFIG["vocab_size"], "cpu")
    loops.training_steps(model, build.build_optimizer(this, model), batch, this, diary, steps)
    return diary, model


def test_a_batch_is_full_and_unpadded() -> None:
    batch = loops.make_batch(case(task="training"), 61, "meta")
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(tensor.shape == (2, 7) for tensor in batch.values())
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    assert "labels" not in loops.make_batch(case(), 61, "meta")


def test_phases_of_training() -> None:
    diary, _ = train()
    step = ["forward", "backward", "optimizer_step"]
    assert diary.heard == ["step 0", *step, "step 1", *step]


def test_phases_of_accumulation() -> None:
    diary, _ = train(steps=1, gradient_accumulation_steps=3)
    assert diary.heard == ["step 0", *["forward", "backward"] * 3, "optimizer_step"]


def test_gradients_are_gone_after_a_step_and_parameters_moved() -> None:
    this = case(task="training", optimizer="sgd")
    before = model_of(this).lm_head.weight.detach().clone()
    _, model = train(steps=1)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not torch.equal(before, model.lm_head.weight)


@pytest.mark.parametrize("keep", [False, True])
def test_logits_live_through_backward_only_where_they_are_kept(keep: bool) -> None:
    this = case(task="training", optimizer="sgd", keep_logits=keep)
    model = model_of(this)
    logits: list[weakref.ref[Any]] = []
    model.register_forward_hook(lambda *args: logits.append(weakref.ref(args[2]["logits"])))
    alive: dict[str, bool] = {}

    class Watcher(Diary):
        def phase(self, name: str) -> None:
            alive[name] = bool(logits) and logits[-1]() is not None

    batch = loops.make_batch(this, 61, "cpu")
    optimizer = build.build_optimizer(this, model)
    loops.training_steps(model, optimizer, batch, this, Watcher(), steps=1)
    assert alive == {"forward": False, "backward": keep, "optimizer_step": False}


def test_the_number_of_labels_is_passed_as_trainer_passes_it() -> None:
    this = case(task="training", optimizer="sgd", gradient_accumulation_steps=2)
    model = model_of(this)
    seen: list[Any] = []
    model.register_forward_pre_hook(
        lambda *args: seen.append(args[2].get("num_items_in_batch")), with_kwargs=True
    )
    batch = loops.make_batch(this, 61, "cpu")
    loops.training_steps(model, build.build_optimizer(this, model), batch, this, Diary(), steps=1)
    assert [int(items) for items in seen] == [2 * 2 * 7] * 2
