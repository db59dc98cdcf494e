"""Optimizers as Trainer sets them up: its groups, its choices, and what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Trainer
from transformers.training_args import OptimizerNames

from estimator.case import OPTIMIZERS, Case
from profiler import optimizers


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(100, 64)
        self.norm = torch.nn.LayerNorm(64)
        self.q_norm = torch.nn.RMSNorm(64)
        self.linear = torch.nn.Linear(64, 96)
        self.frozen = torch.nn.Linear(8, 8)
        self.frozen.requires_grad_(False)

    def give_gradients(self) -> None:
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.ones_like(parameter)


def case(optimizer: str, **fields: Any) -> Case:
    return Case.from_dict({"model": "gpt2", "task": "training", "optimizer": optimizer, **fields})


def names(group: dict[str, Any], model: Any) -> set[str]:
    ids = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ids}


def states(optimizer: Any) -> dict[str, int]:
    """Elements by name of state, of states that are as large as a parameter."""
    sizes: dict[str, int] = {}
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                sizes[name] = sizes.get(name, 0) + value.numel()
    return sizes


def test_two_groups_with_and_without_decay() -> None:
    model = Small()
    decay, rest = optimizers.parameter_groups(model)
    assert names(decay, model) == {"embed.weight", "linear.weight"}
    assert names(rest, model) == {"norm.weight", "norm.bias", "q_norm.weight", "linear.bias"}


def test_the_groups_are_those_of_the_installed_trainer() -> None:
    model = Small()
    theirs = Trainer.get_decay_parameter_names(None, model)
    decay, _ = optimizers.parameter_groups(model)
    assert names(decay, model) == {name for name in theirs if not name.startswith("frozen")}


def test_an_empty_group_is_left_out() -> None:
    model = torch.nn.Linear(8, 8, bias=False)
    (group,) = optimizers.parameter_groups(model)
    assert len(group["params"]) == 1


def test_every_name_is_one_that_trainer_knows() -> None:
    assert set(OPTIMIZERS) <= {name.value for name in OptimizerNames}


@pytest.mark.parametrize(
    ("name", "fused", "foreach"), [("adamw_torch_fused", True, None), ("adamw_torch", None, True)]
)
def test_adamw_is_fused_or_foreach_as_named(
    name: str, fused: bool | None, foreach: bool | None
) -> None:
    built = optimizers.build(case(name), Small())
    assert type(built) is torch.optim.AdamW
    assert built.defaults["fused"] is fused
    assert built.defaults["foreach"] is foreach


@pytest.mark.parametrize(
    ("name", "fields", "kept"),
    [
        ("adamw_torch_fused", {}, {"exp_avg", "exp_avg_sq"}),
        ("adamw_torch", {}, {"exp_avg", "exp_avg_sq"}),
        ("sgd", {}, set()),
        ("sgd", {"momentum": 0.9}, {"momentum_buffer"}),
        ("adagrad", {}, {"sum"}),
        ("rmsprop", {}, {"square_avg"}),
    ],
)
def test_what_each_keeps_a_parameter(name: str, fields: dict[str, Any], kept: set[str]) -> None:
    model = Small()
    built = optimizers.build(case(name, **fields), model)
    model.give_gradients()
    built.step()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert states(built) == dict.fromkeys(kept, trainable)


def test_adafactor_keeps_rows_and_columns() -> None:
    model = Small()
    built = optimizers.build(case("adafactor"), model)
    model.give_gradients()
    built.step()
    state = built.state[model.linear.weight]
    assert state["exp_avg_sq_row"].shape == (96,)
    assert state["exp_avg_sq_col"].shape == (64,)


def test_frozen_parameters_are_left_out() -> None:
    model = Small()
    built = optimizers.build(case("sgd"), model)
    held = {id(p) for group in built.param_groups for p in group["params"]}
    assert id(model.frozen.weight) not in held
