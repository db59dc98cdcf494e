"""Where configurations come from, and every way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator.config_source import ModelConfig, load_config
from estimator.errors import ModelError
from estimator.strict_json import MAX_JSON_BYTES

LLAMA = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2}


def write(path: Path, content: Any) -> Path:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(data)
    return path


def test_catalogue_name() -> None:
    config = load_config("gpt2")
    assert config.name == "openai-community/gpt2"
    assert config.origin == "catalogue"
    assert config.parameters == 124_439_808
    assert config.model_type == "gpt2"
    assert config.config["n_embd"] == 768


def test_a_tuned_model_has_the_shapes_of_its_base_and_says_so() -> None:
    found, base = load_config("Llama-3.1-8B-Instruct"), load_config("Llama-3.1-8B")
    assert (found.config, found.parameters) == (base.config, base.parameters)
    assert found.notes == (
        "Llama-3.1-8B-Instruct is taken to have meta-llama/Llama-3.1-8B's shapes",
    )


def test_the_catalogue_cannot_be_changed_through_a_config() -> None:
    load_config("gpt2").config["n_embd"] = 1
    assert load_config("gpt2").config["n_embd"] == 768


def test_file(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.json", LLAMA)
    config = load_config(str(path))
    assert config == ModelConfig("tiny", LLAMA, "file")


def test_file_named_config_is_called_after_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    write(folder / "config.json", LLAMA)
    assert load_config(str(folder / "config.json")).name == "my-model"
    config = load_config(str(folder))
    assert (config.name, config.origin) == ("my-model", "folder")


def test_byte_order_mark_is_no_obstacle(tmp_path: Path) -> None:
    path = write(tmp_path / "bom.json", b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert load_config(str(path)).config == LLAMA


def test_object_is_copied() -> None:
    given_config = {**LLAMA, "_name_or_path": "org/mine"}
    config = load_config(given_config)
    config.config["hidden_size"] = 1
    assert given_config["hidden_size"] == 64
    assert (config.name, config.origin, config.parameters) == ("org/mine", "object", None)


def test_local_folder_comes_before_the_catalogue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert load_config("gpt2").origin == "catalogue", "a folder without config.json is no model"
    write(tmp_path / "gpt2" / "config.json", LLAMA)
    assert load_config("gpt2").origin == "folder"


def test_text_config_of_a_multimodal_model() -> None:
    config = load_config(
        {
            "model_type": "llava",
            "tie_word_embeddings": True,
            "vision_config": {"hidden_size": 3},
            "text_config": LLAMA,
        }
    )
    assert config.config == {**LLAMA, "tie_word_embeddings": True}
    assert any("llava" in note and "text_config" in note for note in config.notes)


def test_own_quantization_is_noted() -> None:
    config = load_config({**LLAMA, "quantization_config": {"quant_method": "fp8"}})
    assert any("quantization_config" in note for note in config.notes)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"{", "is not JSON: Expecting property name"),
        (b'{"model_type": "llama",\n "hidden_size": }', "line 2 column 17"),
        (b"hello", "is not JSON"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (b"[1, 2]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"{}", "has no model_type"),
        (b'{"hidden_size": 64}', "has no model_type"),
        (b'{"model_type": 3}', "must be a name"),
        (b'{"model_type": ""}', "must be a name"),
        (b'{"text_config": {"hidden_size": 3}}', "(its text_config) has no model_type"),
        (b'{"model_type": "llama", "rope_theta": NaN}', "NaN"),
        (b'{"model_type": "llama", "rope_theta": -Infinity}', "-Infinity"),
        (b'{"model_type": "llama", "rope_theta": 1e999}', "1e999"),
        (b'{"hidden_size": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b" " * (MAX_JSON_BYTES + 1), "larger than 8 MiB"),
    ],
)
def test_wrong_files(tmp_path: Path, content: bytes, says: str) -> None:
    path = write(tmp_path / "config.json", content)
    with pytest.raises(ModelError) as raised:
        load_config(str(path))
    message = str(raised.value)
    assert says in message
    assert "config.json" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("./nowhere/config.json", "there is no configuration file"),
        ("missing.json", "there is no configuration file"),
        ("./nowhere", "there is no configuration file"),
        (".", "holds no config.json"),
        ("", "empty"),
        ("  ", "empty"),
        ("nul\0byte", "NUL"),
        ("x" * 5000 + ".json", "File name too long"),
        ({}, "has no model_type"),
        ({"model_type": "llama", "rope_theta": float("nan")}, "not valid JSON"),
        ({"model_type": "llama", "dtype": object()}, "not valid JSON"),
    ],
)
def test_wrong_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as raised:
        load_config(model)
    assert says in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("depth", [100, 900, 100_000])
def test_deep_object(depth: int) -> None:
    deep: dict[str, Any] = {"model_type": "llama"}
    for _ in range(depth):
        deep = {"a": deep}
    with pytest.raises(ModelError, match="nested too deeply"):
        load_config(deep)


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.symlink_to(path)  # opening a link to itself fails for root too
    with pytest.raises(ModelError, match="cannot be read: Too many levels"):
        load_config(str(path))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["model_type", "text_config", "hidden_size", "quantization_config"])
            | st.text(max_size=8),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


def outcome(model: Any) -> str:
    try:
        return load_config(model).model_type
    except ModelError as error:
        return str(error)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["model_type", "text_config", "x"]), JSON_VALUES))
def test_any_object_gives_a_config_or_one_sentence(model: dict[str, Any]) -> None:
    assert outcome(model)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_any_file_gives_a_config_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "fuzz.json", data)
    assert outcome(str(path))
