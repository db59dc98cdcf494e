"""A model from free numbers, and the presets of the seed's calculator that fill them in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from estimator.article import ArticleShape
from estimator.catalogue import find_model
from estimator.errors import ModelError, show_value
from estimator.families.reader import MAX_LAYERS, MAX_SIZE

PRESETS = {
    "Llama-3-8B": (8, "meta-llama/Meta-Llama-3-8B"),
    "Llama-3-8B-Instruct": (8, "meta-llama/Meta-Llama-3-8B"),
    "Llama-3-70B-Instruct": (70, "meta-llama/Meta-Llama-3-70B"),
    "Mistral-7B-Instruct-v0.3": (7, "mistralai/Mistral-7B-v0.3"),
    "Mixtral-8x7B-Instruct-v0.1": (47, "mistralai/Mixtral-8x7B-v0.1"),
    "Phi-3-mini-4k-instruct": (3.8, "microsoft/Phi-3-mini-4k-instruct"),
    "Qwen2-72B-Instruct": (72, "Qwen/Qwen2-72B-Instruct"),
    "phi-2": (2.7, "microsoft/phi-2"),
}
"""The calculator's presets: billions of parameters, rounded as it has them, and the model of the
catalogue that has the same sizes."""

_SIZES = {
    "hidden_size": MAX_SIZE,
    "num_hidden_layers": MAX_LAYERS,
    "num_attention_heads": MAX_SIZE,
    "num_key_value_heads": MAX_SIZE,
    "vocab_size": MAX_SIZE,
}


@dataclass(frozen=True, slots=True)
class Numbers:
    """A model of which only these are known. `parameters` is a count."""

    parameters: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int

    def article_shape(self) -> ArticleShape:
        """Return what the article asks of them."""
        return ArticleShape(
            self.parameters, self.hidden_size, self.num_hidden_layers, self.num_attention_heads
        )

    def config(self) -> dict[str, Any]:
        """Return a Llama of these sizes; its MLPs are as wide as the parameters allow.

        The output layer is a matrix of its own unless that would leave no room for MLPs as wide
        as the hidden size.

        Raises:
            ModelError: the numbers contradict each other.
        """
        h, layers, vocab = self.hidden_size, self.num_hidden_layers, self.vocab_size
        if h % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ModelError(
                f"hidden_size {h}, num_attention_heads {self.num_attention_heads} and "
                f"num_key_value_heads {self.num_key_value_heads} are impossible together: "
                "each must be a multiple of the next"
            )
        kv = h // self.num_attention_heads * self.num_key_value_heads
        a_layer = 2 * h * h + 2 * h * kv + 2 * h
        for tied in (False, True):
            rest = self.parameters - vocab * h * (1 if tied else 2) - layers * a_layer - h
            width = round(rest / (3 * h * layers))
            if width >= h:
                break
        if width < 1:
            fixed = (self.parameters - rest) / 1e9
            raise ModelError(
                f"{self.parameters / 1e9:g} billion parameters are too few: the vocabulary, "
                f"attention and norms of these sizes alone have {fixed:.3g} billion"
            )
        return {
            "model_type": "llama",
            "_name_or_path": f"{self.parameters / 1e9:g}B",
            "hidden_size": h,
            "intermediate_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "vocab_size": vocab,
            "tie_word_embeddings": tied,
        }


def read_numbers(state: dict[str, Any]) -> Numbers:
    """Read the fields of a model from numbers.

    Raises:
        ModelError: naming the field, the value and what is allowed.
    """
    billions = state["parameters_billions"]
    number = isinstance(billions, (int, float)) and not isinstance(billions, bool)
    if not number or not 1e-6 <= billions <= 1e6:
        raise ModelError(
            f"parameters_billions is {show_value(billions)}, "
            "but must be a number from 0.000001 to 1000000"
        )
    sizes = {name: _size(name, state[name], most) for name, most in _SIZES.items()}
    return Numbers(round(billions * 1e9), **sizes)


def _size(name: str, value: Any, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ModelError(
            f"{name} is {show_value(value)}, but must be a whole number from 1 to {most}"
        )
    return value


@cache
def preset_numbers(name: str) -> dict[str, Any]:
    """Return what a preset fills in.

    Raises:
        KeyError: when there is no such preset.
    """
    billions, model = PRESETS[name]
    config = find_model(model).config
    heads = config["num_attention_heads"]
    return {
        "parameters_billions": billions,
        "hidden_size": config["hidden_size"],
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": config.get("num_key_value_heads", heads),
        "vocab_size": config["vocab_size"],
    }
