"""The library's entry: what it answers with, what it refuses, and what it does not import."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import estimator
from estimator import Case, MemoryReport, estimate
from estimator.errors import CaseError, UnsupportedError


def report(**fields: Any) -> MemoryReport:
    return estimate(Case.from_dict({"model": "Llama-3.2-1B", **fields}))


def test_the_example_of_the_docstring() -> None:
    assert doctest.testmod(estimator).failed == 0


def test_an_answer_names_its_source_its_case_and_its_assumptions() -> None:
    answer = report(task="training")
    assert answer.source == "architecture"
    assert answer.case == Case.from_dict({"model": "Llama-3.2-1B", "task": "training"}).to_dict()
    assert answer.parameters.total == answer.parameters.trainable == 1_235_814_400
    assert answer.peak.reserved_bytes is not None
    assert answer.peak.device_bytes is None, "without a calibration there is only an interval"
    assert any("cuBLAS workspaces" in line for line in answer.assumptions)
    assert any("8519680" in line for line in answer.assumptions)


def test_inference_trains_nothing() -> None:
    assert report().parameters.trainable == 0


def test_an_answer_is_json_and_comes_back() -> None:
    answer = report(task="training", method="lora", gradient_checkpointing=True)
    text = json.dumps(answer.to_dict(), allow_nan=False)
    assert MemoryReport.from_dict(json.loads(text)) == answer


def test_the_same_case_gives_the_same_answer() -> None:
    assert report(batch_size=3) == report(batch_size=3)


def test_the_article_is_another_source() -> None:
    case = Case.from_dict({"model": "gpt2"})
    assert estimate(case, formulas="article").source == "article"


def test_a_case_may_be_a_mapping() -> None:
    fields = {"model": "gpt2", "task": "training"}
    assert estimate(fields) == estimate(Case.from_dict(fields))
    with pytest.raises(CaseError, match="unknown case field 'bath_size'"):
        estimate({"model": "gpt2", "bath_size": 2})


def test_unknown_formulas_are_refused() -> None:
    with pytest.raises(CaseError, match="formulas is 'magic', but must be architecture or article"):
        estimate(Case.from_dict({"model": "gpt2"}), formulas="magic")


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [({"model_type": "brand-new"}, "brand-new"), ({"hidden_act": "wavy"}, "activation 'wavy'")],
)
def test_what_has_no_formula_names_the_way_out(change: dict[str, Any], named: str) -> None:
    case = Case.from_dict({"model": {**LLAMA, **change}})
    with pytest.raises(UnsupportedError, match=named) as caught:
        estimate(case)
    assert "gpumem trace" in str(caught.value)
    assert "--formulas article" in str(caught.value)


def test_estimating_imports_nothing_heavy() -> None:
    """Not torch, not transformers, nothing beyond the standard library."""
    code = (
        "import sys\n"
        "from estimator import Case, estimate\n"
        "estimate(Case.from_dict({'model': 'gpt2', 'task': 'training'}))\n"
        "estimate(Case.from_dict({'model': 'gpt2'}), formulas='article')\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots - set(sys.stdlib_module_names) - {'estimator', '__main__'}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(estimator.__file__).parents[1])},
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "[]"
