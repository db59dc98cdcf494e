"""Sizes for people: GB is not GiB."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from estimator.units import (
    GB,
    GIB,
    ceil_div,
    format_both,
    format_error,
    format_gb,
    format_gib,
    relative_error,
    round_up,
)


def test_both_units_are_labelled() -> None:
    assert format_gb(17_250_000_000) == "17.25 GB"
    assert format_gib(17_250_000_000) == "16.07 GiB"
    assert format_both(GIB) == "1.07 GB (1.00 GiB)"
    assert (GB, GIB) == (1_000_000_000, 1_073_741_824)


@given(st.integers(0, 2**70), st.integers(1, 2**40))
def test_rounding_up(value: int, unit: int) -> None:
    assert round_up(value, unit) == ceil_div(value, unit) * unit
    assert 0 <= round_up(value, unit) - value < unit


def test_plus_is_an_over_estimate() -> None:
    assert relative_error(105, 100) == pytest.approx(0.05)
    assert format_error(relative_error(105, 100)) == "+5.00 %"
    assert format_error(relative_error(95, 100)) == "-5.00 %"
    with pytest.raises(ZeroDivisionError):
        relative_error(1, 0)
