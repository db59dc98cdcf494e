"""Counts of elements of parts that many models share; weights and biases together."""

from __future__ import annotations

from math import ceil

from estimator.errors import ModelError
from estimator.families.reader import MAX_LAYERS, ConfigReader

_OLDER_NAMES = {
    "conv": "linear_attention",
    "mamba": "linear_attention",
    "recurrent": "linear_attention",
    "attention": "full_attention",
}
"""Names of kinds of layers in older configurations (transformers/configuration_utils.py)."""


def linear(inputs: int, outputs: int, bias: bool = False) -> int:
    """Return the elements of a linear map."""
    return inputs * outputs + (outputs if bias else 0)


def gated_mlp(hidden: int, width: int, bias: bool = False) -> int:
    """Return the elements of a gate, an up and a down projection."""
    return 2 * linear(hidden, width, bias) + linear(width, hidden, bias)


def experts(hidden: int, width: int, count: int) -> int:
    """Return the elements of a router and of stacked gated experts."""
    return count * (hidden + 3 * hidden * width)


def embeddings(reader: ConfigReader, vocab: int, hidden: int, tied: bool) -> int:
    """Return the elements of the embeddings and of the head; `tied` is the family's default."""
    return vocab * hidden * (1 if reader.flag("tie_word_embeddings", tied) else 2)


def layer_count(reader: ConfigReader, default: int) -> int:
    """Return the number of layers."""
    return reader.size("num_hidden_layers", default=default, most=MAX_LAYERS)


def factor(reader: ConfigReader, name: str, default: float) -> float:
    """Return a factor of sizes: above 0, at most 1000."""
    value = reader.number(name, default)
    if value is None or not 0 < value <= 1000:
        raise reader.error(name, value, "a number above 0, at most 1000")
    return value


def time_step_rank(reader: ConfigReader, name: str, hidden: int) -> int:
    """Return the rank of the time steps' projection: a sixteenth of the hidden size if `auto`."""
    if reader.config.get(name) in (None, "auto"):
        return ceil(hidden / 16)
    return reader.size(name)


def kinds(reader: ConfigReader, names: tuple[str, ...], allowed: tuple[str, ...]) -> list[str]:
    """Return the kind of each layer out of the first present field of `names`, else an empty list.

    Raises:
        ModelError: it is no list of `allowed` kinds.
    """
    for name in names:
        value = reader.config.get(name)
        if value is None:
            continue
        shown = f"a list of {', '.join(allowed)}"
        if not isinstance(value, list) or not 0 < len(value) <= MAX_LAYERS:
            raise reader.error(name, value, shown)
        current = [_OLDER_NAMES.get(str(item), str(item)) for item in value]
        for item, kind in zip(value, current, strict=True):
            if kind not in allowed:
                raise reader.error(name, item, shown)
        return current
    return []


def check_length(reader: ConfigReader, listed: list[str], count: int) -> list[str]:
    """Return a list of kinds that has to name each of `count` layers."""
    if len(listed) != count:
        raise ModelError(
            f"the configuration of {reader.name} is impossible: it names the kinds of "
            f"{len(listed)} layers, but num_hidden_layers is {count}"
        )
    return listed
