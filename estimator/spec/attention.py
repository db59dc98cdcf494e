"""Attention blocks: grouped heads, latents (MLA), and what may stand in their place."""

from __future__ import annotations

from dataclasses import dataclass

from estimator.spec.linears import Linear, Norm
from estimator.spec.mixers import Mixer


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
    rescaled: bool = False
    """Whether latents, and queries made of theirs, are multiplied by a number (LongCat)."""
    rotation: str = "interleaved"
    """How positions rotate: `interleaved` pairs (DeepSeek-V3), `halves` (Llama), `complex`
    (DeepSeek-V2)."""


@dataclass(frozen=True, slots=True)
class Indexer:
    """What chooses `chosen` keys for each query (DeepSeek's sparse attention).

    `query` makes `heads` heads of `head_dim` features of the compressed queries, `key` and `norm`
    one head of keys, and `weights` one number a head, by which the scores of heads are summed.

    Source: DeepSeek-V3.2-Exp, section 2.1 (the lightning indexer).
    """

    heads: int
    head_dim: int
    chosen: int
    query: Linear
    key: Linear
    norm: Norm
    weights: Linear
    rotation: str = "halves"
    """How positions rotate, as of `Latent`."""


@dataclass(frozen=True, slots=True)
class HandedChoice:
    """Which keys each query attends to, handed from layer to layer (GLM-5): [B, Q, most] int32.

    `read` is whether a later layer is handed this one's, `of_previous` whether the layer before
    has made its own, of which this is then the first reader.
    """

    most: int
    read: bool
    of_previous: bool


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
    """How the eager path computes its softmax: `fp32_softmax` and back (Llama), `plain` (BERT),
    `plain_named`, whose scores keep a name (Megatron's BERT), `plain_cast`, to the values' type
    (GPT-2), which is another only under autocast, or `shifted`, of what the highest score is
    subtracted from (MiMo)."""
    bidirectional: bool = False
    """Whether every token sees all others, so that eager has no mask to add (BERT, unless it is
    configured as a decoder)."""
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
    key_multiplied: bool = False
    """Whether the key's projection is multiplied by a number at once (Falcon-H1)."""
    value_scaled: bool = False
    """Whether the value's projection is multiplied by a number (MiMo)."""
    query_scaled: bool = False
    """Whether rotated queries are multiplied by a factor of their position (Ministral 3)."""
    softcap: bool = False
    """Whether the eager path caps scores by a tanh (Gemma 2); the other paths ignore it."""
    output_norm: Norm | None = None
    """The norm in front of the output's projection (BitNet)."""
    gate: Linear | None = None
    """What makes a gate of the attention's input, by which its output is multiplied in front of the
    output's projection: a number a feature, or one a head."""
    gate_function: str = "sigmoid"
    """The gate's function: `sigmoid` of what is projected beside queries and keys (AFMoE), or
    `softplus` in fp32 of what is projected once the heads have attended (Laguna)."""
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
    indexer: Indexer | None = None
    """What chooses the keys that each query attends to; keys and values are cached then, and not
    latents."""
    handed_choice: HandedChoice | None = None
    """Where layers without an indexer read the choice of one before them."""
    mixer: Mixer | None = None
    """What keeps a state instead of keys and values; it stands in attention's place."""
    sinks: bool = False
    """Whether each query head has a learned score beside the keys' (gpt-oss)."""

    adapters: tuple[tuple[Linear, Linear], ...] = ()
    """Two linears each, through a narrow rank, that are added to queries, keys and values
    (Zamba 2)."""
    shares_states: bool = False
    """Whether the model's code names its keys and values while the layers run (Gemma 4)."""
    states_read: bool = False
    """Whether later layers attend to those."""
    reads_states: bool = False
    """Whether it attends to an earlier layer's keys and values, and has none of its own."""
    reads_last: bool = False
    """Whether it is the last layer that reads those."""

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's or norm's."""
        if self.mixer is not None:
            return self.mixer.parameters_apart
        return (self.heads,) if self.sinks else ()

    @property
    def rotated_features(self) -> int:
        """Features of a head that positions rotate."""
        return self.rotary_dim or self.head_dim

    @property
    def value_size(self) -> int:
        """Features of a head's values."""
        return self.value_dim or self.head_dim

    @property
    def cached_features(self) -> tuple[int, ...]:
        """Features a token of what a cache keeps: keys and values, or latents; an indexer's keys
        stand behind them."""
        if self.reads_states:
            return ()
        whole = self.kv_heads * self.head_dim, self.kv_heads * self.value_size
        if self.indexer is not None:
            return (*whole, self.indexer.head_dim)
        if self.latent is None or self.handed_choice is not None:
            return whole
        return self.latent.rank, self.latent.rope_dim

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Norms of queries, keys and the output's projection, one entry a module."""
        if self.mixer is not None:
            return self.mixer.norms
        if self.latent is not None:
            own = (self.latent.query_norm, self.latent.norm)
            return tuple(norm for norm in own if norm is not None)
        behind = () if self.output_norm is None else (self.output_norm,)
        if self.qk_norm is None:
            return behind
        if self.norm_by_head:
            return (*(self.qk_norm,) * (self.heads + self.kv_heads), *behind)
        if self.reads_states:
            return (self.qk_norm, *behind)
        return (self.qk_norm, self.key_norm or self.qk_norm, *behind)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        inputs: tuple[Linear | None, ...] = (self.fused, self.query, self.key, self.value)
        if self.mixer is not None:
            inputs = self.mixer.inputs
        if self.latent is not None:
            inputs = (self.latent.query_down, self.query, self.latent.down, self.latent.up)
        if self.gate is not None:
            inputs = (*inputs, self.gate)
        added = (linear for pair in self.adapters for linear in pair)
        return (*(linear for linear in inputs if linear is not None), *added, self.output)

    @property
    def groups(self) -> int:
        """Query heads a key/value head."""
        return self.heads // self.kv_heads
