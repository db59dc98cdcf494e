"""Linears and norms: the parts with parameters of which every block is made."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear map of `inputs` to `outputs` features.

    `name` is the module's last name (`q_proj`), by which adapters target it.
    """

    name: str
    inputs: int
    outputs: int
    bias: bool = False
    adaptable: bool = True
    """Whether an adapter may sit on it: not where peft takes its name for stacked experts."""
    own_class: bool = False
    """Whether it is of a class of the model's own (Falcon): the bias is added by an operation of
    its own, and transformers does not quantize it (integrations/bitsandbytes.py takes `nn.Linear`
    itself only)."""
    bypassed: bool = False
    """Whether the code multiplies by its weight itself unless it is quantized, so that an adapter
    on it never runs (Jamba's time steps)."""
    fp32: bool = False
    """Whether its weight stays in fp32, whatever the model's dtype."""
    kept_whole: bool = False
    """Whether transformers does not quantize it, as its class asks (`_keep_in_fp32_modules`)."""
    tied: bool = False
    """Whether its weight is another's, too: transformers then does not quantize it either."""
    sharing: str = ""
    """Which of several layers with the same parameters (Zamba) it is in, where there are several:
    the `first`, the `last`, or one `between`. Backward begins with the last."""

    @property
    def quantizable(self) -> bool:
        """Whether transformers quantizes it."""
        return not (self.own_class or self.kept_whole or self.tied)

    @property
    def weight_count(self) -> int:
        """Elements of the weight."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalization over `size` features.

    `kind` names the code that computes it:

    - `rms`: in fp32, scaled after the cast back (Llama);
    - `rms_fp32_scale`: scaled in fp32 by 1 + weight (Gemma);
    - `rms_scaled_before_cast`: scaled in fp32 by the weight (OLMo 2); `rms_fp32_weight` by a copy
      of it in fp32 (Helium); `rms_unweighted` without parameters (NanoChat);
    - `rms_unnamed`: Llama's, whose fp32 product no name holds (Llama 4); `l2` without a weight;
    - `rms_pow`: in fp32 by a power of the mean square, scaled by a copy of the weight in fp32
      (Gemma 4); `rms_pow_unweighted` without a weight;
    - `centered`: mean and variance in fp32 without a kernel of its own (Cohere);
    - `layer`: torch's LayerNorm with bias; `layer_plus_one` scales by 1 + weight (Nemotron);
    - `layer_no_bias`: without bias; `layer_fp32`: in fp32, without parameters (OLMo).

    `groups` is the number of rows that have weights of their own (Cohere's query heads), `sharing`
    as for `Linear`.
    """

    kind: str
    size: int
    groups: int = 1
    sharing: str = ""

    @property
    def shapes(self) -> tuple[int, ...]:
        """Elements of each of its parameters."""
        if self.kind in ("layer_fp32", "rms_unweighted", "rms_pow_unweighted", "l2"):
            return ()
        biased = self.kind in ("layer", "layer_plus_one")
        return (self.size * self.groups,) * (2 if biased else 1)
