"""Reads fields of a config.json strictly: sizes are whole numbers in a sane range."""

from __future__ import annotations

import sys
from typing import Any

from estimator.config_source import ModelConfig
from estimator.errors import ModelError, UnsupportedError, show_value

MAX_SIZE = 2**31 - 1
MAX_LAYERS = 10_000


class ConfigReader:
    """Reads the configuration of one model; every error names the model and the field."""

    def __init__(self, config: ModelConfig) -> None:
        self.name = config.name
        self.config = config.config
        self.model_type = str(config.config.get("model_type"))

    def with_field(self, name: str, value: Any) -> ConfigReader:
        """Return a reader of the same configuration with another value of a field."""
        reader = ConfigReader.__new__(ConfigReader)
        reader.name, reader.model_type = self.name, self.model_type
        reader.config = {**self.config, name: value}
        return reader

    def size(
        self, *names: str, default: int | None = None, least: int = 1, most: int = MAX_SIZE
    ) -> int:
        """Return the first present field of `names`, a whole number from `least` to `most`.

        A null counts as absent. Without `default` the field is required.
        """
        for name in names:
            value = self.config.get(name)
            if value is None:
                continue
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or not least <= value <= most:
                raise self.error(name, value, f"a whole number from {least} to {most}")
            return int(value)
        if default is None:
            raise ModelError(f"the configuration of {self.name} lacks {names[0]}")
        return default

    def count(self, name: str, default: int) -> int:
        """Return a whole number from 0 on."""
        return 0 if self.config.get(name) == 0 else self.size(name, default=default)

    def optional_size(self, name: str) -> int | None:
        """Return a size, or None where the field is absent or null."""
        return None if self.config.get(name) is None else self.size(name)

    def flag(self, name: str, default: bool) -> bool:
        """Return a true/false field."""
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return value

    def fraction(self, name: str, default: float) -> float:
        """Return a probability from 0 to below 1."""
        value = self.config.get(name)
        if value is None:
            return default
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or not 0 <= value < 1:
            raise self.error(name, value, "a number from 0 to below 1")
        return float(value)

    def number(self, name: str, default: float | None) -> float | None:
        """Return a number other than 0, or None where the field is null (or absent, by default)."""
        if name not in self.config:
            return default
        value = self.config[name]
        if value is None:
            return None
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not numeric or value == 0 or abs(value) > sys.float_info.max:
            raise self.error(name, value, "a number other than 0, or null")
        return float(value)

    def text(self, name: str, default: str) -> str:
        """Return a text field."""
        value = self.config.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(name, value, "a text")
        return value

    def heads(
        self, default_kv: int | None = None, default_heads: int | None = None
    ) -> tuple[int, int]:
        """Return query heads and key/value heads, which have to divide."""
        heads = self.size("num_attention_heads", "n_head", default=default_heads)
        kv_heads = self.size("num_key_value_heads", default=default_kv or heads)
        if heads % kv_heads:
            raise ModelError(
                f"the configuration of {self.name} is impossible: num_attention_heads is {heads}, "
                f"which num_key_value_heads {kv_heads} does not divide"
            )
        return heads, kv_heads

    def head_dim(self, hidden_size: int, heads: int) -> int:
        """Return `head_dim`, or the hidden size over the heads, which then have to divide."""
        explicit = self.optional_size("head_dim")
        if explicit is not None:
            return explicit
        if hidden_size % heads:
            raise ModelError(
                f"the configuration of {self.name} is impossible: hidden_size is {hidden_size}, "
                f"which num_attention_heads {heads} does not divide"
            )
        return hidden_size // heads

    def divided(self, name: str, size: int, by: str, count: int) -> int:
        """Return `size` over `count`, which have to divide; `name` and `by` are their fields."""
        if size % count:
            raise ModelError(
                f"the configuration of {self.name} is impossible: {name} is {size}, "
                f"which {by} {count} does not divide"
            )
        return size // count

    def rotary_dim(self, head_dim: int, name: str, default: float) -> int:
        """Return how many features of a head positions rotate.

        The share is field `name`, or `partial_rotary_factor` of `rope_parameters` (or of
        `rope_scaling`, its older name); more than 0, at most 1.
        """
        share: Any = self.config.get(name)
        for holder in ("rope_parameters", "rope_scaling"):
            inner = self.config.get(holder)
            if isinstance(inner, dict) and inner.get("partial_rotary_factor") is not None:
                share = inner["partial_rotary_factor"]
        if share is None:
            share = default
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise self.error(name, share, "a number above 0, at most 1")
        return int(head_dim * share)

    def rotary_dim_of(self, kind: str, head_dim: int, default: float) -> int:
        """Return the rotated features of a head in layers of a kind, where `rope_parameters` has
        an entry a kind: see `rotary_dim`."""
        holder = self.config.get("rope_parameters")
        inner = holder.get(kind) if isinstance(holder, dict) else None
        share = inner.get("partial_rotary_factor") if isinstance(inner, dict) else None
        if share is None:
            share = default
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
            raise self.error("partial_rotary_factor", share, "a number above 0, at most 1")
        return int(head_dim * share)

    def indices(self, name: str) -> tuple[int, ...]:
        """Return a list of layer numbers, empty where the field is absent or null."""
        value = self.config.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.error(name, value, "a list of layer numbers")
        return tuple(value)

    def unsupported(self, what: str) -> UnsupportedError:
        """Return the error for a setting without a formula."""
        return UnsupportedError(
            f"the architecture formulas do not know {what} of {self.name} yet: use gpumem trace, "
            "which runs transformers' own code, or --formulas article"
        )

    def layer_types(self, count: int) -> list[str] | None:
        """Return `layer_types` where it is given: one name a layer."""
        value = self.config.get("layer_types")
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != count:
            raise self.error("layer_types", value, f"a list of {count} names")
        for item in value:
            if item not in ("full_attention", "sliding_attention"):
                raise self.error("layer_types", item, "full_attention or sliding_attention")
        return value

    def error(self, name: str, value: Any, allowed: str) -> ModelError:
        """Return the error for a field with an impossible value."""
        return ModelError(
            f"the configuration of {self.name} is impossible: {name} is {show_value(value)}, "
            f"but must be {allowed}"
        )
