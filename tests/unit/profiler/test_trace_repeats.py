"""Operations remembered by sizes give what torch gives, and never what it must do anew."""

from __future__ import annotations

from typing import Any

import pytest

torch = pytest.importorskip("torch")

from benchmarks.case_generator import QUICK, draw_cases  # noqa: E402
from estimator.case import Case  # noqa: E402
from estimator.errors import GpumemError  # noqa: E402
from profiler.trace import repeats, trace_case  # noqa: E402
from profiler.trace.repeats import Repeats  # noqa: E402

aten = torch.ops.aten


def meta(*sizes: int, dtype: Any = None) -> Any:
    return torch.empty(*sizes, dtype=dtype or torch.float32, device="meta")


def counted(repeated: Repeats, func: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any, int]:
    """Run twice; return both results and how many of them torch itself has made."""
    made = 0

    class Counting:
        namespace = func.namespace
        _schema = func._schema

        def __call__(self, *inner: Any, **named: Any) -> Any:
            nonlocal made
            made += 1
            return func(*inner, **named)

    counting = Counting()
    first = repeated.run(counting, args, kwargs)
    return first, repeated.run(counting, args, kwargs), made


@pytest.mark.parametrize(
    ("func", "args", "kwargs"),
    [
        (aten.add.Tensor, (meta(3, 1), meta(4, dtype=torch.float64)), {"alpha": 2}),
        (aten.mul.Tensor, (meta(4, 6).t(), 2.0), {}),
        (aten.mm.default, (meta(3, 4), meta(4, 5)), {}),
        (aten._softmax.default, (meta(2, 3), -1, False), {}),
        (aten.cat.default, ([meta(2, 3), meta(4, 3)],), {}),
        (aten._to_copy.default, (meta(2, 3),), {"dtype": torch.bfloat16}),
        (aten.native_layer_norm.default, (meta(2, 3), [3], None, None, 1e-5), {}),
        (aten.pow.Tensor_Scalar, (meta(2, dtype=torch.int64), 2), {}),
    ],
)
def test_a_repeated_operation_is_only_allocated(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    first, again, made = counted(Repeats(), func, *args, **kwargs)
    assert made == 1
    firsts, others = (x if isinstance(x, tuple) else (x,) for x in (first, again))
    for one, other in zip(firsts, others, strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)
        assert one.device == other.device
        assert one.untyped_storage()._cdata != other.untyped_storage()._cdata
        assert one.untyped_storage().nbytes() == other.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.view.default, (meta(2, 3), [6])),
        (aten._unsafe_view.default, (meta(2, 3), [6])),
        (aten.add_.Tensor, (meta(2, 3), 1)),
        (aten.t.default, (meta(2, 3),)),
    ],
)
def test_views_and_writes_are_run_each_time(func: Any, args: tuple[Any, ...]) -> None:
    first, again, made = counted(Repeats(), func, *args)
    assert made == 2
    for out in (first, again):
        assert out.untyped_storage()._cdata == args[0].untyped_storage()._cdata


def test_a_tensor_off_meta_is_never_remembered() -> None:
    x = torch.ones(3)
    _, again, made = counted(Repeats(), aten.mul.Tensor, x, 2.0)
    assert made == 2
    assert again.tolist() == [2.0, 2.0, 2.0]


def test_types_of_numbers_tell_operations_apart() -> None:
    repeated, whole = Repeats(), meta(3, dtype=torch.int64)
    dtypes = [repeated.run(aten.mul.Tensor, (whole, by), {}).dtype for by in (1, 1.0, True)]
    assert dtypes == [torch.int64, torch.float32, torch.int64]


def test_traces_are_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(case: Case) -> Any:
        try:
            return trace_case(case).to_dict()
        except GpumemError as error:
            return str(error)

    cases = [case for case in draw_cases(31, 12, QUICK) if case.sequence_length <= 1024]
    with_it = [traced(case) for case in cases]
    monkeypatch.setattr(repeats.Repeats, "run", lambda _, func, args, kwargs: func(*args, **kwargs))
    assert [traced(case) for case in cases] == with_it
