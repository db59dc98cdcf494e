"""-k, --shard and durations."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.selection import (
    SelectionError,
    parse_duration,
    parse_expression,
    parse_shard,
    select,
    take_shard,
)


@dataclass
class Item:
    id: str


@pytest.mark.parametrize(
    ("expression", "name", "matches"),
    [
        ("lora", "gpt2-LoRA-bf16", True),
        ("lora and not gpt2", "gpt2-lora", False),
        ("lora and not gpt2", "llama-lora", True),
        ("gpt2 or llama and eager", "gpt2", True),
        ("(gpt2 or llama) and eager", "gpt2", False),
        ("not (gpt2 or llama)", "qwen", True),
        ("not not gpt2", "gpt2", True),
        ("NOT gpt2", "gpt2", False),
        ("1x2048+16", "a-1x2048+16", True),
    ],
)
def test_an_expression_means_what_pytest_means(expression: str, name: str, matches: bool) -> None:
    assert parse_expression(expression)(name) is matches


@pytest.mark.parametrize(
    "bad", ["", "  ", "and", "a and", "a or or b", "not", "(a", "a)", "a b", "()", "(" * 99 + "a"]
)
def test_a_bad_expression_is_one_sentence(bad: str) -> None:
    with pytest.raises(SelectionError, match="-k"):
        parse_expression(bad)


@given(st.lists(st.integers(), max_size=40), st.integers(1, 12))
def test_shards_cover_all_exactly_once(items: list[int], count: int) -> None:
    parts = [take_shard(items, (index, count)) for index in range(1, count + 1)]
    assert sorted(item for part in parts for item in part) == sorted(items)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("bad", ["", "1", "0/2", "3/2", "1/0", "a/b", "-1/2", "1/2/3", "1.5/2"])
def test_a_bad_shard(bad: str) -> None:
    with pytest.raises(SelectionError, match="--shard"):
        parse_shard(bad)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5s", 1.5), ("9m", 540), ("1h30m", 5400)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text, "--timeout") == seconds


@pytest.mark.parametrize("bad", ["", "0", "0s", "-3", "9x", "m", "nan", "1m2h", "9" * 30, "²s"])
def test_a_bad_duration(bad: str) -> None:
    with pytest.raises(SelectionError, match="--timeout"):
        parse_duration(bad, "--timeout")


def test_select_applies_the_expression_before_the_shard() -> None:
    items = [Item("a1"), Item("b"), Item("a2"), Item("a3")]
    assert [item.id for item in select(items, "a", "2/2")] == ["a2"]
    assert select(items, None, None) == items
    with pytest.raises(SelectionError, match="matches none of 4 cases"):
        select(items, "zzz", None)
