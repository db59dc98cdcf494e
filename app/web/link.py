"""The state in a link, the case as a command line and as JSON: what a visitor takes along."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode

from app.options import CASE_FLAGS
from app.web.fields import DEFAULTS, FIELDS, is_shown
from app.web.form import State, clean_state
from estimator.case import Case

MAX_QUERY = 8000
"""Characters of a link's query: servers and mail programs cut longer ones."""

MAX_MODEL_JSON = 20_000
CONFIG_FILE = "./config.json"


def to_query(state: State) -> str | None:
    """Return a query that `from_query` reads back to the same answer, or None where too long."""
    pairs = [
        (field.name, _text(state[field.name]))
        for field in FIELDS
        if is_shown(field, state) and state[field.name] != DEFAULTS[field.name]
    ]
    query = urlencode(pairs)
    return query if len(query) <= MAX_QUERY else None


def from_query(query: str) -> State:
    """Return the state that a query describes; what it does not name has its default."""
    pairs = parse_qsl(query.removeprefix("?")[:MAX_QUERY], keep_blank_values=True)
    return clean_state(dict(pairs))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.12f}".rstrip("0")
    return value if isinstance(value, str) else json.dumps(value)


def case_json(case: Case) -> str:
    """Return the complete case as JSON; a long configuration is named, not shown."""
    data = case.to_dict()
    if not isinstance(case.model, str) and len(json.dumps(case.model)) > MAX_MODEL_JSON:
        data["model"] = CONFIG_FILE
    return json.dumps(data, indent=1)


def command_line(case: Case) -> str:
    """Return the `gpumem estimate` command of a case: flags where it differs from the defaults.

    A configuration object is taken to be saved as config.json.
    """
    model = case.model if isinstance(case.model, str) else CONFIG_FILE
    words = ["gpumem", "estimate", model]
    given = _flat(case)
    default = _flat(Case.from_dict({"model": "m", "task": case.task, "method": case.method}))
    for flag in CASE_FLAGS:
        value = given.get(flag.field)
        # The task and the method choose the other defaults.
        plain = {"task": "inference", "method": "full"}.get(flag.field, default.get(flag.field))
        if value == plain:
            continue
        name = flag.flags[-1] if flag.kind != "bool" else flag.flags[0]
        if isinstance(value, bool):
            words.append(name if value else "--no-" + name.removeprefix("--"))
        elif isinstance(value, (list, tuple)):
            words += [name, ",".join(value)]
        else:
            words += [name, "none" if value is None else str(value)]
    return shlex.join(words)


def _flat(case: Case) -> Mapping[str, Any]:
    data = case.to_dict()
    for part in ("lora", "parallelism"):
        inner = data.pop(part) or {}
        data |= {f"{part}.{name}": value for name, value in inner.items()}
    return data
