"""From the form's state to a case. Values are what a browser, or anybody, may send."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.web.fields import (
    ADVANCED_FIELDS,
    BY_NAME,
    CASE_FIELDS,
    DEFAULTS,
    FIELDS,
    NONE,
    SOURCES,
    is_shown,
)
from app.web.numbers import Numbers, read_numbers
from estimator.case import Case
from estimator.catalogue import find_model
from estimator.errors import CaseError, ModelError, show_choices, show_value
from estimator.strict_json import parse_json

MAX_CONFIG_BYTES = 2**20
_MAX_TEXT = 1000
_LORA = {
    "lora_r": "r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "lora_target_modules": "target_modules",
    "use_dora": "use_dora",
}
_ARTICLE_ONLY = "trainable_percent"
_UNREAD = ("id2label", "label2id", "vision_config", "audio_config")
"""Parts of configurations that no formula reads, and that may be long."""

State = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model a form describes: what a case's `model` is to be, and the numbers if it is free."""

    model: str | dict[str, Any]
    numbers: Numbers | None = None


def clean_state(values: Mapping[str, Any]) -> State:
    """Return a whole state: known fields only, defaults for missing ones, sane scalars.

    Text becomes valid Unicode, whole floats become ints, text of digits in a number field becomes
    a number. What is wrong after that is for `read_case` to say.
    """
    state = dict(DEFAULTS)
    for name, value in values.items():
        if name in BY_NAME:
            state[name] = _clean(BY_NAME[name].kind, value)
    return state


def _clean(kind: str, value: Any) -> Any:
    if isinstance(value, str):
        value = value.encode("utf-8", "replace").decode()
        return value if kind == "long_text" else _from_text(kind, value[:_MAX_TEXT].strip())
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return int(value)
    return value if value is None or isinstance(value, (bool, int, float)) else show_value(value)


def _from_text(kind: str, text: str) -> Any:
    if kind in ("count", "decimal"):
        if re.fullmatch(r"[+-]?\d{1,18}", text, re.ASCII):
            return int(text)
        if kind == "decimal" and re.fullmatch(r"[+-]?\d{1,18}\.\d{0,18}", text, re.ASCII):
            return float(text)
    if kind == "flag" and text in ("true", "false"):
        return text == "true"
    return text


def read_model(state: State) -> ModelChoice:
    """Return the model: of the catalogue, of a pasted configuration, or of numbers. Never a path.

    Raises:
        GpumemError: in one sentence.
    """
    source = state["source"]
    if source == "catalogue":
        name = state["model"]
        if not isinstance(name, str) or not name:
            raise ModelError("choose a model of the catalogue, paste a config.json or give numbers")
        return ModelChoice(_catalogue_name(name))
    if source == "config.json":
        return ModelChoice(_read_config(state["config"]))
    if source == "numbers":
        numbers = read_numbers(state)
        return ModelChoice(numbers.config(), numbers)
    raise ModelError(f"source is {show_value(source)}, but must be {show_choices(SOURCES)}")


def _catalogue_name(name: str) -> str:
    try:
        return find_model(name).name
    except ModelError as error:
        # The command line's way out, a path, is none here.
        sentence = str(error).partition(" (`gpumem models`")[0]
        raise ModelError(f"{sentence} (for any other, paste its config.json)") from None


def _read_config(text: Any) -> dict[str, Any]:
    if not isinstance(text, str) or not text.strip():
        raise ModelError("config.json is empty: paste the model's configuration, or open the file")
    if len(text.encode()) > MAX_CONFIG_BYTES:
        raise ModelError("config.json is larger than 1 MiB")
    config = parse_json(text, "config.json", ModelError)
    if not isinstance(config, dict) or not config:
        raise ModelError(f"config.json is {show_value(config)}, but must be a JSON object")
    return {name: value for name, value in config.items() if name not in _UNREAD}


def read_case(state: State, model: ModelChoice) -> Case:
    """Return the case; fields that the form does not show say nothing about it.

    Raises:
        CaseError: in the command line's sentence.
    """
    data: dict[str, Any] = {"model": model.model}
    lora: dict[str, Any] = {}
    for field in (*CASE_FIELDS, *ADVANCED_FIELDS):
        if field.name == _ARTICLE_ONLY or not is_shown(field, state):
            continue
        if field.name == "recompute_granularity" and not _recomputes(state):
            continue
        value = state[field.name]
        if field.kind in ("choice", "search") and value in (NONE, ""):
            value = None
        if field.name == "sp_size":
            data["parallelism"] = {"sp_size": value}
        elif field.name in _LORA:
            lora[_LORA[field.name]] = value
        else:
            data[field.name] = value
    if lora:
        data["lora"] = {**lora, "target_modules": _targets(lora["target_modules"])}
    return Case.from_dict(data)


def _recomputes(state: State) -> bool:
    """Whether there is something to recompute, and a choice of what."""
    older = is_shown(BY_NAME["stack"], state) and state["stack"] not in (NONE, "")
    return bool(state["gradient_checkpointing"]) and not older


def _targets(value: Any) -> Any:
    if not isinstance(value, str) or value == "all-linear":
        return value
    return [part.strip() for part in value.split(",")]


def trainable_share(state: State) -> float:
    """Return the share of parameters that the article's calculator takes for trained.

    Raises:
        CaseError: when it is no percentage.
    """
    value = state[_ARTICLE_ONLY]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= 100:
        raise CaseError(
            f"{_ARTICLE_ONLY} is {show_value(value)}, but must be a number from 0 to 100",
            _ARTICLE_ONLY,
        )
    return float(value) / 100


def state_of(values: list[Any]) -> State:
    """Return the state of the widgets' values, in the order of `FIELDS`."""
    return clean_state(dict(zip((field.name for field in FIELDS), values, strict=True)))
