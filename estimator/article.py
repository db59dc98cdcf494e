"""The seed article's formulas, exactly as it and its calculator have them (see docs/article.md).

They are kept for comparison: their known faults are part of them, and each estimate lists those
that matter for its case. Source of the formulas: "Memory Requirements for LLM Training and
Inference" (M. Escobar), whose numbered references are those of docs/article.md; source of the
factor 4 on activations: the code of its calculator, LLM-System-Requirements.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from estimator.case import Case, sequence_parallel_lines
from estimator.config_source import ModelConfig, load_config
from estimator.errors import CaseError, ModelError, UnsupportedError, show_value
from estimator.report import Components, MemoryReport, Parameters, Peak, Phase
from estimator.units import ceil_div

if TYPE_CHECKING:
    from estimator.spec import ModelSpec

PRECISION_BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "nf4": 4, "fp4": 4}
"""Bits a value, flat for every parameter and for the KV cache (article, "Precision")."""

OPTIMIZER_RULES = {
    "adamw_torch_fused": "adamw",
    "adamw_torch": "adamw",
    "paged_adamw_32bit": "adamw",
    "adamw_bnb_8bit": "adamw_quantized",
    "adamw_8bit": "adamw_quantized",
    "paged_adamw_8bit": "adamw_quantized",
    "sgd": "sgd",
    "adagrad": "sgd",
    "rmsprop": "sgd",
    "lion_32bit": "sgd",
    "paged_lion_32bit": "sgd",
}
"""Which of the article's three rules an optimizer falls under; the others have none."""


@dataclass(frozen=True, slots=True)
class ArticleCoefficients:
    """The article's constants, by name.

    Attributes:
        activation_linear: bytes a (token, hidden unit) that do not grow with the length
            (article, "Activations", from Korthikanti et al. 2022, equation 1).
        activation_scores: bytes a (token, token, head): the attention scores (same equation).
        activation_recomputed: bytes a (token, hidden unit) where whole layers are recomputed: their
            inputs (the same paper, section 5; the article names the technique only).
        activation_scale: factor on all, in the calculator's code but not in the article.
        gradient_bytes: bytes a trainable parameter, always fp32 (article, "Gradients").
        adamw_bytes: two fp32 states (article, "Optimizer States").
        adamw_quantized_bytes: two 8-bit states, bitsandbytes (same list).
        sgd_bytes: one fp32 state, momentum or not (same list).
    """

    activation_linear: float = 34
    activation_scores: float = 5
    activation_recomputed: float = 2
    activation_scale: float = 4
    gradient_bytes: float = 4
    adamw_bytes: float = 8
    adamw_quantized_bytes: float = 2
    sgd_bytes: float = 4

    def optimizer_bytes(self, rule: str) -> float:
        """Bytes a trainable parameter under one of the rules of `OPTIMIZER_RULES`."""
        value: float = getattr(self, f"{rule}_bytes")
        return value


CALCULATOR = ArticleCoefficients()


@dataclass(frozen=True, slots=True)
class ArticleShape:
    """All that the article asks of a model: parameters, hidden size, layers, attention heads."""

    parameters: int
    hidden_size: int
    layers: int
    heads: int


def weight_bytes(shape: ArticleShape, bits: int) -> int:
    """Parameters x precision (article, "Model Weights")."""
    return ceil_div(shape.parameters * bits, 8)


def kv_cache_bytes(shape: ArticleShape, batch: int, length: int, bits: int) -> int:
    """Keys and values for every hidden unit: 2 B S L h x precision (article, "KV Cache")."""
    return ceil_div(2 * batch * length * shape.layers * shape.hidden_size * bits, 8)


def activation_bytes(
    shape: ArticleShape,
    batch: int,
    length: int,
    coefficients: ArticleCoefficients = CALCULATOR,
    recomputed: str | None = None,
    ranks: int = 1,
) -> int:
    """One layer's activations: B S h (34 + 5 S a / h) x 4 (article, "Activations").

    The article names recomputation and sequence parallelism, and leaves their formulas to its
    reference, Korthikanti et al. 2022: what is `selective`ly recomputed keeps no scores, `full`
    keeps a layer's input, and `ranks` that share each sequence divide what is kept.
    """
    h, a = shape.hidden_size, shape.heads
    linear, scores = coefficients.activation_linear, coefficients.activation_scores
    a_token = linear * h + scores * length * a
    if recomputed is not None:
        a_token = (linear if recomputed == "selective" else coefficients.activation_recomputed) * h
    return ceil_div(math.ceil(coefficients.activation_scale * batch * length * a_token), ranks)


