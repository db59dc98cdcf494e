"""The guard in front of the page, and the port; without Gradio."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.web.fields import DEFAULTS
from app.web.server import MAX_BODY_BYTES, Guard, bind
from estimator.errors import GpumemError

FORM = list(DEFAULTS.values())


def ask(method: str, path: str, *chunks: bytes) -> tuple[int, dict[bytes, bytes], bytes]:
    """Send a request through the guard to an application that answers with what it got."""

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        if scope["method"] == "POST":
            body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    waiting = [
        {"type": "http.request", "body": chunk, "more_body": number + 1 < len(chunks)}
        for number, chunk in enumerate(chunks)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path}
    asyncio.run(Guard(inner)(scope, receive, send))
    return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]


@pytest.mark.parametrize("path", ["/", "/config", "/assets/index.js", "/theme.css"])
def test_what_the_page_needs_is_let_through(path: str) -> None:
    status, headers, _ = ask("GET", path)
    assert status == 200
    assert b"default-src 'self'" in headers[b"content-security-policy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/gradio_api/upload"),
        ("GET", "/gradio_api/file=/etc/passwd"),
        ("GET", "/file=/etc/passwd"),
        ("GET", "/gradio_api/proxy=http://example.org"),
        ("GET", "/gradio_api/info"),
        ("POST", "/gradio_api/queue/join"),
        ("POST", "/gradio_api/vibe-edit"),
        ("DELETE", "/"),
        ("GET", "/docs"),
    ],
)
def test_everything_else_is_not(method: str, path: str) -> None:
    status, _, body = ask(method, path)
    assert status == 404
    assert json.loads(body) == {"error": "gpumem: there is no such page"}


def call(data: Any) -> tuple[int, bytes]:
    body = json.dumps({"data": data}).encode()
    status, _, answered = ask("POST", "/gradio_api/run/answer", body[:10], body[10:])
    return status, answered


def test_a_form_is_let_through_whole() -> None:
    status, body = call(FORM)
    assert status == 200
    assert json.loads(body)["data"] == FORM
    assert call(["?task=training"])[0] == 200


@pytest.mark.parametrize(
    "data", [FORM[:-1], [*FORM, 1], None, {}, [{"path": "/etc/passwd"}], [[1]], [], "x"]
)
def test_other_calls_are_one_sentence(data: Any) -> None:
    status, body = call(data)
    assert status == 400
    assert json.loads(body)["error"].startswith("gpumem: ")


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b"3", b"null"])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    assert ask("POST", "/gradio_api/run/predict", body)[0] == 400


def test_a_body_that_is_too_large_is_refused() -> None:
    half = b" " * (MAX_BODY_BYTES // 2 + 1)
    status, _, body = ask("POST", "/gradio_api/run/predict", half, half)
    assert status == 413
    assert b"larger than 4 MiB" in body


def test_a_port_that_is_taken_is_one_sentence() -> None:
    first = bind("127.0.0.1", 0)
    first.listen()
    try:
        with pytest.raises(GpumemError, match="cannot be had: Address already in use"):
            bind("127.0.0.1", first.getsockname()[1])
        with pytest.raises(GpumemError, match="cannot be had"):
            bind("no such host", 0)
    finally:
        first.close()
