"""What a rule says of a printed row: the case it states, or why it states none."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from estimator.config_source import load_config

Printed = Mapping[str, str]
"""A row of the CSV file, column by column, as printed."""


class NotStated(Exception):
    """The row does not state a case of ours; its text is the reason that is kept with it."""


@dataclass(frozen=True, slots=True)
class Stated:
    """A case's fields, and what was counted when. `caveat`: what had to be assumed."""

    case: dict[str, Any]
    counter: str
    instant: str = "peak"
    caveat: str | None = None


Rule = Callable[[Printed], Stated]

_SAME_ARCHITECTURE: dict[str, str] = {
    "Llama-13B": "huggyllama/llama-13b",
    "NousResearch/Llama-2-70b-hf": "meta-llama/Llama-2-70b-hf",
    "NousResearch/Llama-2-7b-hf": "meta-llama/Llama-2-7b-hf",
    "bigcode/octocoder": "bigcode/starcoder",
    "lmsys/vicuna-7b-v1.5": "meta-llama/Llama-2-7b-hf",
}
"""Fine-tunes and mirrors, by the catalogue's model of the same architecture and sizes."""


_DIFFERS: dict[str, tuple[str, dict[str, Any]]] = {
    f"Qwen/Qwen2-{size}-Instruct": (f"Qwen/Qwen2-{size}", {"max_position_embeddings": 32768})
    for size in ("0.5B", "1.5B", "7B")
}
"""Fine-tunes whose configuration differs from the catalogue's model in what matters."""


def catalogue_model(model: str) -> str | dict[str, Any]:
    """Return a case's `model`: the catalogue's of the same architecture, or its configuration."""
    if model in _DIFFERS:
        base, changes = _DIFFERS[model]
        name = model.rpartition("/")[2]
        return {"_name_or_path": name, **load_config(base).config, **changes}
    return _SAME_ARCHITECTURE.get(model, model)


def card(text: str) -> str:
    """Return the catalogue's card that a row's text names.

    Raises:
        NotStated: it names none.
    """
    for pattern, name in _CARDS:
        if re.search(pattern, text):
            return name
    raise NotStated("the card is not stated")


_CARDS = (
    (r"A100.*80 ?G", "A100-80GB"),
    (r"A100.*40 ?G", "A100-40GB"),
    (r"A10G", "A10"),
    (r"V100 16GB", "V100-16GB"),
    (r"L40S", "L40S"),
    (r"H20", "H20"),
)


def whole(row: Printed, column: str) -> int:
    """Return a column as a whole number.

    Raises:
        NotStated: it is empty, a range or a text.
    """
    text = row[column]
    if not re.fullmatch(r"[0-9]+", text):
        words = {"batch": "batch size", "seq": "sequence length", "new_tokens": "new tokens"}
        raise NotStated(f"{words[column]}: {text or 'not stated'}")
    return int(text)


DTYPES = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32", "fp16": "float16"}


def dtype(row: Printed) -> str:
    """Return the dtype of the weights as loaded.

    Raises:
        NotStated: the row names none that a case knows.
    """
    name = row["weights_dtype"]
    if name not in DTYPES:
        raise NotStated(f"dtype: {name or 'not stated'}")
    return DTYPES[name]


def quantization(row: Printed) -> dict[str, Any]:
    """Return a case's quantization fields.

    Raises:
        NotStated: weights packed in a way that no case describes.
    """
    name = row["quant"]
    if name not in _QUANTIZATIONS:
        raise NotStated(f"weights in {name or 'a format that is not stated'}: not a case's")
    return dict(_QUANTIZATIONS[name])


_QUANTIZATIONS: dict[str, dict[str, Any]] = {
    "none": {},
    # bitsandbytes' own default where a configuration says no more than 4 bits.
    "bnb 4bit": {"quantization": "fp4"},
    "bnb 4bit (default fp4)": {"quantization": "fp4"},
    "bnb fp4": {"quantization": "fp4"},
    "bnb int8": {"quantization": "int8"},
    "bnb nf4": {"quantization": "nf4"},
    "bnb nf4 double-quant": {"quantization": "nf4", "double_quantization": True},
}
