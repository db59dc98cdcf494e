"""Widths stand for types: two half types are told apart, and meet in fp32."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator import estimate
from estimator.architecture.context import inference_context, training_context
from estimator.architecture.parts import add, cast, half_weight, multiply, parameter
from estimator.architecture.tape import Tape
from estimator.architecture.widths import HALF, OTHER_HALF, promoted
from estimator.case import Case, scaler_lines

WIDTHS = st.sampled_from([HALF, OTHER_HALF, 4])
LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 100,
}


def case(**fields: object) -> Case:
    return Case.from_dict({"model": LLAMA, **fields})


def test_the_other_half_type_has_two_bytes_and_equals_itself_alone() -> None:
    assert 10 * OTHER_HALF == 20
    assert OTHER_HALF != HALF
    assert HALF != OTHER_HALF
    assert OTHER_HALF not in (HALF, 4)
    assert len({HALF: 0, OTHER_HALF: 1}) == 2


@given(WIDTHS, WIDTHS)
def test_promotion_is_torch_promote_types(first: int, second: int) -> None:
    torch = pytest.importorskip("torch")
    types = {HALF: torch.bfloat16, OTHER_HALF: torch.float16, 4: torch.float32}
    assert types[promoted(first, second)] == torch.promote_types(types[first], types[second])


def test_a_cast_between_half_types_makes_a_tensor() -> None:
    tape = Tape()
    x = tape.new(512, HALF)
    assert cast(tape, x, HALF) is x
    other = cast(tape, x, OTHER_HALF)
    assert other is not x
    assert other.size == x.size
    assert add(tape, x, other).width == 4
    assert multiply(tape, x, other).width == 4


@pytest.mark.parametrize(
    ("dtype", "amp", "fp16"),
    [
        ("bfloat16", "bf16", (False, False)),
        ("float16", "fp16", (True, True)),
        ("float32", "fp16", (False, True)),
        ("float32", "bf16", (False, False)),
        ("bfloat16", "fp16", (False, True)),
        ("float16", "bf16", (True, False)),
        ("float16", None, (True, True)),
        ("bfloat16", None, (False, False)),
    ],
)
def test_whether_weights_and_products_are_fp16(
    dtype: str, amp: str | None, fp16: tuple[bool, bool]
) -> None:
    ctx = inference_context(case(dtype=dtype, mixed_precision=amp), 8, 8)
    assert (ctx.is_fp16(ctx.width), ctx.is_fp16(ctx.amp_width)) == fp16


def test_autocast_remembers_casts_of_fp32_weights_alone() -> None:
    for dtype, kept in (("float32", True), ("float16", False)):
        ctx = training_context(case(task="training", dtype=dtype, mixed_precision="bf16"))
        tape = Tape()
        weight = half_weight(tape, parameter(512, ctx.width, True), ctx)
        tape.drop(weight)
        before = len(tape.events)
        tape.release_cached()
        assert (len(tape.events) > before) == kept


def test_full_training_of_half_weights_under_fp16_names_the_scaler() -> None:
    full = case(task="training", dtype="bfloat16", mixed_precision="fp16")
    (line,) = scaler_lines(full)
    assert "no bfloat16 gradients" in line
    assert line in estimate(full).assumptions
    for fields in (
        {"method": "lora"},
        {"dtype": "float32"},
        {"mixed_precision": "bf16", "dtype": "float16"},
        {"task": "inference"},
    ):
        other = {"task": "training", "dtype": "bfloat16", "mixed_precision": "fp16", **fields}
        assert not scaler_lines(case(**other))
