"""The suites that come with the package cover what each promises."""

from __future__ import annotations

import pytest

from benchmarks.needs import predict_peak
from benchmarks.suite import load_suite
from estimator.case import Case
from estimator.config_source import load_config
from estimator.families import parse_spec
from estimator.units import GIB


def cases_of(name: str) -> list[Case]:
    return [entry.case for entry in load_suite(name).cases]


def test_core_is_the_projects_matrix() -> None:
    cases = cases_of("core")
    assert len(cases) >= 300
    models = {str(case.model) for case in cases}
    assert len({load_config(model).model_type for model in models}) >= 8
    sizes = sorted(parse_spec(load_config(model)).parameters for model in models)
    assert sizes[0] < 0.15e9
    assert 7.9e9 < sizes[-1] < 8.5e9
    assert {case.dtype for case in cases} == {"float32", "float16", "bfloat16"}
    assert len({(case.batch_size, case.sequence_length) for case in cases}) == 2
    kinds = {(case.task, case.method, case.quantization) for case in cases}
    assert kinds == {
        ("inference", "full", None),
        ("inference", "full", "int8"),
        ("inference", "full", "nf4"),
        ("training", "full", None),
        ("training", "lora", None),
        ("training", "lora", "int8"),
        ("training", "lora", "nf4"),
    }
    full = [case for case in cases if case.training and case.method == "full"]
    assert {case.optimizer for case in full} == {"adamw_torch_fused", "adamw_bnb_8bit", "sgd"}
    assert {case.gradient_checkpointing for case in full} == {False, True}


def test_long_context_is_long() -> None:
    cases = cases_of("long-context")
    assert min(case.sequence_length for case in cases) >= 4096
    assert max(case.sequence_length for case in cases) == 131072
    assert {case.task for case in cases} == {"inference", "training"}


@pytest.mark.parametrize("name", ["core", "holdout", "inference", "long-context", "peft", "smoke"])
def test_every_case_fits_on_a_card_of_80_gb_by_its_estimate(name: str) -> None:
    peaks = [predict_peak(case) for case in cases_of(name)]
    assert max(peak.allocated_bytes for peak in peaks if peak is not None) < 79 * GIB


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("inference", {"alone": 10, "repeats": 10}),
        ("training", {"alone": 10, "repeats": 10, "trainer": 12, "history": 6}),
        ("peft", {"alone": 10, "repeats": 10}),
    ],
)
def test_what_is_measured_more_than_once_or_in_another_way(
    name: str, wanted: dict[str, int]
) -> None:
    entries = load_suite(name).cases
    assert len(entries) >= 120
    settings = [entry.settings for entry in entries]
    counts = {
        "alone": sum(each.alone for each in settings),
        "repeats": sum(each.repeats >= 3 for each in settings),
        "trainer": sum(each.trainer for each in settings),
        "history": sum(each.history for each in settings),
    }
    assert all(counts[kind] >= count for kind, count in wanted.items()), counts


def spread(name: str, field: str) -> tuple[int, int]:
    values = [getattr(entry.case, field) for entry in load_suite(name).cases]
    return min(values), max(values)


def test_shapes_reach_as_far_as_they_are_to() -> None:
    assert spread("inference", "batch_size") == (1, 32)
    assert spread("inference", "sequence_length") == (128, 32768)
    for name in ("training", "peft"):
        assert spread(name, "batch_size") == (1, 16)
        assert spread(name, "sequence_length") == (256, 8192)
