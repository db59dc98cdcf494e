"""Serves the page: Gradio behind the guard, on a port that is taken before anything is imported."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable

from app.web.guard import App, Guard
from app.web.workers import Workers
from estimator.errors import EnvironmentUnavailable, GpumemError


def bind(host: str, port: int) -> socket.socket:
    """Take the port, before anything slow is imported.

    Raises:
        GpumemError: when it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends without delay on sockets that say they are TCP.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise GpumemError(
            f"{host} port {port} cannot be had: {reason} (--port takes another)"
        ) from None
    return listener


def make_app(workers: Workers) -> App:
    """Return the page as an ASGI application; `workers` do its searches.

    Raises:
        EnvironmentUnavailable: Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    try:
        import gradio
        from fastapi import FastAPI
    except ImportError as error:
        raise EnvironmentUnavailable(
            f"web needs {error.name}, not installed here: pip install 'gpumem[web]'"
        ) from None
    from app.web.page import build_page, calls, style

    page = build_page(workers.fits)
    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(
        outer,
        page,
        path="/",
        run_history=False,
        ssr_mode=False,
        pwa=False,
        **style(),
    )
    return Guard(outer, calls(page))


def serve(listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve the page on a bound socket until interrupted; `ready` is called when it is served.

    Raises:
        EnvironmentUnavailable: as `make_app`.
    """
    workers = Workers()
    app = make_app(workers)
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    # uvicorn passes the signal on when it has finished: workers are to be stopped then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    try:
        Server(config).run(sockets=[listener])
    finally:
        workers.stop()
