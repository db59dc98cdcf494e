"""What stands between the network and Gradio: it lets through what the page needs, and no more."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from estimator.errors import CaseError
from estimator.strict_json import parse_json

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
    """Refuses other paths (uploads and files among them), large bodies, and malformed calls.

    `calls` is how many values each of the page's functions takes, by name and by number.
    """

    def __init__(self, app: App, calls: Mapping[str | int, int]) -> None:
        self.app = app
        self.calls = calls

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
            await self._call(path.removeprefix(_POST), scope, receive, send)
        else:
            await _refuse(send, 404, "there is no such page")

    async def _call(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read(receive)
        if body is None:
            await _refuse(send, 413, "what was sent is larger than 4 MiB")
            return
        try:
            passed = self._checked(name, body)
        except CaseError as problem:
            await _refuse(send, 400, str(problem))
            return
        waiting = [{"type": "http.request", "body": passed, "more_body": False}]
        headers = [(key, value) for key, value in scope["headers"] if key != b"content-length"]
        scope["headers"] = [*headers, (b"content-length", b"%d" % len(passed))]

        async def replay() -> Message:
            return waiting.pop() if waiting else await receive()

        await self.app(scope, replay, send)

    def _checked(self, name: str, body: bytes) -> bytes:
        """Return a call as Gradio is to see it: known, with as many scalars as it takes.

        All visitors share one session: nothing is remembered for any of them.

        Raises:
            CaseError: it is no such call.
        """
        call = parse_json(body, "what was sent", CaseError)
        if not isinstance(call, dict):
            raise CaseError("what was sent must be a JSON object")
        number = call.get("fn_index")
        which = number if name == "predict" and type(number) is int else name
        if which not in self.calls:
            raise CaseError("the page has no such function")
        data = call.get("data")
        if not isinstance(data, list) or len(data) != self.calls[which]:
            raise CaseError(f"this function takes a list of {self.calls[which]} values")
        if not all(value is None or isinstance(value, (str, int, float)) for value in data):
            raise CaseError("each value must be a text, a number, true, false or null")
        passed: dict[str, Any] = {"data": data, "session_hash": "page"}
        if isinstance(which, int):
            passed["fn_index"] = which
        return json.dumps(passed).encode()


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
