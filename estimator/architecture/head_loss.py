"""The end of a training step's forward pass and the beginning of its backward pass: head and loss.

As transformers computes them, from logits of the whole batch, or fused into one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from estimator.architecture import layer as blocks
from estimator.architecture import older
from estimator.architecture.autograd import run_backward
from estimator.architecture.context import Context
from estimator.architecture.events import Event, Storage
from estimator.architecture.fused_losses import FusedLoss, fused_loss
from estimator.architecture.tape import Tape, Tensor
from estimator.case import Case
from estimator.spec import ModelSpec


class HeadLoss(Protocol):
    """Head and loss of a step; it keeps what it needs from the forward pass to the backward pass.

    `label` and `after` are what people read, of the loss and of what follows it;
    `table_viewed` is whether the gradient of a tied table is a view, into which none is summed.
    """

    @property
    def label(self) -> str: ...

    @property
    def after(self) -> str: ...

    @property
    def table_viewed(self) -> bool: ...

    @property
    def kept(self) -> Storage | None:
        """What the loop still holds at the end of backward."""

    def forward(self, tape: Tape, x: Tensor) -> tuple[list[Event], list[Event]]:
        """Return the events of the loss, and those after the model has returned; `x` ([B, S,
        hidden], what the head reads) is consumed."""

    def backward(self, tape: Tape, x: Tensor) -> Storage | None:
        """Play the backward pass down to the last layer's output; return the gradient of a tied
        table, which waits for the embeddings'."""


def head_loss(case: Case, spec: ModelSpec, ctx: Context) -> HeadLoss:
    """Return the head and loss of a training case."""
    if case.loss == "standard":
        return _Standard(spec, ctx, case.keep_logits)
    return _Fused(spec, fused_loss(case.loss, spec, ctx, case.gpu))


@dataclass(slots=True)
class _Standard:
    """Logits of all tokens, and a cross-entropy over them."""

    spec: ModelSpec
    ctx: Context
    keep_logits: bool
    after: str = "the outputs in fp32"
    kept: Storage | None = None
    _value: Tensor | None = None

    @property
    def label(self) -> str:
        return f"the loss over the {self.spec.vocab_size}-token vocabulary"

    @property
    def table_viewed(self) -> bool:
        # Under autocast the head's part was cast to fp32: a tensor of its own, and no view.
        return self.ctx.amp is None or self.ctx.width == self.ctx.amp_width

    def forward(self, tape: Tape, x: Tensor) -> tuple[list[Event], list[Event]]:
        spec, ctx = self.spec, self.ctx
        scores = blocks.logits(tape, x, spec, ctx, ctx.tokens)
        if ctx.stack.shifted_logits and not spec.plain_loss:
            upcast = spec.model_type not in ctx.stack.uncast_loss_types
            self._value = older.shifted_loss(tape, scores, upcast, ctx)
        else:
            self._value = blocks.loss(tape, scores, ctx, spec.plain_loss)
        # The model's forward still names its last hidden states.
        tape.drop(x)
        return self._returned(tape, scores)

    def _returned(self, tape: Tape, scores: Tensor) -> tuple[list[Event], list[Event]]:
        """Under autocast accelerate casts the logits to fp32 once the model has returned
        (`convert_outputs_to_fp32`). The loop then lets go of them, or keeps them."""
        if self.ctx.amp is None:
            tape.release_cached()
            if self.keep_logits:
                self.kept = scores.storage
            else:
                tape.drop(scores)
            return tape.take_events(), []
        events = tape.take_events()
        tape.release_cached()
        wide = tape.new(scores.count, 4, component="logits")
        tape.drop(scores)
        if self.keep_logits:
            self.kept = wide.storage
        else:
            tape.drop(wide)
        return events, tape.take_events()

    def backward(self, tape: Tape, x: Tensor) -> Storage | None:
        assert self._value is not None
        table = tied_table(tape, self.spec)
        pending = run_backward(tape, self._value, Storage(0, "logits")).get(id(table))
        if pending is not None and not self.table_viewed and not tape.accumulate:
            # The embeddings' part is summed into it, and it stays.
            pending.component = "gradients"
        return pending


@dataclass(slots=True)
class _Fused:
    """A loss that makes no logits of the whole batch."""

    spec: ModelSpec
    loss: FusedLoss
    after: str = "the loop's own sums"
    table_viewed: bool = False
    kept: Storage | None = None

    @property
    def label(self) -> str:
        return self.loss.label

    def forward(self, tape: Tape, x: Tensor) -> tuple[list[Event], list[Event]]:
        self.loss.forward(tape, x)
        tape.drop(x)
        events = tape.take_events()
        tape.release_cached()
        self.loss.returned(tape)
        return events, tape.take_events()

    def backward(self, tape: Tape, x: Tensor) -> Storage | None:
        given, of_weight = self.loss.backward(tape)
        pending = None
        if of_weight is not None and self.spec.tied:
            pending = of_weight
        elif of_weight is not None:
            tape.keep_gradient(of_weight)
        run_backward(tape, x, given)
        return pending


def tied_table(tape: Tape, spec: ModelSpec) -> Tensor | None:
    """Return the table that embeddings and head share, whose gradient has two parts.

    Autograd holds the head's part until the embeddings' is there, and then adds them to a third
    tensor where the head's is a transposed view, into which nothing is summed in place.
    """
    if not spec.tied:
        return None
    for _, inputs, *_ in tape.nodes:
        for tensor in inputs:
            if tensor.parameter and tensor.count == spec.head.weight_count:
                tensor.parameter = False
                return tensor
    return None
