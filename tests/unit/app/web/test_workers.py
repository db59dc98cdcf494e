"""Searches in processes of their own."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

import pytest

from app.web.form import clean_state
from app.web.render import render_fits
from app.web.workers import Workers

STATE = clean_state({"model": "openai-community/gpt2"})


@pytest.fixture
def workers() -> Iterator[Workers]:
    found = Workers()
    yield found
    found.stop()


def test_they_answer_as_the_page_would(workers: Workers) -> None:
    assert asyncio.run(workers.fits(STATE)) == render_fits(STATE)


def test_killed_workers_are_replaced(workers: Workers) -> None:
    async def ask() -> str:
        with pytest.raises(Exception, match="terminated abruptly"):
            await asyncio.wrap_future(workers._pool.submit(os._exit, 1))
        return await workers.fits(STATE)

    assert asyncio.run(ask()) == render_fits(STATE)
