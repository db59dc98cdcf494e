"""What a block's formulas need to know of the run: shapes, widths, what trains, what attends."""

from __future__ import annotations

from dataclasses import dataclass, replace

from estimator.architecture.widths import HALF, OTHER_HALF
from estimator.case import Case, Lora
from estimator.spec import Layer, Linear, ModelSpec
from estimator.stacks import STACKS, TODAY, Stack
from estimator.units import round_up

WIDTHS = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Bytes of an element."""

AMP_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
"""What autocast computes in."""

MAX_FLASH_HEAD = 256


@dataclass(frozen=True, slots=True)
class Context:
    """The run as the blocks see it.

    Symbols: B batch, Q query tokens a sequence in this pass, K keys a sequence (Q unless a cache
    holds more), `width` bytes of an element of weights and activations.
    """

    batch: int
    queries: int
    keys: int
    width: int
    half: str | None
    """`bfloat16` or `float16` where weights are in half precision, else None."""
    training: bool
    full: bool
    """Whether the base's parameters train."""
    lora: Lora | None
    attention: str
    checkpointing: bool
    """Whether whole layers are recomputed."""
    cached: bool
    """Whether a cache is filled (inference)."""
    selective: bool = False
    """Whether the core attention alone is recomputed."""
    sp_size: int = 1
    """GPUs that share each sequence: `queries` and `keys` are this one's outside of attention."""
    held_keys: int = 0
    """Tokens whose keys the cache's tensors hold before this pass."""
    prompt: int = 0
    """Tokens of the prompt (inference)."""
    quantization: str | None = None
    """`int8`, `nf4` or `fp4` where the layers' linears are quantized."""
    double_quantization: bool = False
    compute_width: int = 2
    """Bytes of an element in which quantized linears compute: the dtype as loaded."""
    amp: str | None = None
    """`bfloat16` or `float16` under autocast."""
    amp_width: int = HALF
    """What autocast computes in, as a width: see widths.py."""
    loaded: str = "bfloat16"
    """The dtype of the weights as loaded."""
    mask_width: int | None = None
    """Bytes of an element of the masks that layers share, where autocast makes `width` another."""
    input_width: int | None = None
    """Bytes of an element of the layers' input, and so of the masks and rotary tables that are made
    like it, where a norm of the embeddings makes it fp32 under autocast."""
    remembers: bool = False
    """Whether autocast remembers its casts of the base's weights, which require grad, to the end
    of a forward pass that needs no gradients."""
    stack: Stack = TODAY
    """What an older software stack does otherwise."""
    loaded_width: int | None = None
    """Bytes of an element of embeddings and head, where they are not those of what flows between
    the layers."""
    cache: str = "dynamic"
    """What kind of cache is filled."""
    slots: int = 0
    """Tokens that a static or paged cache has room for (of a layer, see `layer_context`)."""

    @property
    def tokens(self) -> int:
        """B * Q."""
        return self.batch * self.queries

    @property
    def positions(self) -> int:
        """Rows of whatever is made by position: generate counts them for each sequence, where a
        training step counts them once.

        Source: GenerationMixin._prepare_position_ids_for_generation.
        """
        return self.tokens if self.cached and not self.stack.tuple_cache else self.queries

    @property
    def decoding(self) -> bool:
        """Whether this is a step after the prefill: generate then runs experts differently."""
        return self.cached and self.held_keys > 0

    @property
    def stores_all(self) -> bool:
        """Whether the keys and values that attention reads are the cache's own."""
        if self.cache == "quantized":
            return False
        return self.cached and not (self.slots and not self.held_keys and self.queries > self.slots)

    @property
    def mask_like(self) -> int:
        """Bytes of an element of the masks that eager adds; generate makes its own like weights."""
        made = self.input_width if self.cache != "static" else None
        return self.width if made is None else made

    @property
    def outer_width(self) -> int:
        """Bytes of an element of the embeddings' and the head's weights."""
        return self.width if self.loaded_width is None else self.loaded_width

    def is_fp16(self, width: int) -> bool:
        """Whether a tensor of this width is fp16."""
        if width == OTHER_HALF:
            return self.amp == "float16"
        half = self.amp if self.loaded == "float32" else self.loaded
        return width == HALF and half == "float16"

    @property
    def adapter_width(self) -> int:
        """Bytes of an adapter's element: peft makes them fp32 on a half-precision base."""
        return 4

    def targets(self, linear: Linear) -> bool:
        """Whether an adapter sits on a linear; `all-linear` leaves out the output layer."""
        if self.lora is None or linear.name == "lm_head" or not linear.adaptable:
            return False
        names = self.lora.target_modules
        return names == "all-linear" or linear.name in names


def prepared(case: Case) -> bool:
    """Whether peft cast all that is not quantized to fp32 (`prepare_model_for_kbit_training`)."""
    return case.training and case.quantization is not None and case.prepare_kbit


def stack_of(case: Case) -> Stack:
    """Return the conventions that a case's run follows."""
    return TODAY if case.stack is None else STACKS[case.stack]


