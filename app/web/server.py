"""Serves the page: Gradio behind a guard that lets through what the page needs, and no more."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from app.web.fields import FIELDS
from app.web.workers import Workers
from estimator.errors import EnvironmentUnavailable, GpumemError

MAX_BODY_BYTES = 4 * 2**20
"""A configuration of 1 MiB, as a string inside JSON, and the other fields."""

_GET = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/", "/gradio_api/startup-events")
_GET_EXACT = ("/", "/config", "/theme.css", "/robots.txt", "/manifest.json", "/favicon.ico")
_POST = "/gradio_api/run/"
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Guard:
    """Refuses other paths (uploads and files among them), large bodies, and malformed calls."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection (ASGI)."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        send = _with_headers(send)
        path, method = scope["path"], scope["method"]
        if method in ("GET", "HEAD") and (path in _GET_EXACT or path.startswith(_GET)):
            await self.app(scope, receive, send)
        elif method == "POST" and path.startswith(_POST):
            await self._call(scope, receive, send)
        else:
            await _refuse(send, 404, "there is no such page")

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            await _refuse(send, 413, "what was sent is larger than 4 MiB")
            return
        problem = _problem(body)
        if problem is not None:
            await _refuse(send, 400, problem)
            return
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)


def _problem(body: bytes) -> str | None:
    """Say what is wrong with a call: it must bring the form's values, each a scalar."""
    try:
        call = json.loads(body)
    except (ValueError, RecursionError):
        return "what was sent is not JSON"
    data = call.get("data") if isinstance(call, dict) else None
    if not isinstance(data, list) or len(data) not in (1, len(FIELDS)):
        return f"a call brings one value, or the {len(FIELDS)} values of the form"
    if not all(value is None or isinstance(value, (str, int, float)) for value in data):
        return "each value of the form is a text, a number or a truth value"
    return None


async def _read(receive: Receive) -> bytes | None:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
        await send(message)

    return sending


async def _refuse(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": f"gpumem: {message}"}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


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
    from app.web.page import build_page, style

    outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(
        outer,
        build_page(workers.fits),
        path="/",
        run_history=False,
        ssr_mode=False,
        pwa=False,
        **style(),
    )
    return Guard(outer)


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
