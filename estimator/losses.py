"""Losses that multiply by the head's weight themselves, so that no logits of the batch exist.

`liger` is Liger's fused linear cross-entropy, as TrainingArguments' `use_liger_kernel` puts it into
a model; `chunked` is TRL's fused head, which its SFTTrainer trains with.
"""

from __future__ import annotations

from estimator.errors import UnsupportedError
from estimator.spec import ModelSpec

LIGER_TYPES = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v4",
        "exaone4",
        "falcon_h1",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma4_text",
        "glm4",
        "gpt_oss",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "llama",
        "llama4_text",
        "ministral",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo2",
        "olmo3",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "smollm3",
    }
)
"""Types of causal language models that Liger gives its loss to.

Source: liger_kernel 0.8.5 transformers/monkey_patch.py, `MODEL_TYPE_TO_APPLY_LIGER_FN`. Granite is
there too, but its function refuses this loss: the logits are scaled after the head.
"""


LOSS_LINES: dict[str, tuple[str, ...]] = {
    "standard": (),
    "liger": ("the loss alone is Liger's (liger-kernel 0.8.5), as use_liger_kernel puts it in",),
    "chunked": (
        "TRL's fused head (trl 1.16.0) with SFTTrainer's metrics, in Trainer's loop; no auxiliary "
        "loss of routers",
    ),
}
"""What an answer assumes of a loss."""

_NO_BACKBONE = frozenset({"llama4_text"})
"""Types whose class names no part as its backbone (`base_model`), where TRL's code fails."""


def check_loss(loss: str, spec: ModelSpec) -> None:
    """Check that a model can be trained with a loss.

    Raises:
        UnsupportedError: the library does not know the model; the message names the way out.
    """
    if loss == "liger":
        check_liger_type(spec.model_type)
    if loss == "chunked" and spec.head_transform is not None:
        raise UnsupportedError(
            f"TRL's fused head leaves out what {spec.model_type} does before its head: "
            "use loss standard"
        )
    if loss == "chunked" and spec.model_type in _NO_BACKBONE:
        raise UnsupportedError(
            f"TRL's fused head finds no backbone in {spec.model_type}: use loss liger or standard"
        )


def check_liger_type(model_type: str) -> None:
    """Check that Liger knows a type of model.

    Raises:
        UnsupportedError: it would leave the model as it is; the message names the way out.
    """
    if model_type not in LIGER_TYPES:
        raise UnsupportedError(
            f"Liger has no fused loss for {model_type}, and would leave the model as it is: "
            "use loss chunked or standard"
        )
