"""Links, command lines and JSON lead back to the same case."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.commands.estimate import estimate as estimate_verb
from app.options import read_case as read_flags
from app.web.fields import DEFAULTS, FIELDS, is_shown
from app.web.form import State, clean_state, read_case, read_model
from app.web.link import case_json, command_line, from_query, to_query
from estimator.case import OPTIMIZERS, Case

VALUES: dict[str, Any] = {
    "source": st.sampled_from(["catalogue", "numbers"]),
    "model": st.sampled_from(["meta-llama/Llama-3.1-8B", "openai-community/gpt2"]),
    "optimizer": st.sampled_from([name for name in OPTIMIZERS if name != "adafactor"]),
    "gpu": st.sampled_from(["none", "H100", "L4"]),
    "stack": st.sampled_from(["none", "transformers-4.48"]),
    "lora_target_modules": st.sampled_from(["all-linear", "q_proj,v_proj"]),
    "lora_dropout": st.sampled_from([0, 0.05, 0.5]),
    "sp_size": st.sampled_from([1, 2, 4]),
    "parameters_billions": st.sampled_from([8, 7.25, 70]),
}


def value_of(field: Any) -> Any:
    if field.name in VALUES:
        return VALUES[field.name]
    if field.kind == "choice":
        return st.sampled_from(field.choices)
    if field.kind == "flag":
        return st.booleans()
    if field.kind == "count" and field not in FIELDS[:10]:
        return st.integers(1, 4096)
    return st.just(field.default)


states = st.fixed_dictionaries({field.name: value_of(field) for field in FIELDS})


def case_of(state: State) -> Case | None:
    if state["task"] == "training" and state["method"] == "full":
        state["quantization"] = "none"
    selective = state["gradient_checkpointing"] and state["recompute_granularity"] == "selective"
    if selective or state["stack"] != "none" or state["sequence_length"] % 4:
        state["sp_size"] = 1  # no sequence is shared then
    return read_case(state, read_model(state))


@given(states)
@settings(max_examples=200, deadline=None)
def test_a_link_reproduces_the_state(state: State) -> None:
    query = to_query(state)
    assert query is not None
    back = from_query("?" + query)
    assert {f.name: back[f.name] for f in FIELDS if is_shown(f, state)} == {
        f.name: state[f.name] for f in FIELDS if is_shown(f, state)
    }
    assert case_of(back) == case_of(state)


@given(states)
@settings(max_examples=200, deadline=None)
def test_the_command_line_is_the_case(state: State) -> None:
    case = case_of(state)
    assert case is not None
    words = shlex.split(command_line(case))
    assert words[:2] == ["gpumem", "estimate"]
    context = estimate_verb.make_context("estimate", words[2:])
    found = read_flags(context.params)
    if isinstance(case.model, str):
        assert found == case
    else:
        assert found.to_dict() == {**case.to_dict(), "model": "./config.json"}


@given(states)
@settings(max_examples=50, deadline=None)
def test_the_json_is_the_case(state: State) -> None:
    case = case_of(state)
    assert case is not None
    assert Case.from_dict(json.loads(case_json(case))) == case


def test_the_default_state_is_an_empty_query() -> None:
    assert to_query(dict(DEFAULTS)) == ""
    assert from_query("") == DEFAULTS


def test_a_long_configuration_has_no_link_and_a_file_in_the_json() -> None:
    config = {"model_type": "llama", "padding": ["x" * 60] * 400}
    state = clean_state({"source": "config.json", "config": json.dumps(config)})
    assert to_query(state) is None
    case = read_case(state, read_model(state))
    assert json.loads(case_json(case))["model"] == "./config.json"


@pytest.mark.parametrize("query", ["?utm=1&&&=", "?" + "%ff" * 3000, "?batch_size=%00", "?" * 99])
def test_any_query_is_a_state(query: str) -> None:
    assert set(from_query(query)) == set(DEFAULTS)
