"""Inputs that once ended in a traceback, a hang, or bytes below zero."""

from __future__ import annotations

from typing import Any

import pytest

from estimator import estimate
from estimator.case import Case
from estimator.catalogue import find_model
from estimator.errors import CaseError, ModelError, UnsupportedError


def test_a_number_too_large_for_a_float_is_one_sentence() -> None:
    config = {**find_model("google/gemma-2-2b").config, "attn_logit_softcapping": 10**400}
    with pytest.raises(ModelError, match=r"attn_logit_softcapping is 1000.*a number other than 0"):
        estimate(Case.from_dict({"model": config}))


@pytest.mark.parametrize("fields", [{"task": "training"}, {"task": "inference"}])
def test_more_chunks_than_can_be_played_one_by_one_are_counted(fields: dict[str, Any]) -> None:
    case = {"model": "Qwen/Qwen3-Next-80B-A3B-Instruct", "sequence_length": 2**31 - 1, **fields}
    twice = {**case, "sequence_length": 2**30}
    peaks = [estimate(Case.from_dict(each)).peak.allocated_bytes for each in (case, twice)]
    assert 1.9 < peaks[0] / peaks[1] < 2.1


@pytest.mark.parametrize("cache", ["static", "quantized", "paged"])
def test_a_stack_of_tuples_has_no_other_cache(cache: str) -> None:
    fields = {"model": "Llama-3.2-1B", "stack": "transformers-4.35", "cache": cache}
    with pytest.raises(UnsupportedError, match=f"cache is '{cache}'.*use cache dynamic"):
        estimate(Case.from_dict(fields))


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf")])
def test_a_fraction_is_one_whatever_its_size(value: float) -> None:
    with pytest.raises(CaseError, match=r"momentum is .*a number from 0 to below 1"):
        Case.from_dict({"model": "gpt2", "momentum": value})


def test_a_name_of_two_lines_is_shown_in_one() -> None:
    with pytest.raises(UnsupportedError, match=r"model type 'a\\nb' of a b: use gpumem trace"):
        estimate(Case.from_dict({"model": {"model_type": "a\nb"}}))
