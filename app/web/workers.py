"""Processes that search for what fits, so that answers do not wait for searches of others."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from app.web.form import State
from app.web.render import render_fits

_MOST = 4


class Workers:
    """As many processes as cores, up to four; they start when they are first asked."""

    def __init__(self) -> None:
        self._pool = _new_pool()

    async def fits(self, state: State) -> str:
        """Return `render_fits` of a state."""
        loop = asyncio.get_running_loop()
        pool = self._pool
        try:
            return await loop.run_in_executor(pool, render_fits, state)
        except BrokenProcessPool:
            # A worker was killed (out of memory, say): the others of its pool are gone, too.
            if pool is self._pool:
                self._pool = _new_pool()
            return await loop.run_in_executor(self._pool, render_fits, state)

    def stop(self) -> None:
        """End them."""
        self._pool.shutdown(cancel_futures=True)


def _new_pool() -> ProcessPoolExecutor:
    count = min(os.cpu_count() or 1, _MOST)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, context, initializer=_begin)


def _begin() -> None:
    """Stand back behind the page's process, leave Ctrl-C to it, and go when it goes."""
    os.nice(5)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_go_with_parent, daemon=True).start()


def _go_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(0)