def gradient_bytes(trainable: int, coefficients: ArticleCoefficients = CALCULATOR) -> int:
    """4 bytes a trainable parameter (article, "Gradients")."""
    return math.ceil(coefficients.gradient_bytes * trainable)


def optimizer_state_bytes(
    rule: str, trainable: int, coefficients: ArticleCoefficients = CALCULATOR
) -> int:
    """8, 2 or 4 bytes a trainable parameter (article, "Optimizer States")."""
    return math.ceil(coefficients.optimizer_bytes(rule) * trainable)


def inference_components(
    shape: ArticleShape,
    batch: int,
    length: int,
    bits: int,
    coefficients: ArticleCoefficients = CALCULATOR,
) -> Components:
    """Weights + KV cache + activations (article, "Inference")."""
    return Components(
        weights_bytes=weight_bytes(shape, bits),
        kv_cache_bytes=kv_cache_bytes(shape, batch, length, bits),
        activations_bytes=activation_bytes(shape, batch, length, coefficients),
    )


def training_components(
    shape: ArticleShape,
    batch: int,
    length: int,
    bits: int,
    rule: str,
    trainable: int,
    coefficients: ArticleCoefficients = CALCULATOR,
    recomputed: str | None = None,
    ranks: int = 1,
) -> Components:
    """Inference (the KV cache too) + gradients + optimizer states (article, "Training").

    `recomputed` and `ranks` as for `activation_bytes`; the cache is of one rank's tokens.
    """
    return replace(
        inference_components(shape, batch, ceil_div(length, ranks), bits, coefficients),
        activations_bytes=activation_bytes(shape, batch, length, coefficients, recomputed, ranks),
        gradients_bytes=gradient_bytes(trainable, coefficients),
        optimizer_states_bytes=optimizer_state_bytes(rule, trainable, coefficients),
    )


def estimate_article(case: Case, coefficients: ArticleCoefficients = CALCULATOR) -> MemoryReport:
    """Answer a case by the article's formulas.

    The length is the case's `sequence_length`. The article knows one instant, so the phases are
    `load` and the one at the peak.

    Raises:
        ModelError: when the configuration cannot be read, or lacks what the article asks for.
        UnsupportedError: when the article has no rule for the optimizer, or the number of
            (trainable) parameters is not known for the model's type.
    """
    config = load_config(case.model)
    shape = read_shape(config)
    batch, length = case.batch_size, case.sequence_length
    bits = PRECISION_BITS[case.quantization or case.dtype]
    trainable = 0
    if case.training:
        rule = _optimizer_rule(case.optimizer)
        trainable = _trainable_parameters(case, config, shape)
        recomputed = case.recompute_granularity if case.gradient_checkpointing else None
        parts = training_components(
            *(shape, batch, length, bits, rule, trainable, coefficients),
            recomputed=recomputed,
            ranks=case.sp_size,
        )
    else:
        parts = inference_components(shape, batch, length, bits, coefficients)
    phase = "backward" if case.training else "decode"
    weights, total = parts.weights_bytes, parts.total_bytes
    return MemoryReport(
        source="article",
        case=case.to_dict(),
        parameters=Parameters(total=shape.parameters, trainable=trainable),
        peak=Peak(
            phase=phase,
            requested_bytes=None,
            allocated_bytes=total,
            reason="the article adds up everything at one instant",
        ),
        phases=(Phase("load", weights, weights), Phase(phase, total, total)),
        components=parts,
        assumptions=(*config.notes, *_assumptions(case, config.config, shape)),
    )


_ALIASES = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "num_attention_heads": (
        "num_attention_heads",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
    ),
}

_MAX_SIZE = 2**31 - 1


def read_shape(config: ModelConfig) -> ArticleShape:
    """Read what the article asks for from a configuration.

    The parameter count is the catalogue's, or the one that `estimator.families` derives.

    Raises:
        ModelError: when a field is missing or is not a size.
        UnsupportedError: when the parameter count cannot be known.
    """
    return ArticleShape(
        parameters=_parameters(config),
        hidden_size=_read_size(config, "hidden_size"),
        layers=_read_size(config, "num_hidden_layers"),
        heads=_read_size(config, "num_attention_heads"),
    )


