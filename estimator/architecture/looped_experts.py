"""Formulas of experts that the model's code runs one after the other (LongCat).

Each expert that a token goes to gathers its tokens, and adds what it makes of them to the sum in
place; experts beyond the last hand their tokens on as they are. A slice of the stacked weights has
a gradient of all experts' size, which autograd adds up before it reaches the parameter.

Tokens are spread evenly: each expert has as many pairs of a token and an expert, rounded up.

Source: transformers/models/longcat_flash/modeling_longcat_flash.py (`LongcatFlashExperts.forward`,
`LongcatFlashTopkRouter.forward`).
"""

from __future__ import annotations

from estimator.architecture.context import Context
from estimator.architecture.experts import gather, weighted
from estimator.architecture.parts import (
    activation,
    cast,
    half_weight,
    multiply,
    operands,
    parameter,
    product_input,
)
from estimator.architecture.routers import corrected_choice
from estimator.architecture.tape import PASS, Tape, Tensor
from estimator.spec import Moe
from estimator.units import ceil_div


def looped_mixture(tape: Tape, x: Tensor, spec: Moe, ctx: Context) -> Tensor:
    """Play the block on `x` ([B, Q, hidden], borrowed): [B, Q, hidden]."""
    rows = tape.view(x, x.count)
    indices, scores = corrected_choice(tape, rows, spec, ctx)
    total = tape.new(rows.count, rows.width)
    every = spec.experts + spec.zero_experts
    pairs = ctx.tokens * spec.active
    mask = tape.new(pairs * every, 8)
    sums, hits = tape.new(every, 8), tape.new(every, 1)
    tape.drop(sums)
    hit = min(every, pairs)
    numbers = tape.new(hit, 8)
    tape.drop(hits)
    loop = _Loop(tape, rows, scores, total, spec, ctx, ceil_div(pairs, every))
    for _ in tape.rounds(min(spec.experts, hit)):
        loop.expert()
    for _ in tape.rounds(hit - min(spec.experts, hit)):
        loop.identity()
    loop.end()
    tape.drop(mask, numbers, scores, indices, rows)
    return loop.total


class _Loop:
    """The loop over experts, and what its code names from one round to the next."""

    def __init__(
        self,
        tape: Tape,
        x: Tensor,
        scores: Tensor,
        total: Tensor,
        spec: Moe,
        ctx: Context,
        share: int,
    ) -> None:
        self.total = total
        self._tape, self._x, self._scores, self._spec, self._ctx = tape, x, scores, spec, ctx
        self._share = share
        self._whole = [
            tape.view(parameter(spec.stacked(name), ctx.width, ctx.full), spec.stacked(name))
            for name in ("gate_up", "down")
        ]
        self._ids: Tensor | None = None
        self._state: Tensor | None = None
        self._both: Tensor | None = None
        self._product: Tensor | None = None

    def expert(self) -> None:
        """One expert's gate, up and down."""
        tape, spec, ctx = self._tape, self._spec, self._ctx
        state = self._gathered()
        both = self._times(state, 0, spec.up_features, spec.hidden)
        tape.drop(self._both)
        self._both = both
        gate, up = tape.split(both, (both.count // 2,) * 2, both.size)
        opened = activation(tape, gate, spec.activation, ctx)
        hidden = multiply(tape, opened, up)
        tape.drop(opened, gate, up)
        self._let_product_go()
        out = self._times(hidden, 1, spec.hidden, spec.width)
        tape.drop(hidden)
        self._add(out)

    def identity(self) -> None:
        """Tokens handed on as they are."""
        state = self._gathered()
        self._let_product_go()
        self._add(self._tape.alias(state))

    def end(self) -> None:
        """The loop's names go."""
        self._tape.drop(self._ids, self._state, self._both, self._product)

    def _gathered(self) -> Tensor:
        """The tokens of a round: [share, hidden]."""
        ids = self._tape.new(2 * self._share, 8)
        self._tape.drop(self._ids)
        self._ids = ids
        index = Tensor(self._share, 8, False, ids.storage)
        state = gather(self._tape, self._x, self._share * self._spec.hidden, index)
        self._tape.drop(self._state)
        self._state = state
        return state

    def _times(self, x: Tensor, which: int, outputs: int, inputs: int) -> Tensor:
        """`x` times a slice of the stacked weights."""
        tape, whole = self._tape, self._whole[which]
        part = tape.view(whole, outputs * inputs, whole.size)
        read, weight = product_input(tape, x, self._ctx), half_weight(tape, part, self._ctx, True)
        saves = operands(read, weight)
        out = tape.op(self._share * outputs, read.width, (weight, read), saves)
        tape.drop(read, weight)
        return out

    def _let_product_go(self) -> None:
        self._tape.drop(self._product)
        self._product = None

    def _add(self, out: Tensor) -> None:
        """`total.index_add_(out * scores)`; `out` is consumed."""
        tape = self._tape
        assert self._ids is not None
        index = Tensor(self._share, 8, False, self._ids.storage)
        own = gather(tape, self._scores, self._share, index)
        self._product = weighted(tape, out, own, self._ctx)
        tape.drop(out, own)
        narrow = cast(tape, self._product, self._total_width)
        before = self.total
        grads = (PASS, narrow.size)
        saves = (narrow, index)
        self.total = tape.op(
            before.count, before.width, (before, narrow), saves, grads=grads, into=before
        )
        tape.drop(before, narrow)

    @property
    def _total_width(self) -> int:
        return self.total.width
