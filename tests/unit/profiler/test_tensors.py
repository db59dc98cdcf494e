"""Sums over real tensors: storages once, blocks of 512 B, logical parameter counts."""

from __future__ import annotations

import pytest
import torch

from estimator.units import ceil_div, round_up
from profiler.tensors import (
    BLOCK_BYTES,
    count_parameters,
    gradients,
    model_tensors,
    optimizer_tensors,
    storage_bytes,
)


class Tied(torch.nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(100, 8)
        self.head = torch.nn.Linear(8, 100, bias=False)
        self.head.weight = self.embedding.weight
        self.norm = torch.nn.LayerNorm(8).requires_grad_(False)
        self.register_buffer("positions", torch.zeros(3, dtype=torch.int64))


def test_what_is_shared_is_counted_once_and_in_blocks() -> None:
    model = Tied()
    # 3 200 B of the tied weight are 7 blocks; norm weight, norm bias and the buffer one each.
    assert storage_bytes(model_tensors(model), "cpu") == (7 + 3) * BLOCK_BYTES
    parameters = count_parameters(model)
    assert (parameters.total, parameters.trainable) == (816, 800)
    view = model.embedding.weight.detach()[1:2]
    assert storage_bytes([view, view.clone()], "cpu") == (7 + 1) * BLOCK_BYTES
    assert storage_bytes([torch.zeros(5, device="meta")], "cpu") == 0


def test_gradients_and_states_are_those_that_exist() -> None:
    model = Tied()
    optimizer = torch.optim.AdamW([model.embedding.weight])
    assert storage_bytes(gradients(model), "cpu") == 0
    assert storage_bytes(optimizer_tensors(optimizer), "cpu") == 0
    model.head(model.embedding(torch.tensor([1, 2]))).sum().backward()
    optimizer.step()
    assert storage_bytes(gradients(model), "cpu") == 7 * BLOCK_BYTES
    # Two moments, and a step count of its own.
    assert storage_bytes(optimizer_tensors(optimizer), "cpu") == (7 + 7 + 1) * BLOCK_BYTES


@pytest.mark.parametrize("double", [False, True])
def test_a_4_bit_weight_counts_its_elements_and_holds_its_tables(double: bool) -> None:
    # On x86-64 only: see pyproject.toml.
    bitsandbytes = pytest.importorskip("bitsandbytes")
    linear = bitsandbytes.nn.Linear4bit(
        256, 128, bias=False, quant_type="nf4", compress_statistics=double
    ).to("cpu")
    elements = 256 * 128
    assert count_parameters(linear).total == elements
    blocks = elements // 64
    sizes = [elements // 2, 16 * 4]
    if double:
        # absmax as uint8, an fp32 a 256 of them, the offset, and a code table of 256 fp32.
        sizes += [blocks, 4 * ceil_div(blocks, 256), 4, 256 * 4]
    else:
        sizes += [4 * blocks]
    expected = sum(round_up(size, BLOCK_BYTES) for size in sizes)
    assert storage_bytes(model_tensors(linear), "cpu") == expected
