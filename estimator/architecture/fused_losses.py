"""Formulas of losses that multiply by the head's weight themselves: Liger's and TRL's.

Both run their own code in forward and backward, in which autograd records nothing. What it makes
and lets go of is played here in its order; backward then goes on from the head's input.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from estimator.architecture.context import Context
from estimator.architecture.events import Storage
from estimator.architecture.tape import Tape, Tensor
from estimator.gpus import find_gpu
from estimator.spec import ModelSpec
from estimator.units import ceil_div

TOKEN_CHUNK = 4096
VOCABULARY_CHUNK = 32768
"""Rows and columns of a tile of logits. Source: trl 1.16.0, kernels/chunked_logprob.py
(`TOKEN_CHUNK_SIZE`) and trainer/utils.py (`_CHUNKED_LOGPROB_CHUNK_SIZE`)."""

_LIGER_BUDGETS = {"gpt_oss": 8}
"""How many times the head's input a chunk's logits may take, where it is not once.

Source: liger_kernel 0.8.5, transformers/model/gpt_oss.py."""

_BEFORE_AMPERE = ("pascal", "volta", "turing")


class FusedLoss(Protocol):
    """A loss that holds, between the passes, what it saved."""

    @property
    def label(self) -> str:
        """What it is, for people."""

    def forward(self, tape: Tape, x: Tensor) -> None:
        """Play the loss of the head's input `x` ([B, S, hidden], borrowed)."""

    def returned(self, tape: Tape) -> None:
        """Play what the loop does with the outputs once the model has returned."""

    def backward(self, tape: Tape) -> tuple[Storage, Storage | None]:
        """Play the backward pass; return the gradients of `x` and of a weight that trains."""


def fused_loss(name: str, spec: ModelSpec, ctx: Context, gpu: str | None) -> FusedLoss:
    """Return a case's loss, `liger` or `chunked`; `gpu` is the case's card."""
    if name == "chunked":
        return _Chunked(spec, ctx)
    return _Liger(spec, ctx, gpu is not None and find_gpu(gpu).architecture in _BEFORE_AMPERE)


