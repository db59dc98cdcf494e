"""`ModelSpec`: a model's architecture in the estimator's own words, read from its config.

A spec is made of the same parts for every family: linears, norms, attentions, MLPs, layers. The
modules in `estimator.families` translate each `model_type`'s configuration into it.
"""

from __future__ import annotations

from collections.abc import Iterator
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

    @property
    def weight_count(self) -> int:
        """Elements of the weight."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalization over `size` features.

    `kind`: `rms` (computed in fp32, scaled after the cast back: Llama), `rms_fp32_scale` (scaled
    in fp32 by 1 + weight: Gemma), `layer` (torch's LayerNorm with bias).
    """

    kind: str
    size: int

    @property
    def shapes(self) -> tuple[int, ...]:
        """Elements of each of its parameters."""
        return (self.size, self.size) if self.kind == "layer" else (self.size,)


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention: `heads` query heads, `kv_heads` key and value heads of `head_dim` features.

    `fused` is one linear for queries, keys and values (GPT-2), else there are three. `window` is
    the sliding window in tokens, or None. `rotary` is whether positions rotate queries and keys.
    """

    heads: int
    kv_heads: int
    head_dim: int
    query: Linear | None
    key: Linear | None
    value: Linear | None
    fused: Linear | None
    output: Linear
    qk_norm: Norm | None = None
    window: int | None = None
    rotary: bool = True
    dropout: float = 0.0
    eager: str = "fp32_softmax"
    """How the eager path computes its softmax: `fp32_softmax` (Llama) or `plain` (GPT-2)."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        inputs = (self.fused, self.query, self.key, self.value)
        return (*(linear for linear in inputs if linear is not None), self.output)

    @property
    def groups(self) -> int:
        """Query heads a key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Mlp:
    """A feed-forward block: gated (`gate`, `up`, `down`) or plain (`up`, `down`)."""

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        return tuple(linear for linear in (self.gate, self.up, self.down) if linear is not None)


@dataclass(frozen=True, slots=True)
class Layer:
    """A pre-norm decoder layer: norm, attention, residual, norm, MLP, residual.

    `dropout` follows the attention's and the MLP's output where it is not 0. `holds_attended` is
    whether the layer's code still names the attention's output while the MLP runs (GPT-2).
    """

    input_norm: Norm
    attention: Attention
    post_norm: Norm
    mlp: Mlp
    dropout: float = 0.0
    holds_attended: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        return (*self.attention.linears, *self.mlp.linears)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Its norms; a query/key norm counts twice."""
        qk = self.attention.qk_norm
        return (self.input_norm, self.post_norm, *((qk, qk) if qk is not None else ()))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A causal language model. Counts are elements, not bytes.

    `position_rows` is the number of learned positions (0 for none). `rope_tables` counts the fp32
    buffers of `head_dim / 2` elements that hold inverse frequencies. `embedding_scaled` is whether
    embeddings are multiplied by a buffer (Gemma).
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    final_norm: Norm
    head: Linear
    tied: bool
    position_rows: int = 0
    embedding_dropout: float = 0.0
    embedding_scaled: bool = False
    rope_tables: int = 2
    max_positions: int | None = None

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(self.parameter_counts())

    def parameter_counts(self) -> Iterator[int]:
        """Yield the elements of each parameter tensor, in module order, tied ones once."""
        yield self.vocab_size * self.hidden_size
        if self.position_rows:
            yield self.position_rows * self.hidden_size
        for layer in self.layers:
            for linear in layer.linears:
                yield linear.weight_count
                if linear.bias:
                    yield linear.outputs
            for norm in layer.norms:
                yield from norm.shapes
        yield from self.final_norm.shapes
        if not self.tied:
            yield self.head.weight_count
        if self.head.bias:
            yield self.head.outputs

    @property
    def head_dim(self) -> int:
        """Features of an attention head (of the first layer)."""
        return self.layers[0].attention.head_dim

    @property
    def heads(self) -> int:
        """Query heads (of the first layer)."""
        return self.layers[0].attention.heads
