"""A decoder layer of blocks, and the model of layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from estimator.spec.altup import AltUp, StreamEnds
from estimator.spec.attention import Attention
from estimator.spec.linears import Linear, Norm
from estimator.spec.mixers import HeadScan
from estimator.spec.mlp import Mlp, Moe


@dataclass(frozen=True, slots=True)
class TokenInputs:
    """A layer's own input by token, beside the stream: gated, projected, normalized and added.

    `gate` makes as many features of the hidden states as the input has, `out` the hidden size of
    their product. `last` is whether no later layer has such an input.

    Source: transformers/models/gemma4/modeling_gemma4.py, `Gemma4TextDecoderLayer.forward`.
    """

    gate: Linear
    out: Linear
    norm: Norm
    activation: str
    last: bool = False

    @property
    def features(self) -> int:
        """Features a token."""
        return self.gate.outputs


@dataclass(frozen=True, slots=True)
class TokenTables:
    """What makes the layers' own inputs (`TokenInputs`): all layers' features side by side.

    They are looked up in a table of `rows` tokens, and added to what `projection` makes of the
    embeddings, normalized layer by layer.
    """

    rows: int
    projection: Linear
    norm: Norm
    scaled_in_place: bool = False
    """Whether the projection is scaled in place (Gemma 3n)."""

    @property
    def features(self) -> int:
        """Features a token, of all layers."""
        return self.projection.outputs


@dataclass(frozen=True, slots=True)
class Shared:
    """What a layer has beside an attention and an MLP whose parameters are other layers', too
    (Zamba): they read the embeddings beside the hidden states, and `linear` brings what they made
    to the input of the layer's mixer, with `norm` in front of it.

    `counted` is whether the layer is the first with these parameters. `readers` is how many layers
    behind it read the embeddings, too, at most 2. `shadows` are linears of other layers' own that
    are modules of this one: adapters sit on them, and never run.
    """

    linear: Linear
    norm: Norm
    counted: bool
    readers: int
    shadows: tuple[Linear, ...] = ()


@dataclass(frozen=True, slots=True)
class Doubled:
    """What a layer of two attentions has twice beside them: an MLP, and norms before both.

    Source: transformers/models/longcat_flash/modeling_longcat_flash.py.
    """

    mlp: Mlp
    input_norm: Norm
    post_norm: Norm


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
    mlp: Mlp | Moe | None
    dropout: float = 0.0
    holds_attended: bool = False
    attention_out_norm: Norm | None = None
    mlp_out_norm: Norm | None = None
    parallel: bool = False
    attended_dropout: bool = True
    holds_attended_input: bool = False
    residual_scaled: bool = False
    beside: Attention | None = None
    """A block with a mixer of its own, where a layer has one beside its attention, or the first of
    two attentions."""
    doubled: Doubled | None = None
    """What a layer of two attentions has twice (LongCat)."""
    shared: Shared | None = None
    idle: tuple[Linear | Norm, ...] = ()
    """Modules that the code never runs (BART's attention to an encoder that is not there): they
    are loaded, quantized and adapted, and get no gradient."""
    attends: bool = True
    """Whether it has an attention (or what stands in its place): Nemotron-H has layers of an MLP
    alone, whose `attention` then only says what the model's others are like."""
    recipe: str = "pre_norm"
    """Which code runs the layer: `pre_norm`, or a key of `LAYERS` in
    estimator/architecture/layer.py."""
    token_inputs: TokenInputs | None = None
    """The layer's own input by token (Gemma 4's small models)."""
    altup: AltUp | None = None
    """How it mixes several streams of hidden states (Gemma 3n)."""

    @property
    def blocks(self) -> tuple[Attention, ...]:
        """What mixes its tokens: the block beside the attention first, which runs first."""
        own = (self.attention,) if self.attends else ()
        return own if self.beside is None else (self.beside, *own)

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its linears in the order in which they run."""
        attention = tuple(linear for block in self.blocks for linear in block.linears)
        mlp = () if self.mlp is None else self.mlp.linears
        own = self.token_inputs
        beside = () if own is None else (own.gate, own.out)
        behind: tuple[Linear, ...] = () if self.shared is None else (self.shared.linear,)
        if self.doubled is not None:
            behind += 2 * self.doubled.mlp.linears
        behind += () if self.altup is None else self.altup.linears
        return (*attention, *self.idle_linears, *mlp, *beside, *behind)

    @property
    def counted_linears(self) -> tuple[Linear, ...]:
        """Its linears without those that an earlier layer has, too."""
        if self.shared is None or self.shared.counted:
            return self.linears
        mixer = () if self.beside is None else self.beside.linears
        own = tuple(linear for pair in self.attention.adapters for linear in pair)
        own += self.mlp.adapter if isinstance(self.mlp, Mlp) else ()
        return (*mixer, *own, self.shared.linear)

    @property
    def counted_norms(self) -> tuple[Norm, ...]:
        """Its norms without those that an earlier layer has, too."""
        if self.shared is None or self.shared.counted:
            return self.norms
        mixer = () if self.beside is None else self.beside.norms
        return (*mixer, self.shared.norm)

    @property
    def shadows(self) -> tuple[Linear, ...]:
        """Linears that never run, and whose parameters are another layer's."""
        return () if self.shared is None else self.shared.shadows

    @property
    def idle_linears(self) -> tuple[Linear, ...]:
        """Linears that never run."""
        return tuple(module for module in self.idle if isinstance(module, Linear))

    @property
    def norms(self) -> tuple[Norm, ...]:
        """Its norms, those of queries and keys first."""
        around = (self.input_norm, self.post_norm, self.attention_out_norm, self.mlp_out_norm)
        own = tuple(norm for block in self.blocks for norm in block.norms)
        own += tuple(module for module in self.idle if isinstance(module, Norm))
        if self.token_inputs is not None:
            own += (self.token_inputs.norm,)
        own += () if self.shared is None else (self.shared.norm,)
        own += () if self.altup is None else self.altup.norms
        if self.doubled is not None:
            own += (self.doubled.input_norm, self.doubled.post_norm)
        return (*own, *(norm for norm in around if norm is not None))

    @property
    def parameters_apart(self) -> tuple[int, ...]:
        """Elements of each parameter that is no linear's or norm's."""
        attention = tuple(size for block in self.blocks for size in block.parameters_apart)
        # What scales AltUp's output.
        attention += () if self.altup is None else (self.altup.router.inputs,)
        return attention if self.mlp is None else (*attention, *self.mlp.parameters_apart)


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
    `buffers` are the bytes of buffers in a dtype of their own other than those. `masks` are the
    windows of the masks that the code builds (None for a full one) where it builds others than the
    layers use.
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
    cast_buffers: tuple[int, ...] = ()
    """Elements of buffers in the model's dtype."""
    masks: tuple[int | None, ...] = ()
    positions_counted: bool = False
    position_ids: bool = True
    """Whether the model takes positions from its caller: generate then makes them."""
    positions_frozen: bool = False
    """Whether the table of positions is a parameter that never trains (Pegasus)."""
    embedding_norm_first: bool = False
    """Whether the embeddings are normalized before positions are added (Blenderbot Small)."""
    position_offset: bool = False
    embedding_held: bool = True
    embedding_multiplied: bool = False
    embedding_apart: bool = False
    """Whether the embeddings before that factor (RecurrentGemma), or before the linear behind their
    norm (RemBERT), keep a name of their own."""
    embedding_cloned: bool = False
    """Whether the model's code copies the embeddings for layers that read them, too (Zamba)."""
    logits_scaled: bool = False
    logits_softcap: bool = False
    embedding_norm: Norm | None = None
    head_transform: HeadTransform | None = None
    defined_first: tuple[str, ...] = ()
    """Parts that are defined, and lie in memory, before what runs before them: the `head` before
    the model (CamemBERT), an attention's `output` before its inputs (Phi-3), the `mlp` before the
    attention (Bamba)."""
    project_in: Linear | None = None
    """The linear from narrower embeddings to the hidden size (OPT-350m)."""
    project_in_last: bool = False
    """Whether that stands behind the embeddings' sum and norm, which then are narrow (ELECTRA)."""
    project_out: Linear | None = None
    """The linear from the hidden size back to what the head reads."""
    embedding_named: bool = True
    """Whether the model's code names, beside the layers' input, the embeddings before the norm."""
    positions_expanded: bool = False
    """Whether rotary tables are made for each sequence in training (ModernBERT)."""
    token_types: int = 0
    """Rows of a learned table of token types (BERT)."""
    sum_in_place: bool = False
    """Whether positions are added to the embeddings' sum in place."""
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
    embedding_named_for_masks: bool = False
    """Whether the arguments from which the model's code makes masks are all that names the layers'
    first input (ModernBERT)."""
    cache_layers: int | None = None
    """Layers that transformers makes a cache of, where the configuration says so elsewhere than
    how many there are (BART)."""
    head_input_scaled: bool = False
    """Whether the head's input is divided by a number (MiniCPM3)."""
    tables_by_sequence: bool = False
    """Whether each sequence has a cos and a sin of its own (Qwen 3.5's three positions)."""
    plain_loss: bool = False
    """Whether the loss is computed in the logits' dtype, of labels as they come (BART), by every
    stack."""
    residual_fp32: bool = False
    """Whether what flows from layer to layer is in fp32 (Mamba)."""
    logits_fp32: bool = False
    """Whether the model's code casts its logits to fp32 (Mamba)."""
    unadaptable: tuple[str, ...] = ()
    """Names of linears that peft refuses to adapt in models of the type (Mamba's `out_proj`)."""
    quantizable: bool = True
    """Whether its code runs with quantized linears (not where it multiplies by a weight itself)."""
    kernels: str | None = None
    """A package whose kernels transformers would take, were they installed: these formulas are
    for its own code, which needs more memory."""
    decodes_alone: bool = False
    """Whether its code mixes sequences up where more than one decodes (Falcon-H1's norm)."""
    token_tables: TokenTables | None = None
    """What makes the layers' own inputs by token (Gemma 4's small models)."""
    stream_ends: StreamEnds | None = None
    """What makes several streams of the embeddings, and one of them at the end (Gemma 3n)."""
    returns_probabilities: bool = False
    """Whether layers return eager attention's probabilities, which the model's loop then holds
    until the next layer returns (GPT-J)."""

    @property
    def outer_linears(self) -> tuple[Linear, ...]:
        """Linears outside the layers that adapters sit on and that are quantized."""
        before_head = None if self.head_transform is None else self.head_transform.dense
        beside = None if self.token_tables is None else self.token_tables.projection
        ends = self.stream_ends
        streams = () if ends is None else (*ends.into, *ends.out_of)
        outer = (self.project_in, self.project_out, beside, before_head, *streams)
        return tuple(linear for linear in outer if linear is not None)

    @property
    def stream_size(self) -> int:
        """Features a token of what flows between the layers."""
        return self.hidden_size * (1 if self.stream_ends is None else self.stream_ends.streams)

    @property
    def embedding_size(self) -> int:
        """Features of the embeddings."""
        return self.hidden_size if self.project_in is None else self.project_in.inputs

    @property
    def summed_size(self) -> int:
        """Features of positions, which are added to the embeddings."""
        return self.embedding_size if self.project_in_last else self.hidden_size

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

    @property
    def fixed_count(self) -> int:
        """Elements of a table of positions that does not require gradients."""
        return self.position_rows * self.summed_size if self.positions_frozen else 0

    def frozen_counts(self) -> Iterator[int]:
        """Yield the elements of each parameter that never trains; they are in fp32."""
        for layer in self.layers:
            if isinstance(layer.mlp, Moe) and layer.mlp.frozen:
                yield layer.mlp.frozen

    def idle_counts(self) -> Iterator[int]:
        """Yield the elements of each parameter that never gets a gradient."""
        if self.fixed_count:
            yield self.fixed_count
        for layer in self.layers:
            for module in layer.idle:
                if isinstance(module, Norm):
                    yield from module.shapes
                    continue
                yield module.weight_count
                if module.bias:
                    yield module.outputs

    def fp32_counts(self) -> Iterator[int]:
        """Yield the elements of each weight that trains and stays in fp32."""
        for layer in self.layers:
            if isinstance(layer.mlp, Moe) and layer.mlp.router_fp32:
                yield layer.mlp.stacked("router")
            yield from (linear.weight_count for linear in layer.linears if linear.fp32)
            mixers = (block.mixer for block in layer.blocks)
            yield from (mixer.rates for mixer in mixers if isinstance(mixer, HeadScan))

    def parameter_counts(self) -> Iterator[int]:
        """Yield the elements of each parameter that may train, in module order, tied ones once."""
        yield self.vocab_size * self.embedding_size
        if self.token_tables is not None:
            tables = self.token_tables
            yield tables.rows * tables.features
            yield tables.projection.weight_count
            yield from tables.norm.shapes
        if self.stream_ends is not None:
            for linear in (*self.stream_ends.into, *self.stream_ends.out_of):
                yield linear.weight_count
        for projection in (self.project_in, self.project_out):
            if projection is not None:
                yield projection.weight_count
                if projection.bias:
                    yield projection.outputs
        if self.position_rows:
            yield self.position_rows * self.summed_size
        if self.token_types:
            yield self.token_types * self.summed_size
        if self.embedding_norm is not None:
            yield from self.embedding_norm.shapes
        for layer in self.layers:
            for linear in layer.counted_linears:
                yield linear.weight_count
                if linear.bias:
                    yield linear.outputs
            for norm in layer.counted_norms:
                yield from norm.shapes
            yield from layer.parameters_apart
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
        return self.layers[0].attention.rotated_features

    @property
    def table_features(self) -> tuple[int, ...]:
        """Features of each kind of cos and sin: one kind for all layers, or one a window."""
        kinds = self.rope_tables // 2
        if kinds < 2:
            return (self.rotary_dim,) * kinds
        attentions = (layer.attention for layer in self.layers)
        return tuple({one.window: one.rotated_features for one in attentions}.values())

    @property
    def heads(self) -> int:
        """Query heads (of the first layer)."""
        return self.layers[0].attention.heads
