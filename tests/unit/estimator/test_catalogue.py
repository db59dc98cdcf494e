"""The catalogue: what is in it, and how names find it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from estimator.catalogue import entries, find_model, find_relative
from estimator.errors import ModelError

# Counts that FACTS and the model cards agree on.
KNOWN = {
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Meta-Llama-3-70B": 70_553_706_496,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "microsoft/Phi-3-mini-4k-instruct": 3_821_079_552,
    "Qwen/Qwen2-72B-Instruct": 72_706_203_648,
    "microsoft/phi-2": 2_779_683_840,
}


def test_holds_hundreds_of_real_models() -> None:
    names = [entry.name for entry in entries()]
    assert len(names) >= 300
    assert len({name.lower() for name in names}) == len(names)
    assert names == sorted(names, key=str.lower)
    assert all(entry.config["model_type"] == entry.model_type for entry in entries())
    assert all(entry.parameters > 0 and entry.source for entry in entries())


@pytest.mark.parametrize("name", KNOWN)
def test_known_parameter_counts(name: str) -> None:
    assert find_model(name).parameters == KNOWN[name]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("META-LLAMA/llama-3.2-1b", "meta-llama/Llama-3.2-1B"),
        ("Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("llama-3.2-1b", "meta-llama/Llama-3.2-1B"),
        ("llama 3.2 1b", "meta-llama/Llama-3.2-1B"),
        ("Llama_3.2_1B", "meta-llama/Llama-3.2-1B"),
        (" gpt2 ", "openai-community/gpt2"),
        ("Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
        ("meta-llama/Llama-2-7b", "meta-llama/Llama-2-7b-hf"),
    ],
)
def test_spellings(name: str, found: str) -> None:
    assert find_model(name).name == found


def test_every_model_is_found_by_its_id_and_its_short_name() -> None:
    for entry in entries():
        assert find_model(entry.name) is entry
        assert find_model(entry.short_name.upper()) is entry


@pytest.mark.parametrize(
    ("name", "suggested"),
    [
        ("Lama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("unsloth/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        ("Llama-3-8B", "meta-llama/Meta-Llama-3-8B"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("gpt-2", "openai-community/gpt2"),
        ("mistralai/Mistral-7B", "mistralai/Mistral-7B-v0.1"),
    ],
)
def test_misspelt_names_get_suggestions_and_the_way_out(name: str, suggested: str) -> None:
    with pytest.raises(ModelError) as raised:
        find_model(name)
    message = str(raised.value)
    assert suggested in message.partition("did you mean ")[2].partition("?")[0].split(", ")
    assert "config.json" in message
    assert "gpumem models" in message


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"),
        ("gemma-2-9b-it", "google/gemma-2-9b"),
        ("Mixtral-8x7B-Instruct-v0.1", "mistralai/Mixtral-8x7B-v0.1"),
        ("Llama-2-7b-chat-hf", "meta-llama/Llama-2-7b-hf"),
        ("Qwen2-72B", "Qwen/Qwen2-72B-Instruct"),
        ("somebody/Llama-3.1-8B-Instruct", None),
        ("Mixtral-8x22B-chat", None),  # two of the catalogue differ in their tuning alone
        ("instruct", None),
        ("Llama-3.1-8B-AWQ", None),
    ],
)
def test_names_that_differ_in_their_tuning(name: str, base: str | None) -> None:
    relative = find_relative(name)
    assert (relative.name if relative else None) == base


@pytest.mark.parametrize("name", ["", "  ", "zzzzqqqq", "x" * 100_000, "a/b/c", "\udcff"])
def test_names_like_nothing(name: str) -> None:
    with pytest.raises(ModelError) as raised:
        find_model(name)
    assert len(str(raised.value)) < 400


def test_ambiguous_name_lists_the_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = find_model("gpt2")
    rows = tuple(replace(entry, name=name) for name in ("one/tiny-model", "two/Tiny_Model-hf"))
    monkeypatch.setattr("estimator.catalogue.entries", lambda: rows)
    assert find_model("two/tiny_model-HF") is rows[1]
    assert find_model("tiny-model") is rows[0], "an exact short name wins over a loose one"
    with pytest.raises(ModelError, match=r"ambiguous: give one/tiny-model or two/Tiny_Model-hf"):
        find_model("tiny model")
