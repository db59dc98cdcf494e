"""What is held out of calibrations, by model and by settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.holdout import is_held_out
from benchmarks.suite import builtin_suites, load_suite
from estimator.case import Case
from estimator.config_source import load_config


def case(**fields: Any) -> Case:
    return Case.from_dict({"model": "Qwen/Qwen2.5-0.5B", **fields})


def test_the_holdout_suite_is_held_out_and_no_other_suite_is() -> None:
    for name in builtin_suites():
        for entry in load_suite(name).cases:
            assert is_held_out(entry.case) == (name == "holdout"), entry.id


def test_a_held_out_model_is_held_out_in_any_settings_under_any_name(tmp_path: Path) -> None:
    config = load_config("allenai/OLMo-2-0425-1B").config
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "_name_or_path": "mine"}), encoding="utf-8")
    for model in ("allenai/OLMo-2-0425-1B", "OLMo-2-0425-1B", config, str(path)):
        assert is_held_out(case(model=model, batch_size=7)), model
    assert not is_held_out(case(model={**config, "num_hidden_layers": 3}))


SETTINGS = {"attention": "eager", "batch_size": 3, "sequence_length": 1792, "max_new_tokens": 48}


@pytest.mark.parametrize("model", ["mistralai/Mistral-7B-v0.1", "google/gemma-2b"])
def test_held_out_settings_are_held_out_on_every_model(model: str) -> None:
    assert is_held_out(case(model=model, **SETTINGS))
    assert is_held_out(case(model=model, gpu="L4", **SETTINGS))
    assert not is_held_out(case(model=model, **{**SETTINGS, "batch_size": 4}))
