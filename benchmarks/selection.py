"""Which cases of a suite are meant: `-k EXPR`, `--shard I/N`; and how long: `--time-budget 9m`."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from estimator.errors import GpumemError, show_value


class Named(Protocol):
    """Anything with an id that `-k` can match."""

    @property
    def id(self) -> str: ...


T = TypeVar("T")
N = TypeVar("N", bound=Named)
Predicate = Callable[[str], bool]

_DURATION = re.compile(r"(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,9})?)s?)?")
_MAX_DURATION_S = 10 * 365 * 86_400
_MAX_DEPTH = 50


class SelectionError(GpumemError):
    """An expression, a shard or a duration that cannot be read."""


def parse_expression(text: str) -> Predicate:
    """Return the test that `-k` means: words are substrings, joined by `and`, `or`, `not`, ().

    Case does not matter, as with pytest's `-k`.

    Raises:
        SelectionError: when the expression is not complete.
    """
    return _Parser(text).parse()


class _Parser:
    """Recursive descent: or < and < not < word."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = re.findall(r"[()]|[^\s()]+", text)
        self.depth = 0

    def parse(self) -> Predicate:
        if not self.tokens:
            raise SelectionError("-k is empty: give part of a case's id, such as `-k lora`")
        test = self._either()
        if self.tokens:
            self._fail(f"does not expect {show_value(self.tokens[0])} there")
        return test

    def _either(self) -> Predicate:
        tests = [self._both()]
        while self._take("or"):
            tests.append(self._both())
        return lambda name: any(test(name) for test in tests)

    def _both(self) -> Predicate:
        tests = [self._single()]
        while self._take("and"):
            tests.append(self._single())
        return lambda name: all(test(name) for test in tests)

    def _single(self) -> Predicate:
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            self._fail(f"is nested more than {_MAX_DEPTH} deep")
        try:
            return self._operand()
        finally:
            self.depth -= 1

    def _operand(self) -> Predicate:
        if self._take("not"):
            negated = self._single()
            return lambda name: not negated(name)
        if self._take("("):
            inner = self._either()
            if not self._take(")"):
                self._fail("lacks a closing )")
            return inner
        if not self.tokens or self.tokens[0].lower() in ("and", "or", ")"):
            self._fail(
                "lacks a word" + (f" before {self.tokens[0]}" if self.tokens else " at its end")
            )
        word = self.tokens.pop(0).lower()
        return lambda name: word in name.lower()

    def _take(self, token: str) -> bool:
        if self.tokens and self.tokens[0].lower() == token:
            self.tokens.pop(0)
            return True
        return False

    def _fail(self, why: str) -> None:
        raise SelectionError(f"-k {show_value(self.text)} {why}")


def parse_shard(text: str) -> tuple[int, int]:
    """Return (I, N) of `I/N`, with 1 <= I <= N.

    Raises:
        SelectionError: when it is not of that form.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise SelectionError(f"--shard is {show_value(text)}, but must be I/N, such as 1/4 to 4/4")
    return int(match[1]), int(match[2])


def take_shard(items: Sequence[T], shard: tuple[int, int]) -> list[T]:
    """Return every N-th item from the I-th on: the N shards cover all items exactly once."""
    index, count = shard
    return list(items[index - 1 :: count])


def select(items: Sequence[N], expression: str | None, shard: str | None) -> list[N]:
    """Return the items that `-k` matches, and of those the shard's.

    Raises:
        SelectionError: when an option cannot be read, or nothing is left to `-k`.
    """
    chosen = list(items)
    part = None if shard is None else parse_shard(shard)
    if expression is not None:
        test = parse_expression(expression)
        chosen = [item for item in chosen if test(item.id)]
        if not chosen:
            raise SelectionError(f"-k {show_value(expression)} matches none of {len(items)} cases")
    return chosen if part is None else take_shard(chosen, part)


def parse_duration(text: str, option: str) -> float:
    """Return the seconds in `90`, `90s`, `9m` or `1h30m`.

    Raises:
        SelectionError: when it is not of that form, or is 0.
    """
    match = _DURATION.fullmatch(text.strip())
    hours, minutes, seconds = (match[1], match[2], match[3]) if match else (None, None, None)
    total = int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(seconds or 0)
    if not 0 < total <= _MAX_DURATION_S:
        raise SelectionError(f"{option} is {show_value(text)}, but must be like 90s, 9m or 1h30m")
    return total
