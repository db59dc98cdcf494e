"""Where a model's configuration comes from: an object, a file, a folder, or the catalogue.

Only what concerns the text is checked here (is it JSON, is it an object, does it name its type);
the sizes are checked by `estimator.spec`.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from estimator.catalogue import CatalogueEntry, find_model, find_relative
from estimator.checkpoint import Checkpoint, read_checkpoint
from estimator.errors import ModelError, show_value
from estimator.hub_cache import cached_snapshot
from estimator.strict_json import MAX_JSON_BYTES, check_json, parse_json

Origin = Literal["catalogue", "file", "folder", "object"]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration, as its config.json has it, with `model_type`.

    `parameters` is the known count (catalogue models only, tied weights once), else None.
    `checkpoint` is what a folder's safetensors files hold.
    `notes` says in one line each what was decided while reading it; they belong among a
    report's assumptions.
    """

    name: str
    config: dict[str, Any]
    origin: Origin
    parameters: int | None = None
    checkpoint: Checkpoint | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def model_type(self) -> str:
        """The transformers model type (`llama`)."""
        return str(self.config["model_type"])


def load_config(model: str | dict[str, Any]) -> ModelConfig:
    """Return the configuration that a case's `model` means.

    A string that starts with `.`, `/` or `~` or ends in `.json` is a path. Otherwise a folder of
    that name that holds a config.json comes first (as in transformers), then the catalogue, then
    what the Hub's cache on this machine holds, then a model of the catalogue whose name differs in
    its tuning only (`-Instruct`), which a note says.

    Raises:
        ModelError: one sentence: unknown name, unreadable or empty file, not JSON (with the
            place), not an object, no `model_type`, above 8 MiB, NaN or Infinity, absurd nesting.
    """
    if not isinstance(model, str):
        check_json(model, "the model's configuration", ModelError)
        name = str(model.get("_name_or_path") or model.get("model_type") or "config")
        return _complete(name, copy.deepcopy(model), "object", "the model's configuration")
    if not model.strip():
        raise ModelError("the model's name is empty: give a name, a path or a configuration object")
    if "\0" in model:
        raise ModelError(f"model {show_value(model)} contains a NUL character")
    path = Path(os.path.expanduser(model))
    if model.startswith((".", "/", "~", os.sep)) or model.lower().endswith(".json"):
        return _read(path)
    if os.path.isfile(path / "config.json"):
        return _read(path)
    try:
        entry = find_model(model)
    except ModelError:
        if os.path.exists(path):
            return _read(path)
        snapshot = cached_snapshot(model)
        if snapshot is not None:
            return replace(_read(snapshot), name=model)
        relative = find_relative(model)
        if relative is None:
            raise
        return _from_catalogue(
            relative, f"{model.strip()} is taken to have {relative.name}'s shapes"
        )
    return _from_catalogue(entry)


def _from_catalogue(entry: CatalogueEntry, *notes: str) -> ModelConfig:
    # Most values are numbers and words, which need no copy.
    config = {
        key: copy.deepcopy(value) if isinstance(value, dict | list) else value
        for key, value in entry.config.items()
    }
    return ModelConfig(entry.name, config, "catalogue", entry.parameters, notes=notes)


def _read(path: Path) -> ModelConfig:
    origin: Origin = "file"
    name = path.stem
    if os.path.isdir(path):
        origin = "folder"
        if not os.path.exists(path / "config.json"):
            raise ModelError(f"folder {show_value(str(path), 200)} holds no config.json")
        path = path / "config.json"
    if path.name == "config.json":
        name = os.path.basename(os.path.dirname(os.path.abspath(path)))
    shown = show_value(str(path), 200)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_JSON_BYTES + 1)
    except FileNotFoundError:
        raise ModelError(f"there is no configuration file {shown}") from None
    except OSError as problem:
        reason = problem.strerror or "unknown error"
        raise ModelError(f"configuration {shown} cannot be read: {reason}") from None
    config = parse_json(data, f"configuration {shown}", ModelError)
    found = _complete(name or "config", config, origin, f"configuration {shown}")
    if origin == "folder":
        return replace(found, checkpoint=read_checkpoint(path.parent))
    return found


def _complete(name: str, config: Any, origin: Origin, what: str) -> ModelConfig:
    if not isinstance(config, dict):
        raise ModelError(f"{what} is {show_value(config)}, but must be a JSON object")
    notes = []
    text_config = config.get("text_config")
    if isinstance(text_config, dict) and text_config:
        outer = str(config.get("model_type") or "multimodal")
        notes.append(f"only the language model of this {outer} configuration (its text_config)")
        # Multimodal checkpoints keep these beside the text_config where they hold for both.
        shared = ("tie_word_embeddings", "dtype", "torch_dtype", "quantization_config")
        inherited = {key: config[key] for key in shared if key in config}
        config = {**inherited, **text_config}
        what += " (its text_config)"
    model_type = config.get("model_type")
    if model_type is None:
        raise ModelError(f'{what} has no model_type: add it (for example "model_type": "llama")')
    if not isinstance(model_type, str) or not model_type:
        raise ModelError(f"model_type of {what} is {show_value(model_type)}, but must be a name")
    if config.get("quantization_config"):
        notes.append(
            "the checkpoint's own quantization_config is left out: "
            "dtype and quantization are the case's"
        )
    # A name stands in sentences of one line.
    return ModelConfig(" ".join(name.split()), config, origin, notes=tuple(notes))
