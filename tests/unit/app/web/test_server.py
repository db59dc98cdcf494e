"""The guard in front of the page, and the port; without Gradio."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from app.web.fields import DEFAULTS
from app.web.guard import MAX_BODY_BYTES, Guard
from app.web.server import bind
from estimator.errors import GpumemError

FORM = list(DEFAULTS.values())
CALLS: dict[str | int, int] = {"answer": len(FORM), 0: len(FORM), "open": 1, 2: 1}


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

    scope = {"type": "http", "method": method, "path": path, "headers": []}
    asyncio.run(Guard(inner, CALLS)(scope, receive, send))
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


def call(name: str, **body: Any) -> tuple[int, Any]:
    text = json.dumps(body).encode()
    status, _, answered = ask("POST", f"/gradio_api/run/{name}", text[:10], text[10:])
    return status, json.loads(answered)


def test_a_call_is_let_through_without_what_gradio_need_not_know() -> None:
    status, passed = call("answer", data=FORM, session_hash="mine", batched=True, event_id="x")
    assert status == 200
    assert passed == {"data": FORM, "session_hash": "page"}
    status, passed = call("predict", data=["?task=training"], fn_index=2, trigger_id=5)
    assert status == 200
    assert passed == {"data": ["?task=training"], "session_hash": "page", "fn_index": 2}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("answer", {"data": FORM[:-1]}),
        ("answer", {"data": [*FORM, 1]}),
        ("answer", {"data": None}),
        ("answer", {"data": "x"}),
        ("answer", {}),
        ("open", {"data": [{"path": "/etc/passwd"}]}),
        ("open", {"data": [[1]]}),
        ("open", {"data": [float("nan")]}),
        ("nothing", {"data": FORM}),
        ("predict", {"data": FORM}),
        ("predict", {"data": FORM, "fn_index": 99}),
        ("predict", {"data": FORM, "fn_index": False}),
        ("predict", {"data": FORM, "fn_index": "answer"}),
    ],
)
def test_other_calls_are_refused_in_one_sentence(name: str, body: dict[str, Any]) -> None:
    status, answered = call(name, **body)
    assert status == 400
    assert answered["error"].startswith("gpumem: ")


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b"3", b"null", b"[]"])
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
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