def compute_width(case: Case) -> int:
    """Return the bytes of an element in which quantized linears compute: the dtype as loaded."""
    wide = stack_of(case).fp32_products and case.dtype == "float16"
    return 4 if wide else WIDTHS[case.dtype]


def amp_width(case: Case) -> int:
    """Return what autocast computes in, as a width: see widths.py."""
    if case.mixed_precision is None or case.dtype == "float32":
        return HALF
    return HALF if AMP_DTYPES[case.mixed_precision] == case.dtype else OTHER_HALF


def training_context(case: Case) -> Context:
    """Return the context of a training step: S queries and keys, no cache.

    With k-bit preparation embeddings and norms are fp32, and so is what flows between layers.
    """
    loaded = WIDTHS[case.dtype]
    norms = case.quantization is not None and stack_of(case).fp32_norms_on_quantized
    width = 4 if norms or prepared(case) else loaded
    return Context(
        batch=case.batch_size,
        queries=case.local_length,
        keys=case.local_length,
        sp_size=case.sp_size,
        width=width,
        half=None if width == 4 else case.dtype,
        training=True,
        full=case.method == "full",
        lora=case.lora,
        attention=case.attention,
        checkpointing=case.checkpoints_layers,
        selective=case.recomputes_attention,
        cached=False,
        quantization=case.quantization,
        double_quantization=case.double_quantization,
        compute_width=compute_width(case),
        amp=None if case.mixed_precision is None else AMP_DTYPES[case.mixed_precision],
        amp_width=amp_width(case),
        loaded=case.dtype,
        stack=stack_of(case),
        loaded_width=loaded if norms and not prepared(case) else None,
    )


def with_embeddings(ctx: Context, spec: ModelSpec) -> Context:
    """Return the context of a model whose masks and tables are made like its layers' input."""
    normed = spec.embedding_norm is not None and spec.embedding_norm.kind.startswith("layer")
    if ctx.amp is None or not normed or spec.embedding_named:
        return ctx
    return replace(ctx, input_width=4)


PAGE = 16
"""Tokens of a page of a paged cache: vLLM's default block size."""


def static_length(case: Case) -> int:
    """Return the tokens that `generate` makes a static cache for: all that the model is fed.

    Source: GenerationMixin.generate, `max_cache_length = generation_config.max_length - 1`.
    """
    assert case.max_new_tokens is not None
    return case.sequence_length + case.max_new_tokens - 1


def inference_context(case: Case, queries: int, keys: int, held_keys: int = 0) -> Context:
    """Return the context of a prefill (queries = keys) or of a decode step (one query).

    `held_keys` is what a full layer's cache holds before; see `layer_context` for sliding ones.
    With a static cache `keys` is all that it has room for.
    """
    slots = 0
    if case.cache == "static":
        keys = slots = static_length(case)
    elif case.cache == "paged":
        slots = round_up(static_length(case), PAGE)
    return Context(
        cache=case.cache,
        slots=slots,
        batch=case.batch_size,
        queries=queries,
        keys=keys,
        width=WIDTHS[case.dtype],
        half=None if case.dtype == "float32" else case.dtype,
        training=False,
        full=False,
        lora=case.lora,
        attention=case.attention,
        checkpointing=False,
        cached=True,
        held_keys=held_keys,
        prompt=case.sequence_length,
        quantization=case.quantization,
        double_quantization=case.double_quantization,
        compute_width=compute_width(case),
        amp=None if case.mixed_precision is None else AMP_DTYPES[case.mixed_precision],
        amp_width=amp_width(case),
        loaded=case.dtype,
        remembers=case.mixed_precision is not None and case.lora is None,
        stack=stack_of(case),
    )


def layer_keys(window: int | None, ctx: Context) -> int:
    """Return the keys that a layer of a window attends to, out of all that there are.

    A prompt beyond a static cache's window is attended to whole, and its end is copied.
    """
    if window is None or ctx.cache in ("quantized", "paged"):
        return ctx.keys
    if ctx.held_keys:
        return min(ctx.keys, window)
    if ctx.slots:
        return max(min(ctx.slots, window), ctx.queries if ctx.queries > window else 0)
    return ctx.keys


def layer_context(layer: Layer, ctx: Context) -> Context:
    """Return a pass as a layer sees it: a sliding layer's cache keeps a window.

    The prompt is kept whole: the cache cuts a view off it, which holds all of it until the first
    decode step makes a new tensor (transformers/cache_utils.py, `DynamicSlidingWindowLayer`).
    """
    window = layer.attention.window
    if window is None or ctx.cache in ("quantized", "paged"):
        return ctx
    if ctx.slots:
        return replace(ctx, keys=layer_keys(window, ctx), slots=min(ctx.slots, window))
    if not ctx.held_keys:
        return ctx
    whole = ctx.held_keys == ctx.prompt
    return replace(
        ctx,
        keys=min(ctx.keys, window),
        held_keys=ctx.held_keys if whole else min(ctx.held_keys, window),
    )
