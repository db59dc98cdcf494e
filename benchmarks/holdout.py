"""What no calibration may use: the `holdout` suite's models, and its settings on other models.

A calibration that had seen them could not be judged by them. Models that only `holdout` has are
held out whatever the settings; where it uses a model of `core`, its settings are held out on every
model.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from benchmarks.suite import load_suite
from estimator.case import Case
from estimator.config_source import load_config

_NAMES = ("model", "gpu")
"""Fields that say on what, not how."""


def is_held_out(case: Case) -> bool:
    """Whether a case must be left out of every fit.

    A model is recognized by its configuration, whatever name or path the case gives it.

    Raises:
        ModelError: when the case's model cannot be found or read.
    """
    models, settings = _held_out()
    return _settings(case) in settings or _config(case.model) in models


@cache
def _held_out() -> tuple[frozenset[str], frozenset[str]]:
    """Return the configurations and the settings that are held out, as JSON texts."""
    shared = {entry.case.model_name for entry in load_suite("core").cases}
    cases = [entry.case for entry in load_suite("holdout").cases]
    models = {_config(case.model) for case in cases if case.model_name not in shared}
    settings = {_settings(case) for case in cases if case.model_name in shared}
    return frozenset(models), frozenset(settings)


def _config(model: Any) -> str:
    config = load_config(model).config
    # Transformers writes these without meaning another architecture by them.
    kept = {
        key: value
        for key, value in config.items()
        if key not in ("_name_or_path", "torch_dtype", "dtype", "transformers_version")
    }
    return json.dumps(kept, sort_keys=True)


def _settings(case: Case) -> str:
    kept = {key: value for key, value in case.to_dict().items() if key not in _NAMES}
    return json.dumps(kept, sort_keys=True)
