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
    adaptable: bool = True
    """Whether an adapter may sit on it: not where peft takes its name for stacked experts."""
    own_class: bool = False
    """Whether it is of a class of the model's own (Falcon): the bias is added by an operation of
    its own, and transformers does not quantize it (integrations/bitsandbytes.py takes `nn.Linear`
    itself only)."""
    fp32: bool = False
    """Whether its weight stays in fp32, whatever the model's dtype."""

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
    - `centered`: mean and variance in fp32 without a kernel of its own (Cohere);
    - `layer`: torch's LayerNorm with bias; `layer_plus_one` scales by 1 + weight (Nemotron);
    - `layer_no_bias`: without bias; `layer_fp32`: in fp32, without parameters (OLMo).

    `groups` is the number of rows that have weights of their own (Cohere's query heads).
    """

    kind: str
    size: int
    groups: int = 1

    @property
    def shapes(self) -> tuple[int, ...]:
        """Elements of each of its parameters."""
        if self.kind in ("layer_fp32", "rms_unweighted", "l2"):
            return ()
        biased = self.kind in ("layer", "layer_plus_one")
        return (self.size * self.groups,) * (2 if biased else 1)


@dataclass(frozen=True, slots=True)
class Latent:
    """What multi-head latent attention adds: keys and values out of a compressed latent.

    `down` makes the latent of `rank` features and, beside it, the `rope_dim` features of a key
    that positions rotate, one for all heads; both are what is cached. `up` makes of the latent
    each head's other key features (`nope_dim`) and its values. `query_down` and `query_norm`
    compress the queries alike, or are None.

    Source: DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1.
    """

    rank: int
    rope_dim: int
    nope_dim: int
    down: Linear
    norm: Norm
    up: Linear
    query_down: Linear | None = None
    query_norm: Norm | None = None
    rotation: str = "interleaved"
    """How positions rotate: `interleaved` pairs (DeepSeek-V3), `halves` (Llama), `complex`
    (DeepSeek-V2)."""


@dataclass(frozen=True, slots=True)
class DeltaNet:
    """A gated delta net in attention's place: a recurrent state instead of keys and values.

    `inputs` are its projections: of queries, keys, values and the gate side by side and of the
    betas and decays (`ordered`, Qwen3-Next), or one each (Qwen 3.5).

    Source: https://arxiv.org/abs/2412.06464.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    inputs: tuple[Linear, ...]
    norm: Norm
    ordered: bool = False

    @property
    def channels(self) -> int:
        """Features that the convolution sees: queries, keys and values."""
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim


@dataclass(frozen=True, slots=True)
class Attention:
    """Self-attention: `heads` query heads, `kv_heads` key and value heads of `head_dim` features.

    `fused` is one linear for queries, keys and values (GPT-2), else there are three. `window` is
    the sliding window in tokens, or None. `rotary` is whether positions rotate queries and keys:
    whole heads as Llama does, unless `rotary_dim` and `rotary_style` say otherwise.
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
    rotary_dim: int | None = None
    """Features of a head that positions rotate; None for all of them."""
    recipe: str = "standard"
    """Which code computes it, where it is not Llama's or GPT-2's: a key of `ATTENTIONS` in
    estimator/architecture/layer.py."""
    rotary_style: str = "tables"
    """Which code rotates queries and keys: a style of estimator/architecture/rotary.py."""
    key_norm: Norm | None = None
    """The keys' norm where it differs from the queries' (OLMo 2: over all heads at once)."""
    norm_after_projections: bool = False
    """Whether queries and keys are normalized when values are projected, too (Gemma 3), and not
    each at once (Qwen 3)."""
    norm_after_rotary: bool = False
    """Whether queries and keys are normalized after they are rotated (HunYuan)."""
    norm_by_head: bool = False
    """Whether each head has a norm module of its own (StableLM 2 12B)."""
    query_multiplied: bool = False
    """Whether the query's projection is multiplied by the scale at once (OPT)."""
    query_scaled: bool = False
    """Whether rotated queries are multiplied by a factor of their position (Ministral 3)."""
    softcap: bool = False
    """Whether the eager path caps scores by a tanh (Gemma 2); the other paths ignore it."""
    output_norm: Norm | None = None
    """The norm in front of the output's projection (BitNet)."""
    masked: bool = False
    """Whether sdpa is given a mask even where none is needed (Falcon)."""
    enable_gqa: bool = True
    """Whether sdpa is told that heads are grouped; else no fused kernel takes them (Falcon)."""
    distances: str | None = None
    """By what scores are biased by distance: by a sequence's `tokens` or by all `positions`."""
    positions: int | None = None
    """Rows of a table of positions that each layer has of its own (GPT-J)."""
    value_dim: int | None = None
    """Features of a head's values where they differ from the keys'."""
    latent: Latent | None = None
    delta: DeltaNet | None = None
    sinks: bool = False
    """Whether each query head has a learned score beside the keys' (gpt-oss)."""

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's or norm's."""
        if self.delta is not None:
            heads = self.delta.value_heads
            return heads, heads, self.delta.channels * self.delta.kernel
        return (self.heads,) if self.sinks else ()

    @property
    def value_size(self) -> int:
        """Features of a head's values."""
        return self.value_dim or self.head_dim

    @property
    def cached_features(self) -> tuple[int, int]:
        """Features a token of the two tensors that a cache keeps: keys and values, or latents."""
        if self.latent is not None:
            return self.latent.rank, self.latent.rope_dim
        return self.kv_heads * self.head_dim, self.kv_heads * self.value_size

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Norms of queries, keys and the output's projection, one entry a module."""
        if self.delta is not None:
            return (self.delta.norm,)
        if self.latent is not None:
            own = (self.latent.query_norm, self.latent.norm)
            return tuple(norm for norm in own if norm is not None)
        behind = () if self.output_norm is None else (self.output_norm,)
        if self.qk_norm is None:
            return behind
        if self.norm_by_head:
            return (*(self.qk_norm,) * (self.heads + self.kv_heads), *behind)
        return (self.qk_norm, self.key_norm or self.qk_norm, *behind)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        inputs: tuple[Linear | None, ...] = (self.fused, self.query, self.key, self.value)
        if self.delta is not None:
            inputs = self.delta.inputs
        if self.latent is not None:
            inputs = (self.latent.query_down, self.query, self.latent.down, self.latent.up)
        return (*(linear for linear in inputs if linear is not None), self.output)

    @property
    def groups(self) -> int:
        """Query heads a key/value head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True, slots=True)
class Mlp:
    """A feed-forward block: gated (`gate`, `up`, `down`) or plain (`up`, `down`).

    `fused_gate` is whether `up` makes the gate's and up's features side by side (Phi-3),
    `inner_norm` the norm in front of `down` (BitNet).
    """

    gate: Linear | None
    up: Linear
    down: Linear
    activation: str
    fused_gate: bool = False
    inner_norm: Norm | None = None

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's: xIELU's two, and the inner norm's."""
        norm = self.inner_norm.shapes if self.inner_norm is not None else ()
        return (*norm, 1, 1) if self.activation == "xielu" else norm

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        return tuple(linear for linear in (self.gate, self.up, self.down) if linear is not None)


@dataclass(frozen=True, slots=True)
class Moe:
    """A mixture of experts: `active` of `experts` gated MLPs of `width` features for each token.

    All experts of a layer are two stacked parameters (transformers 5), and the router is a
    parameter: [experts, hidden], [experts, 2 * width, hidden], [experts, hidden, width].
    """

    hidden: int
    width: int
    experts: int
    active: int
    activation: str
    router: str = "softmax"
    """How experts are chosen; a name of estimator/architecture/routers.py:

    - `softmax` over all, then the best (Mixtral); `softmax_fp32` of logits in fp32 and
      `softmax_groups` from the best groups of experts (DeepSeek-V2);
    - `top_softmax` over the best in fp32 (Granite), `top_softmax_half` in the model's dtype
      (gpt-oss);
    - `sigmoid` of each (MiniMax-M2), `sigmoid_groups` from the best groups (DeepSeek-V3);
    - `sparse_mixer` (Phi-3.5-MoE); `corrected_softmax` chooses by scores plus a bias (ERNIE);
      `linear_softmax` of a linear in fp32 (HunYuan).
    """
    groups: int = 1
    active_groups: int = 1
    normed: bool = False
    """Whether the chosen scores are divided by their sum."""
    scores_fp32: bool = False
    """Whether the scores stay in fp32 (Mixtral), and with them the weighted outputs."""
    shared: Mlp | None = None
    """An expert that sees all tokens."""
    shared_order: str = "last"
    """When the shared expert runs: `first`, before the router (Qwen2-MoE), `last`, after the
    experts, or `outside`, once the block has returned (Granite)."""
    shared_flat: bool = False
    """Whether the shared expert sees tokens as rows, [B * Q, hidden]."""
    shared_gate: Linear | None = None
    gate_style: str = "halves"
    """How the gate's and up's product is read: `halves`, or `clamped_pairs` (gpt-oss)."""
    biased: bool = False
    """Whether router and experts have biases."""
    jitter: bool = False
    """Whether training multiplies the input by noise, for the block and for its router."""
    router_name: str | None = None
    """The router's name where it is a linear of its own kind, which no adapter may wrap."""
    router_linear: Linear | None = None
    """The router where it is a linear like others (HunYuan)."""
    router_fp32: bool = False
    """Whether the router's weight stays in fp32, whatever the model's dtype."""
    bias_frozen: bool = False
    """Whether what corrects the scores is a parameter that never trains, and no buffer."""
    every: bool = False
    """Whether every expert computes every token, which scores then scale (Llama 4)."""
    adapter_names: tuple[str, ...] = ()
    """Module names that peft takes for the router, the gates, the ups and the downs of stacked
    experts; empty where it adapts none of them (peft/utils/transformers_weight_conversion.py)."""

    @property
    def up_features(self) -> int:
        """Features that the gate's and up's product has."""
        return 2 * self.width

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        shared = self.shared.linears if self.shared is not None else ()
        beside = (self.shared_gate, self.router_linear)
        return (*shared, *(linear for linear in beside if linear is not None))

    @property
    def frozen(self) -> int:
        """Elements of a parameter that never trains."""
        return self.experts if self.bias_frozen else 0

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's."""
        names = ("router", "gate_up", "down")
        weights = tuple(self.stacked(name) for name in names[self.router_linear is not None :])
        features = (1, self.up_features, self.hidden) if self.biased else ()
        return (*weights, *(self.experts * count for count in features))

    def stacked(self, name: str) -> int:
        """Return the elements of `router`, `gate_up` or `down`."""
        inner = {"router": 1, "gate_up": self.up_features, "down": self.width}[name]
        return self.experts * inner * self.hidden

    def adapted(self, targets: str | tuple[str, ...]) -> tuple[str, ...]:
        """Return which of `router`, `gate_up` and `down` carry adapters for target modules."""
        if not self.adapter_names:
            return ()
        router, gate, up, down = self.adapter_names
        needs = {"router": (router,), "gate_up": (gate, up), "down": (down,)}
        if self.router_linear is not None:
            del needs["router"]
        if targets == "all-linear":
            return tuple(needs)
        return tuple(name for name, parts in needs.items() if set(parts) <= set(targets))

    def adapter_counts(self, name: str, r: int) -> tuple[int, int]:
        """Return the elements of A and B; the gates and ups share an adapter of twice the rank."""
        if name == "router":
            return r * self.hidden, self.experts * r
        rank = self.experts * r * (2 if name == "gate_up" else 1)
        inner = self.up_features if name == "gate_up" else self.width
        return rank * self.hidden, rank * inner


@dataclass(frozen=True, slots=True)
class Layer:
    """A decoder layer: norm, attention, residual, norm, MLP, residual.

    `input_norm` and `post_norm` stand before the attention and the MLP, `attention_out_norm` and
    `mlp_out_norm` behind them; each may be missing. `parallel` is whether the MLP reads what the
    attention read and both are added to the residual at the end (Phi, Cohere).

    `dropout` follows the attention's and the MLP's output where it is not 0; `attended_dropout`
    is whether it follows the attention's too. `holds_attended` is whether the layer's code still
    names the attention's output while the MLP runs (GPT-2), `holds_attended_input` whether it
    names the attention's input (StableLM). `residual_scaled` is whether what is
    added to the residual is multiplied by a number (Granite).
    """

    input_norm: Norm | None
    attention: Attention
    post_norm: Norm | None
    mlp: Mlp | Moe
    dropout: float = 0.0
    holds_attended: bool = False
    attention_out_norm: Norm | None = None
    mlp_out_norm: Norm | None = None
    parallel: bool = False
    attended_dropout: bool = True
    holds_attended_input: bool = False
    residual_scaled: bool = False
    recipe: str = "pre_norm"
    """Which code runs the layer: `pre_norm`, or a key of `LAYERS` in
    estimator/architecture/layer.py."""

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        return (*self.attention.linears, *self.mlp.linears)

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Its norms, those of queries and keys first."""
        around = (self.input_norm, self.post_norm, self.attention_out_norm, self.mlp_out_norm)
        return (*self.attention.norms, *(norm for norm in around if norm is not None))


@dataclass(frozen=True, slots=True)
class HeadTransform:
    """What stands between the last hidden states and the head: a linear, an activation, a norm."""

    dense: Linear
    activation: str
    norm: Norm


@dataclass(frozen=True, slots=True, eq=False)
class ModelSpec:
    """A causal language model. Counts are elements, not bytes. Equal only to itself.

    `position_rows` is the number of learned positions (0 for none). `rope_tables` counts the fp32
    buffers of half a rotated head's elements that hold inverse frequencies: two a kind of table.
    `embedding_scaled` is whether the embedding module multiplies what it looks up (Gemma),
    `embedding_multiplied` whether the model does (Granite).
    `buffers` are the bytes of buffers other than those. `masks` are the windows of the masks that
    the code builds (None for a full one) where it builds others than the layers use.
    `embedding_held` is whether the model's code
    still names the embeddings after a dropout. `logits_scaled` is whether logits are multiplied
    by a number (Cohere, Granite), `logits_softcap` whether a tanh caps them (Gemma 2).
    `embedding_norm` stands behind the embeddings (NanoChat).
    `positions_counted` is whether training counts positions from the attention mask, for each
    sequence (OPT); `position_offset` whether learned positions are shifted before the look-up.
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    layers: tuple[Layer, ...]
    final_norm: Norm | None
    head: Linear
    tied: bool
    position_rows: int = 0
    embedding_dropout: float = 0.0
    embedding_scaled: bool = False
    rope_tables: int = 2
    max_positions: int | None = None
    buffers: tuple[int, ...] = ()
    masks: tuple[int | None, ...] = ()
    positions_counted: bool = False
    position_offset: bool = False
    embedding_held: bool = True
    embedding_multiplied: bool = False
    logits_scaled: bool = False
    logits_softcap: bool = False
    embedding_norm: Norm | None = None
    head_transform: HeadTransform | None = None
    project_in: Linear | None = None
    """The linear from narrower embeddings to the hidden size (OPT-350m)."""
    project_out: Linear | None = None
    """The linear from the hidden size back to what the head reads."""
    embedding_named: bool = True
    """Whether the model's code names, beside the layers' input, the embeddings before the norm."""
    positions_expanded: bool = False
    """Whether rotary tables are made for each sequence in training (ModernBERT)."""
    token_types: int = 0
    """Rows of a learned table of token types (BERT)."""
    fixed_positions: int = 0
    """Rows of a table of positions that is computed, not learned (XGLM)."""
    fixed_positions_cast: bool = False
    """Whether that table is fp32 until the first forward pass casts it (CTRL)."""
    checkpointable: bool = True
    """Whether the model's class supports gradient checkpointing."""
    mask_style: str = "additive"
    """Which masks there are: eager attention's are `additive` ones in the weights' dtype, or
    `boolean` ones, which backward needs (MPT); Falcon makes one `always`, or one `by_head`; BERT,
    where it is no decoder, has `none`."""
    attentions: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2")
    """Attentions that the model's class supports and that have a formula; without sdpa
    transformers takes eager instead."""
    caches: tuple[str, ...] = ("dynamic", "static", "quantized", "paged")
    """Caches that the model's class runs with and that have a formula."""
    head_input_scaled: bool = False
    """Whether the head's input is divided by a number (MiniCPM3)."""
    tables_by_sequence: bool = False
    """Whether each sequence has a cos and a sin of its own (Qwen 3.5's three positions)."""
    returns_probabilities: bool = False
    """Whether layers return eager attention's probabilities, which the model's loop then holds
    until the next layer returns (GPT-J)."""

    @property
    def outer_linears(self) -> tuple[Linear, ...]:
        """Linears outside the layers that adapters sit on and that are quantized."""
        before_head = None if self.head_transform is None else self.head_transform.dense
        outer = (self.project_in, self.project_out, before_head)
        return tuple(linear for linear in outer if linear is not None)

    @property
    def embedding_size(self) -> int:
        """Features of the embeddings."""
        return self.hidden_size if self.project_in is None else self.project_in.inputs

    @property
    def positions_bounded(self) -> bool:
        """Whether tables of positions end, so that no longer sequence can run."""
        attention = self.layers[0].attention
        tables = (self.position_rows, self.fixed_positions, attention.positions)
        return any(tables) or attention.distances == "positions"

    @property
    def parameters(self) -> int:
        """Number of parameters, tied ones once."""
        return sum(self.parameter_counts()) + sum(self.frozen_counts())

    def frozen_counts(self) -> Iterator[int]:
        """Yield the elements of each parameter that never trains; they are in fp32."""
        for layer in self.layers:
            if isinstance(layer.mlp, Moe) and layer.mlp.frozen:
                yield layer.mlp.frozen

    def fp32_counts(self) -> Iterator[int]:
        """Yield the elements of each weight that trains and stays in fp32."""
        for layer in self.layers:
            if isinstance(layer.mlp, Moe) and layer.mlp.router_fp32:
                yield layer.mlp.stacked("router")
            yield from (linear.weight_count for linear in layer.linears if linear.fp32)

    def parameter_counts(self) -> Iterator[int]:
        """Yield the elements of each parameter that may train, in module order, tied ones once."""
        yield self.vocab_size * self.embedding_size
        for projection in (self.project_in, self.project_out):
            if projection is not None:
                yield projection.weight_count
        if self.position_rows:
            yield self.position_rows * self.hidden_size
        if self.token_types:
            yield self.token_types * self.hidden_size
        if self.embedding_norm is not None:
            yield from self.embedding_norm.shapes
        for layer in self.layers:
            for linear in layer.linears:
                yield linear.weight_count
                if linear.bias:
                    yield linear.outputs
            for norm in layer.norms:
                yield from norm.shapes
            yield from layer.attention.parameters_apart
            yield from layer.mlp.parameters_apart
        if self.final_norm is not None:
            yield from self.final_norm.shapes
        if self.head_transform is not None:
            dense = self.head_transform.dense
            yield dense.weight_count
            if dense.bias:
                yield dense.outputs
            yield from self.head_transform.norm.shapes
        if not self.tied:
            yield self.head.weight_count
        if self.head.bias:
            yield self.head.outputs

    @property
    def head_dim(self) -> int:
        """Features of an attention head (of the first layer)."""
        return self.layers[0].attention.head_dim

    @property
    def rotary_dim(self) -> int:
        """Features of a head that positions rotate (of the first layer)."""
        return self.layers[0].attention.rotary_dim or self.head_dim

    @property
    def heads(self) -> int:
        """Query heads (of the first layer)."""
        return self.layers[0].attention.heads