def _read_size(config: ModelConfig, name: str) -> int:
    for alias in _ALIASES[name]:
        if alias not in config.config:
            continue
        value = config.config[alias]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _MAX_SIZE:
            raise ModelError(
                f"{alias} of {config.name} is {show_value(value)}, "
                f"but must be a whole number from 1 to {_MAX_SIZE}"
            )
        return value
    raise ModelError(
        f"the article's formulas need {name}, which the configuration of "
        f"{config.name} ({config.model_type}) lacks: use gpumem trace for such a model"
    )


def _parameters(config: ModelConfig) -> int:
    if config.parameters is not None:
        return config.parameters
    from estimator.families import count_parameters

    with suppress(UnsupportedError):
        count = count_parameters(config)
        if count is not None:
            return count
    return _spec(config, "the number of parameters").parameters


def _trainable_parameters(case: Case, config: ModelConfig, shape: ArticleShape) -> int:
    """Return all parameters, or those of the adapters: r (inputs + outputs) a target."""
    lora = case.lora
    if lora is None:
        return shape.parameters
    spec = _spec(config, "the number of the adapters' parameters")
    linears = [linear for layer in spec.layers for linear in layer.linears]
    if lora.target_modules != "all-linear":
        linears = [item for item in (*linears, spec.head) if item.name in lora.target_modules]
    if not linears:
        raise CaseError(
            f"lora.target_modules is {show_value(lora.target_modules)}, "
            f"but {config.name} has no such linear modules",
            "lora.target_modules",
        )
    magnitudes = 1 if lora.use_dora else 0
    return sum(
        lora.r * (linear.inputs + linear.outputs) + magnitudes * linear.outputs
        for linear in linears
    )


def _spec(config: ModelConfig, what: str) -> ModelSpec:
    from estimator.families import parse_spec

    try:
        return parse_spec(config)
    except UnsupportedError:
        raise UnsupportedError(
            f"the article's formulas need {what}, which is not known for {config.name} "
            f"(model type {show_value(config.model_type)}): use gpumem trace"
        ) from None


def _optimizer_rule(optimizer: str) -> str:
    rule = OPTIMIZER_RULES.get(optimizer)
    if rule is None:
        raise UnsupportedError(
            f"the article has no rule for optimizer {optimizer}: take --formulas architecture, "
            "or an AdamW or SGD optimizer"
        )
    return rule


def _assumptions(case: Case, config: dict[str, Any], shape: ArticleShape) -> tuple[str, ...]:
    """Return the faults and simplifications of the article that matter for a case."""
    lines = [
        "activations: those of one layer only, times 4, with attention scores whatever the kernel",
        *_cache_faults(config, shape),
    ]
    if case.quantization is not None:
        size = "1 byte" if case.quantization == "int8" else "0.5 bytes"
        lines.append(f"{case.quantization}: {size} for every parameter and every KV cache entry")
    if case.training:
        lines += _training_faults(case)
    elif case.max_new_tokens:
        lines.append(f"the {case.max_new_tokens} new tokens are not counted")
    return tuple(lines)


def _cache_faults(config: dict[str, Any], shape: ArticleShape) -> list[str]:
    if "kv_lora_rank" in config:
        return ["latent attention ignored: the KV cache is counted as if uncompressed"]
    groups = config.get("num_key_value_heads", config.get("num_kv_heads"))
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        groups = 1
    if isinstance(groups, int) and 0 < groups < shape.heads:
        return [
            f"grouped-query attention ignored: the KV cache is counted for {shape.heads} heads, "
            f"not {groups}"
        ]
    return []


def _training_faults(case: Case) -> list[str]:
    lines = ["a KV cache is counted in training too", "no buffers for logits and loss"]
    if case.dtype != "float32":
        lines.append(f"gradients and optimizer states in fp32, though the weights are {case.dtype}")
    if case.gradient_checkpointing:
        kept = "34 B S h" if case.recomputes_attention else "2 B S h"
        lines.append(f"{case.recompute_granularity} recomputation: {kept} of one layer, times 4")
    lines += sequence_parallel_lines(case)
    if case.mixed_precision is not None:
        lines.append(f"mixed precision {case.mixed_precision} ignored")
    if case.lora is not None:
        lines.append("the adapters' own weights are not counted")
    if case.optimizer.startswith("paged_"):
        lines.append("paged optimizer states are counted as if they stayed on the GPU")
    rule = OPTIMIZER_RULES[case.optimizer]
    if rule == "sgd" and case.optimizer != "sgd":
        lines.append(f"{case.optimizer}: the article's rule for one state (SGD) is taken")
    elif case.optimizer == "sgd" and not case.momentum:
        lines.append("SGD without momentum is given a state all the same")
    return lines
