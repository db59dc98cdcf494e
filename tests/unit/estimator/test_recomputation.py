"""Selective recomputation: what the core attention keeps, and what is played again when."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from estimator import estimate
from estimator.architecture.autograd import run_backward
from estimator.architecture.events import Storage
from estimator.architecture.recomputation import recomputed
from estimator.architecture.tape import Tape, Tensor
from estimator.case import Case
from estimator.errors import UnsupportedError

KB = 1024
LLAMA = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
}


def two_steps(tape: Tape, x: Tensor) -> tuple[Tensor, None]:
    """An operation that saves its output, then one that saves its input."""
    middle = tape.op(2 * KB, 1, (x,), saves_out=True)
    out = tape.op(KB, 1, (middle,), (middle,))
    tape.drop(middle)
    return out, None


def given_input() -> Tensor:
    return Tensor(KB, 1, True, Storage(KB, None))


def alive(tape: Tape) -> int:
    return sum(sign * storage.requested for storage, sign in tape.events)


def test_forward_keeps_the_input_and_nothing_in_between() -> None:
    tape, x = Tape(), given_input()
    out, _ = recomputed(tape, (x,), two_steps)
    assert alive(tape) == KB
    assert tape.keeping
    assert x.storage is not None
    assert x.storage.refs == 2
    assert x.storage.kind == "activations"
    tape.drop(out)
    assert alive(tape) == 0


def test_backward_plays_it_again_once_and_lets_everything_go() -> None:
    tape, x = Tape(), given_input()
    out, _ = recomputed(tape, (x,), two_steps)
    tape.drop(out)
    before = len(tape.events)
    reached = run_backward(tape, out, Storage(KB, None))
    made = [storage.requested for storage, sign in tape.events[before:] if sign > 0]
    # The tensor in between, once; then its gradient and the input's. The last operation saves
    # nothing but its input, so that it is not run again.
    assert made == [2 * KB, 2 * KB, KB]
    tape.free(*reached.values())
    assert x.storage is not None
    assert x.storage.refs == 1
    # The gradient that came in was made elsewhere.
    assert alive(tape) == -KB


def test_nothing_is_kept_where_nothing_needs_gradients() -> None:
    tape = Tape(recording=False)
    x = given_input()
    out, _ = recomputed(tape, (x,), two_steps)
    assert x.storage is not None
    assert x.storage.refs == 1
    tape.drop(out)
    frozen, y = Tape(), Tensor(KB, 1, False, Storage(KB, None))
    recomputed(frozen, (y,), two_steps)
    assert y.storage is not None
    assert y.storage.refs == 1


def saved_after_forward(**fields: Any) -> int:
    report = estimate(Case.from_dict({"model": LLAMA, "task": "training", **fields}))
    return next(p.end_allocated_bytes for p in report.phases if p.name == "forward")


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 8),
    length=st.integers(64, 2048),
    dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    heads=st.sampled_from([1, 2, 4]),
)
def test_between_whole_layers_and_nothing(batch: int, length: int, dtype: str, heads: int) -> None:
    model = {**LLAMA, "num_key_value_heads": heads}
    shape = {"model": model, "batch_size": batch, "sequence_length": length, "dtype": dtype}
    ends = [
        saved_after_forward(attention="eager", **shape, **fields)
        for fields in (
            {"gradient_checkpointing": True},
            {"gradient_checkpointing": True, "recompute_granularity": "selective"},
            {},
        )
    ]
    assert ends[0] < ends[1] < ends[2]


def test_what_is_left_grows_with_the_length_and_not_with_its_square() -> None:
    def saved(length: int) -> int:
        return saved_after_forward(
            attention="eager",
            gradient_checkpointing=True,
            recompute_granularity="selective",
            sequence_length=length,
        )

    # Only the mask that all layers share is a square.
    bend = saved(3072) - 2 * saved(2048) + saved(1024)
    mask = 2 * (3072**2 - 2 * 2048**2 + 1024**2)
    assert bend == pytest.approx(mask, abs=2**20)


def test_attention_inside_of_a_layers_own_code_is_refused() -> None:
    falcon = {"model_type": "falcon", "hidden_size": 256, "num_attention_heads": 4}
    case = Case.from_dict(
        {
            "model": {**falcon, "num_hidden_layers": 2, "vocab_size": 1000},
            "task": "training",
            "gradient_checkpointing": True,
        }
    )
    assert estimate(case).peak.allocated_bytes
    with pytest.raises(UnsupportedError, match="use recompute_granularity full"):
        estimate(replace(case, recompute_granularity="selective"))
