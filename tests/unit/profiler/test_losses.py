"""Which code a loss comes from: the libraries' own on a device, their mirror on meta tensors."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from estimator.case import Case
from estimator.errors import EnvironmentUnavailable, UnsupportedError
from profiler import build, losses, trainer_loop

torch = pytest.importorskip("torch")

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def training(loss: str, model: Any = LLAMA, **fields: Any) -> Case:
    return Case.from_dict({"model": model, "task": "training", "loss": loss, **fields})


@pytest.fixture
def without_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "trl.trainer.utils", None)


@pytest.mark.usefixtures("without_libraries")
@pytest.mark.parametrize(
    ("loss", "says"),
    [("liger", "pip install liger-kernel"), ("chunked", r"pip install 'trl>=1\.16'")],
)
def test_a_device_needs_the_library(loss: str, says: str) -> None:
    with pytest.raises(EnvironmentUnavailable, match=says):
        build.build_model(training(loss), "cpu")


def test_liger_is_applied_by_transformers_with_the_loss_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from transformers.integrations import liger

    applied: list[Any] = []
    monkeypatch.setattr(losses, "find_spec", lambda name: object())
    monkeypatch.setattr(liger, "apply_liger_kernel", lambda *given: applied.append(given))
    model = build.build_model(training("liger", method="lora"), "cpu")
    ((patched, config),) = applied
    assert patched is model.get_base_model()
    assert [name for name, on in config.items() if on] == ["fused_linear_cross_entropy"]


def test_trl_adds_its_head_with_what_its_trainer_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    added: list[Any] = []
    library = ModuleType("trl.trainer.utils")
    library.add_fused_lm_head = lambda *given, **named: added.append((given, named))  # type: ignore[attr-defined]
    for name in ("trl", "trl.trainer"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "trl.trainer.utils", library)
    model = build.build_model(training("chunked", method="lora"), "cpu")
    assert added == [((model.get_base_model(),), {"outputs": ("log_probs", "entropy", "is_top1")})]


@pytest.mark.parametrize(
    ("loss", "model", "says"),
    [
        ("liger", "openai-community/gpt2", "Liger has no fused loss for gpt2"),
        ("chunked", {"model_type": "bert", "is_decoder": True}, "leaves out"),
    ],
)
def test_models_without_the_loss_are_refused(loss: str, model: Any, says: str) -> None:
    case = training(loss, model)
    with pytest.raises(UnsupportedError, match=says):
        build.build_model(case, "meta")


def test_trainer_itself_has_no_chunked_loss() -> None:
    with pytest.raises(UnsupportedError, match="for the own loop"):
        trainer_loop.training_steps(None, {}, training("chunked"), None, None)  # type: ignore[arg-type]


def test_the_loss_of_the_fused_head_is_differentiated() -> None:
    log_probs = torch.full((2, 3), -0.5, requires_grad=True)

    class Outputs:
        label_mask = torch.ones(2, 3, dtype=torch.bool)
        entropy = torch.ones(2, 3)
        is_top1 = torch.ones(2, 3, dtype=torch.bool)

    Outputs.log_probs = log_probs  # type: ignore[attr-defined]
    batch = {"attention_mask": torch.ones(2, 4)}
    loss = losses.loss_of(training("chunked"), Outputs, batch, torch.tensor(12))
    loss.backward()
    assert loss.item() == pytest.approx(6 * 0.5 / 12)
    assert log_probs.grad.unique().tolist() == [pytest.approx(-1 / 12)]
