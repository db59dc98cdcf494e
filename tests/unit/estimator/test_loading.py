"""The order in which a model's tensors are made, and what loading leaves."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from estimator import Case
from estimator.allocator import CachingAllocator
from estimator.architecture.inventory import held, inventory, weight_sizes, weights
from estimator.architecture.loading import put_in_order
from estimator.case import Lora
from estimator.config_source import load_config
from estimator.families import parse_spec
from estimator.units import MIB

SIZES = st.lists(st.integers(1, 9))


def sizes_of(loaded: bool = False, **fields: Any) -> list[int]:
    """Return the sizes above 1 MiB, in their order."""
    case = Case.from_dict(fields)
    items = inventory(parse_spec(load_config(case.model)), case.lora)
    return [size for size in weight_sizes(case, items, loaded) if size > MIB]


@given(sizes=SIZES, places=SIZES)
def test_order_changes_nothing_but_order(sizes: list[int], places: list[int]) -> None:
    ordered = put_in_order(sizes, places)
    assert sorted(ordered) == sorted(sizes)
    wanted = [size for size in places if size in sizes]
    assert list(ordered[:1]) == wanted[:1] or not wanted


def test_adapters_stand_behind_what_they_adapt() -> None:
    llama = {
        "model_type": "llama",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 1,
        "num_attention_heads": 8,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    }
    lora = {"r": 512, "target_modules": ["q_proj"]}
    found = sizes_of(model=llama, task="training", method="lora", lora=lora)
    square, matrix, wide = 2 * MIB, 2 * MIB, 8 * MIB
    assert found == [65_536_000, square, matrix, matrix, *(square,) * 3, *(wide,) * 3]


def test_parts_that_are_defined_before_what_runs_first() -> None:
    phi3 = {"model_type": "phi3", "num_hidden_layers": 1, "hidden_size": 2048, "vocab_size": 32000}
    phi3 |= {"num_attention_heads": 16, "intermediate_size": 4096, "pad_token_id": 0}
    output, fused = 2 * 2048 * 2048, 3 * 2 * 2048 * 2048
    assert sizes_of(model=phi3)[1:3] == [output, fused]
    camembert = {"model_type": "camembert", "hidden_size": 1024, "num_attention_heads": 16}
    assert sizes_of(model={**camembert, "is_decoder": True})[0] == 2 * 1024 * 1024


def test_a_layers_own_buffers_stand_before_it() -> None:
    neo = "EleutherAI/gpt-neo-125m"
    masks = [index for index, size in enumerate(sizes_of(model=neo)) if size == 4 * MIB]
    # Six matrices of a layer lie between two masks.
    assert [b - a for a, b in pairwise(masks)] == [7] * 11


def test_double_quantization_copies_its_table_for_each_linear() -> None:
    spec = parse_spec(load_config("Llama-3.2-1B"))
    case = Case.from_dict(
        {"model": "Llama-3.2-1B", "quantization": "nf4", "double_quantization": True}
    )
    sizes = weight_sizes(case, inventory(spec, None))
    # Seven linears a layer; two of them have scales' scales of that size, too.
    assert sizes.count(1024) == (7 + 2) * 16


def test_a_computed_table_is_loaded_in_fp32() -> None:
    case = Case.from_dict({"model": "Salesforce/ctrl", "task": "training", "dtype": "bfloat16"})
    spec = parse_spec(load_config(case.model))
    items = inventory(spec, None)
    wide, cast = (weights(case, items, loaded).requested_bytes for loaded in (True, False))
    assert wide == cast + 2 * spec.fixed_positions * spec.hidden_size


@given(counts=st.lists(st.integers(1, 12 * MIB), max_size=60))
def test_small_tensors_need_not_be_played(counts: list[int]) -> None:
    allocator = CachingAllocator()
    for count in counts:
        allocator.allocate(count)
    assert held(tuple(counts), 1).requested_bytes == allocator.requested_bytes
    assert held(tuple(counts), 1).allocated_bytes == allocator.allocated_bytes


def test_the_order_of_adapters_is_that_of_the_linears() -> None:
    spec = parse_spec(load_config("Llama-3.2-1B"))
    items = inventory(spec, Lora(r=8, target_modules=("q_proj", "v_proj")))
    assert items.adapters[:4] == (8 * 2048, 2048 * 8, 8 * 2048, 512 * 8)


def test_a_table_of_positions_is_as_narrow_as_the_embeddings_that_it_is_added_to() -> None:
    rembert = {
        "model_type": "rembert",
        "vocab_size": 32000,
        "hidden_size": 1152,
        "num_hidden_layers": 1,
        "num_attention_heads": 18,
        "intermediate_size": 4608,
        "max_position_embeddings": 512,
        "input_embedding_size": 256,
    }
    lora = {"r": 256, "target_modules": ["dense"]}
    found = sizes_of(model=rembert, task="training", method="lora", lora=lora)
    # Of the size of adapters' matrices the table would be if it were as wide as what is hidden.
    square, matrix = 2 * 1152 * 1152, 4 * 256 * 1152
    assert found[:7] == [2 * 32000 * 256, *(square,) * 4, matrix, matrix]
