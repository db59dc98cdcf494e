"""The cards: real sizes, sources, and names people type."""

from __future__ import annotations

import pytest

from estimator.errors import CaseError
from estimator.gpus import find_gpu, gpus, workspace_bytes

REFERENCE_MIB = {
    "H200": 143_771,
    "H100": 81_559,
    "A100-80GB": 81_920,
    "A100-40GB": 40_960,
    "L40S": 46_068,
    "A10": 23_028,
    "L4": 23_034,
    "T4": 15_360,
    "B200": 183_359,
}


@pytest.mark.parametrize("name", REFERENCE_MIB)
def test_reference_figures(name: str) -> None:
    assert find_gpu(name).memory_mib == REFERENCE_MIB[name]
    assert find_gpu(name).memory_bytes == REFERENCE_MIB[name] * 2**20


def test_every_card_has_a_source_and_a_name_of_its_own() -> None:
    assert len(gpus()) >= 40
    assert all(card.source for card in gpus())
    assert all(find_gpu(card.name) is card for card in gpus())
    known = {"pascal", "volta", "turing", "ampere", "ada", "hopper", "blackwell"}
    assert {card.architecture for card in gpus()} == known


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("h100", "H100"),
        ("NVIDIA H100", "H100"),
        ("a100 80gb", "A100-80GB"),
        ("rtx_4090", "RTX-4090"),
        ("RTX4090", "RTX-4090"),
        ("nvidia rtx 6000 ada", "RTX-6000-Ada"),
        ("4090", "RTX-4090"),
        ("a100-80", "A100-80GB"),
        ("H100 80GB", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 NVL", "H100-NVL"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX-3090-Ti"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla T4", "T4"),
    ],
)
def test_names_people_type(typed: str, found: str) -> None:
    assert find_gpu(typed).name == found


def test_unknown_card_gets_suggestions() -> None:
    with pytest.raises(CaseError, match=r"did you mean .*A100-80GB") as raised:
        find_gpu("A100-60GB")
    assert raised.value.field == "gpu"
    assert "gpumem gpus" in str(raised.value)


def test_a_name_of_two_cards_asks_which() -> None:
    with pytest.raises(CaseError, match=r"say which of A100-80GB, A100-40GB$"):
        find_gpu("NVIDIA A100")


@pytest.mark.parametrize("typed", ["24GB", "24", " 24 GiB "])
def test_a_size_asks_for_a_card_of_that_size(typed: str) -> None:
    with pytest.raises(CaseError, match=r"say which card, of .*L4, .*RTX-4090") as raised:
        find_gpu(typed)
    assert "T4," not in str(raised.value)


def test_workspaces_by_architecture() -> None:
    assert workspace_bytes(None) == workspace_bytes("A100-80GB") == 8_519_680
    assert workspace_bytes("H100") == workspace_bytes("B200") == 32 * 2**20
