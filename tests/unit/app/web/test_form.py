"""The form's state: cleaned, read as a model and as a case."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.web.fields import DEFAULTS, FIELDS, is_shown
from app.web.form import clean_state, read_case, read_model, state_of, trainable_share
from estimator.case import Case
from estimator.errors import CaseError, GpumemError, ModelError

LLAMA = "meta-llama/Llama-3.1-8B"


def case_of(**fields: Any) -> Case:
    state = clean_state(fields)
    return read_case(state, read_model(state))


def test_the_default_form_is_a_default_case_on_a_card() -> None:
    assert case_of() == Case.from_dict({"model": LLAMA, "gpu": "H100"})


def test_every_field_of_a_case_that_the_form_has_reaches_it() -> None:
    case = case_of(
        task="training",
        method="lora",
        dtype="float16",
        quantization="nf4",
        double_quantization=True,
        prepare_kbit=False,
        batch_size=3,
        sequence_length=77,
        lora_r=8,
        lora_alpha=32,
        lora_dropout=0.1,
        lora_target_modules="q_proj, v_proj",
        use_dora=True,
        mixed_precision="bf16",
        optimizer="sgd",
        momentum=0.9,
        gradient_checkpointing=True,
        gradient_accumulation_steps=4,
        attention="eager",
        keep_logits=True,
        stack="transformers-4.48",
        gpu="none",
    )
    assert case == Case.from_dict(
        {
            "model": LLAMA,
            "task": "training",
            "method": "lora",
            "dtype": "float16",
            "quantization": "nf4",
            "double_quantization": True,
            "prepare_kbit": False,
            "batch_size": 3,
            "sequence_length": 77,
            "lora": {
                "r": 8,
                "lora_alpha": 32,
                "lora_dropout": 0.1,
                "target_modules": ["q_proj", "v_proj"],
                "use_dora": True,
            },
            "mixed_precision": "bf16",
            "optimizer": "sgd",
            "momentum": 0.9,
            "gradient_checkpointing": True,
            "gradient_accumulation_steps": 4,
            "attention": "eager",
            "keep_logits": True,
            "stack": "transformers-4.48",
        }
    )


def test_fields_that_are_not_shown_say_nothing() -> None:
    training_only = {"gradient_checkpointing": True, "momentum": 0.5, "keep_logits": True}
    assert case_of(**training_only, lora_r="nonsense", double_quantization=True) == case_of()
    assert case_of(task="training", max_new_tokens="x", cache="static").max_new_tokens is None


@pytest.mark.parametrize("source", ["catalogue", "config.json", "numbers"])
def test_one_source_of_a_model_is_shown(source: str) -> None:
    shown = {field.name for field in FIELDS if is_shown(field, {**DEFAULTS, "source": source})}
    assert ("model" in shown) == (source == "catalogue")
    assert ("config" in shown) == (source == "config.json")
    assert ("vocab_size" in shown) == (source == "numbers")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number from 1 to 2147483647"),
        ({"batch_size": None}, "batch_size is None, but must be a whole number"),
        ({"batch_size": 1.5}, "batch_size is 1.5, but must be a whole number"),
        ({"sequence_length": "many"}, "sequence_length is 'many', but must be a whole number"),
        ({"task": "sleep"}, "task is 'sleep', but must be inference or training"),
        ({"gpu": "H10"}, "gpu is 'H10', which is not in the catalogue"),
        ({"source": "hub"}, "source is 'hub', but must be catalogue, config.json or numbers"),
        ({"model": "Llama-3.1-8"}, "did you mean meta-llama/Llama-3.1-8B"),
        ({"model": ""}, "choose a model"),
        ({"source": "config.json"}, "config.json is empty"),
        ({"source": "config.json", "config": "{"}, "config.json is not JSON"),
        ({"source": "config.json", "config": "[1]"}, "must be a JSON object"),
        ({"source": "config.json", "config": " " * 2**20 + "{}"}, "larger than 1 MiB"),
        ({"source": "numbers", "hidden_size": -1}, "hidden_size is -1, but must be a whole"),
    ],
)
def test_nonsense_is_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GpumemError) as caught:
        case_of(**fields)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["/etc/passwd", "./config.json", "~/x.json", "..", "a/b.json"])
def test_no_path_is_read(name: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="is not in the catalogue"):
        read_model(clean_state({"model": name}))


def test_a_pasted_configuration_is_the_model() -> None:
    config = {"model_type": "llama", "hidden_size": 64, "id2label": {"0": "long"}}
    model = read_model(clean_state({"source": "config.json", "config": json.dumps(config)}))
    assert model.model == {"model_type": "llama", "hidden_size": 64}
    assert model.numbers is None


def test_what_browsers_send_is_cleaned() -> None:
    state = clean_state(
        {"batch_size": 4.0, "sequence_length": "2048", "parameters_billions": "0.5", "unknown": 1}
    )
    assert state["batch_size"] == 4
    assert type(state["batch_size"]) is int
    assert state["sequence_length"] == 2048
    assert state["parameters_billions"] == 0.5
    assert set(state) == set(DEFAULTS)
    assert clean_state({"model": "a\ud800b"})["model"] == "a?b"
    assert clean_state({"model": ["x"]})["model"] == "['x']"
    assert state_of(list(DEFAULTS.values())) == DEFAULTS


def test_trainable_share() -> None:
    assert trainable_share(clean_state({"trainable_percent": 12.5})) == 0.125
    with pytest.raises(CaseError, match="trainable_percent is 101"):
        trainable_share(clean_state({"trainable_percent": 101}))
