"""Operations whose result depends on values: what a trace answers, and what it says it assumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from profiler.trace.answers import MASK_LINE, ROUTING_LINE, Answers
from profiler.trace.cuda_paths import as_on_cuda
from profiler.trace.modules import Modules
from profiler.trace.recorder import Recorder
from profiler.trace.timeline import Timeline

TOKENS, TOP_K, EXPERTS = 6, 2, 4


@pytest.fixture
def answers() -> Iterator[Answers]:
    """The answers of a recorder that is active during the test."""
    recorder = Recorder(Timeline(), 100, 0, Modules(torch.nn.Linear(1, 1, device="meta")))
    with as_on_cuda(), recorder:
        yield recorder.answers


def chosen() -> Any:
    """The experts of each token, int64 [TOKENS, TOP_K], as a router chooses them."""
    scores = torch.empty(TOKENS, EXPERTS, device="meta")
    return torch.topk(scores, TOP_K, dim=-1).indices


def expert_mask() -> Any:
    mask = torch.nn.functional.one_hot(chosen(), num_classes=EXPERTS)
    return mask.permute(2, 1, 0)


def test_an_unknown_mask_is_full(answers: Answers) -> None:
    mask = torch.empty(3, 5, dtype=torch.bool, device="meta")
    assert mask.all().item() is True
    assert mask.nonzero().shape == (15, 2)
    assert list(answers.lines) == [MASK_LINE]


def test_an_unknown_mask_selects_everything(answers: Answers) -> None:
    mask = torch.empty(3, 5, dtype=torch.bool, device="meta")
    values = torch.empty(3, 5, 7, device="meta")
    assert values[mask].shape == (15, 7)
    assert torch.masked_select(values[..., 0], mask).shape == (15,)


def test_unknown_numbers_are_one(answers: Answers) -> None:
    assert torch.empty((), device="meta").item() == 1.0
    assert torch.empty((), dtype=torch.int64, device="meta").item() == 1
    assert torch.empty(3, dtype=torch.int64, device="meta").tolist() == [1, 1, 1]


def test_real_tensors_are_left_alone(answers: Answers) -> None:
    assert torch.tensor([3, 0, 4]).nonzero().tolist() == [[0], [2]]
    assert torch.tensor(7).item() == 7
    assert torch.arange(4.0)[torch.tensor([True, False, True, False])].tolist() == [0.0, 2.0]
    assert not answers.lines


def test_each_expert_gets_an_equal_share(answers: Answers) -> None:
    mask = expert_mask()
    hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
    assert hit.shape == (EXPERTS, 1)
    assert [index.item() for index in hit] == [0, 1, 2, 3]
    position, token = torch.where(mask[hit[2, 0]])
    assert position.shape == token.shape == (TOKENS * TOP_K // EXPERTS,)
    assert list(answers.lines) == [ROUTING_LINE]


def test_a_share_is_rounded_up(answers: Answers) -> None:
    mask = torch.nn.functional.one_hot(chosen(), num_classes=5).permute(2, 1, 0)
    # 12 choices over 5 experts.
    assert torch.where(mask[1])[0].shape == (3,)


def test_few_tokens_hit_few_experts(answers: Answers) -> None:
    scores = torch.empty(1, 8, device="meta")
    choice = torch.topk(scores, TOP_K, dim=-1).indices
    mask = torch.nn.functional.one_hot(choice, num_classes=8).permute(2, 1, 0)
    hit = torch.greater(mask.sum(dim=(-1, -2)), 0).nonzero()
    assert hit.shape == (TOP_K, 1)


def test_counts_by_expert_add_up(answers: Answers) -> None:
    flat = chosen().flatten()
    by_histogram = torch.histc(flat.int(), bins=5, min=0, max=4)
    assert by_histogram.cpu().tolist() == [3, 3, 2, 2, 2]
    assert torch.cumsum(by_histogram, dim=0).tolist() == [3, 6, 8, 10, 12]
    assert torch.bincount(flat, minlength=5).tolist() == [3, 3, 2, 2, 2]


def test_counts_of_a_scattered_mask_add_up(answers: Answers) -> None:
    zeros = torch.zeros(TOKENS, EXPERTS, dtype=torch.bfloat16, device="meta")
    gates = zeros.scatter(1, chosen(), 1)
    assert gates.long().sum(0).tolist() == [3, 3, 3, 3]


def test_a_comparison_with_an_expert_selects_its_share(answers: Answers) -> None:
    assert (chosen() == 3).nonzero().shape == (TOKENS * TOP_K // EXPERTS, 2)


def test_what_is_known_of_a_tensor_ends_with_it(answers: Answers) -> None:
    counts = torch.histc(chosen().flatten().int(), bins=EXPERTS, min=0, max=3)
    shape, dtype = counts.shape, counts.dtype
    assert counts.tolist() == [3, 3, 3, 3]
    del counts
    # The same size again: the storage may well be at the same address.
    assert torch.empty(shape, dtype=dtype, device="meta").tolist() == [1, 1, 1, 1]
