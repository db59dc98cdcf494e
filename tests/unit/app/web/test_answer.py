"""The answer to a state: ours as the library gives it, the article's as its calculator does."""

from __future__ import annotations

from typing import Any

import pytest

from app.verdict import judge
from app.web.answer import answer
from app.web.fits import fits
from app.web.form import clean_state
from app.web.numbers import preset_numbers
from estimator import Case, estimate
from estimator.fit import largest_batch, longest_sequence, played_peaks
from estimator.gpus import find_gpu, gpus
from estimator.headroom import Room
from estimator.units import GIB

# What the seed's calculator shows (GiB) at batch 1, 2048 tokens, half precision and AdamW.
CALCULATOR = {
    "Llama-3-8B": (19.46, 108.87),
    "Mixtral-8x7B-Instruct-v0.1": (92.11, 617.37),
    "Qwen2-72B-Instruct": (146.24, 950.90),
    "Llama-3-70B-Instruct": (142.51, 924.82),
    "Phi-3-mini-4k-instruct": (11.12, 53.59),
    "phi-2": (8.82, 38.99),
}


def answered(**fields: Any) -> Any:
    return answer(clean_state(fields))


@pytest.mark.parametrize("name", CALCULATOR)
def test_the_calculators_values(name: str) -> None:
    form = {"source": "numbers", "sequence_length": 2048, **preset_numbers(name)}
    inference, training = CALCULATOR[name]
    shown = answered(**form).article.components
    assert round(shown.total_bytes / GIB, 2) == inference
    shown = answered(**form, task="training").article.components
    assert round(shown.total_bytes / GIB, 2) == training


def test_the_calculators_share_of_trainable_parameters() -> None:
    form = {"source": "numbers", "task": "training", "trainable_percent": 1}
    article = answered(**form).article
    assert article.trainable == 80_000_000
    assert article.components.gradients_bytes == 320_000_000
    assert article.components.optimizer_states_bytes == 640_000_000


def test_the_calculator_trains_quantized_models_in_full_and_we_say_why_not() -> None:
    found = answered(source="numbers", task="training", quantization="nf4", sequence_length=2048)
    assert found.report is None
    assert "cannot be trained in full" in found.problem
    assert found.article.components.weights_bytes == 4_000_000_000


def test_ours_is_the_librarys() -> None:
    case = {"model": "gpt2", "task": "training", "batch_size": 4, "gpu": "L4"}
    found = answered(**case)
    assert found.report == estimate(Case.from_dict({**case, "model": "openai-community/gpt2"}))
    assert found.problem is None


@pytest.mark.parametrize("gpu", ["none", "L4", "H100"])
def test_every_card_is_judged_with_its_own_workspaces(gpu: str) -> None:
    found = answered(gpu=gpu)
    assert [card.gpu.memory_mib for card in found.cards] == sorted(g.memory_mib for g in gpus())
    for card in found.cards:
        case = Case.from_dict({"model": "meta-llama/Llama-3.1-8B", "gpu": card.gpu.name})
        assert card.verdict == judge(estimate(case), card.gpu)


def test_the_article_of_a_catalogue_model_is_the_librarys() -> None:
    found = answered(task="training", optimizer="sgd")
    case = {"model": "meta-llama/Llama-3.1-8B", "task": "training", "optimizer": "sgd"}
    report = estimate(Case.from_dict(case), "article")
    assert found.article.components == report.components
    assert answered(task="training", optimizer="lion_8bit").article_problem.startswith(
        "the article has no rule"
    )


def test_what_fits_is_the_librarys() -> None:
    found = fits(clean_state({"task": "training", "gpu": "H100", "model": "gpt2"}))
    case = {"model": "openai-community/gpt2", "task": "training", "gpu": "H100"}
    room = Room(find_gpu("H100"))
    assert found is not None
    assert found.fits
    assert found.changes is None
    assert found.batch == largest_batch(Case.from_dict(case), played_peaks, room)
    assert found.length == longest_sequence(Case.from_dict(case), played_peaks, room)


def test_what_does_not_fit_has_changes() -> None:
    found = fits(clean_state({"task": "training", "gpu": "A10"}))
    assert found is not None
    assert not found.fits
    assert found.changes is not None
    assert any(item.fits for item in found.changes.tried)


@pytest.mark.parametrize("form", [{"batch_size": 3, "sequence_length": 100}, {"gpu": "none"}, {}])
def test_the_heat_map_is_estimated_point_by_point(form: dict[str, Any]) -> None:
    form = {"model": "gpt2", **form}
    found = fits(clean_state(form))
    assert found is not None
    chart, case = found.heat_map, found.case
    assert case.batch_size in chart.batches
    assert case.sequence_length in chart.lengths
    assert max(chart.lengths) + (case.max_new_tokens or 0) <= 1024 + 128
    for batch, row in zip(chart.batches, chart.peaks, strict=True):
        for length, size in zip(chart.lengths, row, strict=True):
            point = Case.from_dict(
                {**case.to_dict(), "batch_size": batch, "sequence_length": length}
            )
            assert size == estimate(point).peak.allocated_bytes


def test_without_an_estimate_nothing_fits_and_one_sentence_says_why() -> None:
    for form in ({"model": "nonsense"}, {"batch_size": -1}):
        assert fits(clean_state(form)) is None
        found = answered(**form)
        assert found.report is None
        assert found.problem
        assert "\n" not in found.problem