@dataclass(slots=True)
class _Liger:
    """Liger's fused linear cross-entropy: logits of a chunk of tokens at a time, and gradients of
    the input and the weight at once, which are what is saved.

    A chunk has so many tokens that its logits are no larger than the input. Symbols: T tokens,
    H hidden, V vocabulary, C tokens a chunk.

    Source: liger_kernel 0.8.5, ops/fused_linear_cross_entropy.py
    (`fused_linear_cross_entropy_forward`), transformers/model/loss_utils.py.
    """

    spec: ModelSpec
    ctx: Context
    old_card: bool
    _saved: list[Storage] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"Liger's fused loss over the {self.spec.vocab_size}-token vocabulary"

    def forward(self, tape: Tape, x: Tensor) -> None:
        ctx, T = self.ctx, self.ctx.tokens
        labels = tape.new(ctx.batch * (ctx.queries + 1), 8)
        shifted = tape.new(T, 8)
        made = [tape.new(x.count, x.width)]
        if ctx.full:
            kept = None if tape.accumulate else "gradients"
            made.append(tape.new(self.spec.head.weight_count, ctx.outer_width, component=kept))
        losses, mask = tape.new(T, 4), tape.new(T, 1)
        counted = tape.new(1, 8)
        self._chunks(tape, x, x.count // T)
        tape.new(1, 4)  # the loss, which the loop names until the step is over
        tape.drop(counted, mask, losses, shifted, labels)
        for tensor in made:
            assert tensor.storage is not None
            tensor.storage.saved = True
            self._saved.append(tensor.storage)

    def _chunks(self, tape: Tape, x: Tensor, H: int) -> None:
        ctx, T, V = self.ctx, self.ctx.tokens, self.spec.vocab_size
        factor = ceil_div(V, _LIGER_BUDGETS.get(self.spec.model_type, 1) * H)
        C = min(1 << (ceil_div(T, factor) - 1).bit_length(), T)
        weight_width = ctx.outer_width
        in_place = x.width == weight_width and (ctx.amp is None or ctx.amp_width == weight_width)
        width = ctx.amp_width if ctx.amp else x.width
        buffer = tape.new(C * V, width, component="logits") if in_place else None
        cached = None
        # A chunk leaves nothing but autocast's cached weight, so the third is like the second.
        for rows in (C, min(C, T - C))[: ceil_div(T, C)]:
            logits = buffer
            if logits is None:
                given = self._cast(tape, rows * H, x.width)
                weight = self._cast(tape, V * H, weight_width)
                logits = tape.new(rows * V, width, component="logits")
                tape.drop(given, weight)
                if cached is None:
                    # autocast keeps its copy of a parameter that trains, but not of its transpose.
                    cached = self._cast(tape, V * H, weight_width)
                product = tape.new(rows * H, width)
                tape.drop(product)
                if cached is not None and not (ctx.full and weight_width == 4):
                    tape.drop(cached)
                    cached = None
            if ctx.full:
                self._add_weight_gradient(tape, rows * H, x.width, width)
            if buffer is None:
                tape.drop(logits)
        tape.drop(buffer)
        if cached is not None:
            tape.cache(cached)
            tape.drop(cached)

    def _add_weight_gradient(self, tape: Tape, count: int, given_width: int, width: int) -> None:
        """In place for half precision since Ampere; else the product in full, and that in fp32."""
        weight_width = self.ctx.outer_width
        given = self._cast(tape, count, given_width)
        if width == self.ctx.amp_width and weight_width in (4, width) and not self.old_card:
            tape.drop(given)
            return
        product = tape.new(self.spec.head.weight_count, width, component=None)
        tape.drop(given)
        wide = tape.new(self.spec.head.weight_count, 4) if width != 4 else None
        tape.drop(product, wide)

    def _cast(self, tape: Tape, count: int, width: int) -> Tensor | None:
        """A copy in half precision of `count` elements, where autocast makes one."""
        ctx = self.ctx
        return tape.new(count, ctx.amp_width) if ctx.amp and width != ctx.amp_width else None

    def returned(self, tape: Tape) -> None:
        """The loss is all that there is."""

    def backward(self, tape: Tape) -> tuple[Storage, Storage | None]:
        # torch.equal(grad_output, 1.0); then a kernel scales the gradients in place.
        compared = [tape.new(1, width) for width in (4, 1, 1)]
        tape.drop(*compared)
        given, *of_weight = self._saved
        return given, of_weight[0] if of_weight else None


@dataclass(slots=True)
class _Chunked:
    """TRL's fused head: logits in tiles of 4096 tokens and 32768 entries of the vocabulary, made
    once for the statistics of a softmax and once more for the gradients, which are summed in fp32.

    Only tokens with a label are looked at, all but the last of each sequence. SFTTrainer asks for
    log-probabilities, entropy and whether the label is the most likely one. Symbols: N such tokens,
    H hidden, V vocabulary.

    Source: trl 1.16.0, trainer/utils.py (`add_fused_lm_head`), kernels/chunked_logprob.py
    (`ChunkedLogProbFunction`), trainer/sft_trainer.py (`compute_loss`).
    """

    spec: ModelSpec
    ctx: Context
    _width: int = 0
    _hidden: int = 0
    _saved: list[Tensor] = field(default_factory=list)
    _outputs: list[Tensor] = field(default_factory=list)

    @property
    def label(self) -> str:
        return f"TRL's fused head over the {self.spec.vocab_size}-token vocabulary"

    @property
    def _rows(self) -> int:
        return self.ctx.batch * (self.ctx.queries - 1)

    def forward(self, tape: Tape, x: Tensor) -> None:
        N = self._rows
        self._width, self._hidden = x.width, x.count // self.ctx.tokens
        mask = tape.new(N, 1)
        selected = self._selected(tape, N * self._hidden, x.width)
        targets = self._selected(tape, N, 8)
        statistics = [tape.new(N, 4) for _ in range(7)]
        buffer, last = self._tiles(tape, named=False)
        logarithm, log_z = tape.new(N, 4), tape.new(N, 4)
        tape.drop(logarithm)
        log_probabilities, quotient, entropy = (tape.new(N, 4) for _ in range(3))
        tape.drop(quotient)
        comparisons = tape.new(N, 1), tape.new(N, 1)
        is_top = tape.new(N, 1)
        tape.drop(*comparisons, *statistics, buffer, *last)
        self._outputs = [self._scattered(tape, N, width, mask) for width in (4, 4, 1)]
        tape.drop(log_probabilities, is_top)
        self._saved = [selected, targets, log_z, entropy, mask]
        for tensor in self._saved:
            assert tensor.storage is not None
            tensor.storage.saved = True

    def _selected(self, tape: Tape, count: int, width: int) -> Tensor:
        """`x[mask]`, with the positions of the mask's true elements meanwhile."""
        positions = tape.new(2 * self._rows, 8)
        out = tape.new(count, width)
        tape.drop(positions)
        return out

    def _scattered(self, tape: Tape, count: int, width: int, mask: Tensor) -> Tensor:
        """`zeros.masked_scatter(mask, x)`, with a running sum of the mask meanwhile."""
        zeros, sums = tape.new(count, width), tape.new(count, 8)
        out = tape.new(count, width)
        tape.drop(sums, zeros)
        return out

    def _tiles(self, tape: Tape, named: bool) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Play the products of all tiles; return the buffer of logits, and the casts left over.

        Args:
            named: whether a tile's cast weight is named, and so lives until the next one is there.
        """
        ctx, H = self.ctx, self._hidden
        width = ctx.amp_width if ctx.amp else self._width
        buffer = tape.new(
            min(self._rows, TOKEN_CHUNK) * VOCABULARY_CHUNK, width, component="logits"
        )
        given: Tensor | None = None
        weight: Tensor | None = None
        for rows in _chunks(self._rows, TOKEN_CHUNK):
            before, given = given, self._cast(tape, rows * H, self._width)
            tape.drop(before)
            for columns in _chunks(self.spec.vocab_size, VOCABULARY_CHUNK):
                before, weight = weight, self._cast(tape, columns * H, ctx.outer_width)
                tape.drop(before)
                bias = self._cast(tape, columns, ctx.width) if self.spec.head.bias else None
                tape.drop(bias)
                if not named:
                    tape.drop(weight)
                    weight = None
                elif self.spec.head.bias and ctx.full:
                    tape.drop(tape.new(columns, 4))
        return buffer, (given, weight)

    def _cast(self, tape: Tape, count: int, width: int) -> Tensor | None:
        ctx = self.ctx
        return tape.new(count, ctx.amp_width) if ctx.amp and width != ctx.amp_width else None

    def returned(self, tape: Tape) -> None:
        """SFTTrainer's own sum of the log-probabilities, and its metrics."""
        negated = tape.new(self._rows, 4)
        tape.new(1, 4)  # the loss, which the loop names until the step is over
        tape.drop(negated, *self._outputs)

    def backward(self, tape: Tape) -> tuple[Storage, Storage | None]:
        ctx, N, H = self.ctx, self._rows, self._hidden
        head = self.spec.head
        negated, given = tape.new(N, 4), tape.new(N, 4)
        tape.drop(negated)
        sums = [tape.new(N * H, 4)]
        widths = [self._width]
        kept = None if tape.accumulate else "gradients"
        if ctx.full:
            widths.append(ctx.outer_width)
            component = kept if ctx.outer_width == 4 else None
            sums.append(tape.new(head.weight_count, 4, component=component))
            if head.bias:
                sums.append(tape.new(head.outputs, 4))
                widths.append(ctx.width)
        buffer, last = self._tiles(tape, named=True)
        gradients = [
            tape.alias(total) if width == 4 else tape.new(total.count, width, component=component)
            for total, width, component in zip(sums, widths, (None, kept, None), strict=False)
        ]
        tape.drop(*sums, buffer, *last, given)
        *saved, mask = self._saved
        tape.drop(*saved)
        of_selected, *of_parameters = gradients
        of_weight = of_parameters[0].storage if of_parameters else None
        for tensor in of_parameters[1:]:
            assert tensor.storage is not None
            tape.keep_gradient(tensor.storage)
        # The selection's gradient is put into zeros, with indices that are sorted first, and that
        # of the slice into zeros of the whole.
        rows = tape.new(N * H, self._width)
        sorting = [tape.new(N, 8) for _ in range(6)]
        tape.drop(*sorting, of_selected, mask)
        whole = tape.new(ctx.tokens * H, self._width)
        tape.drop(rows)
        assert whole.storage is not None
        return whole.storage, of_weight


def _chunks(total: int, size: int) -> tuple[int, ...]:
    """Return the sizes of chunks of a total, of those that are alike two and the last."""
    count = ceil_div(total, size)
    return (*(size,) * min(count - 1, 2), total - (count - 1) * size) if count else ()
