"""The served page's functions: what many visitors at once, and hostile ones, get."""

from __future__ import annotations

import http.client
import json
import re
import threading
from typing import Any

import pytest

from app.web.fields import DEFAULTS
from estimator import Case, estimate
from estimator.units import format_gb

HOSTILE = (
    *(-1, 0, 10**30, 1e308, 0.5, None, True, "", " ", "\0", "NaN", "1e9", "٣", "none"),
    *("<script>alert(1)</script>", "'\"><svg onload=x>", "{{7*7}}", "../../etc/passwd", "\ud800"),
    *("🦙" * 300, "x" * 100_000, "{" * 5000, '{"a":' * 900, "\u202e", "%s%n", "${x}", "null"),
)
BODIES = (
    *(b"", b"{", b"[" * 50_000, b"\xff\xfe", b"null", b"[]", b'{"data": null}', b'{"data": []}'),
    *(b'{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}]}',),
    *(b'{"data": [NaN]}', b'{"data": ["?x"], "fn_index": 99}', b'{"data": ["?"], "fn_index": "x"}'),
)


class Caller:
    """A visitor without a browser."""

    def __init__(self, address: str) -> None:
        self.connection = http.client.HTTPConnection(address.split("/")[2], timeout=120)

    def send(self, name: str, body: bytes) -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", f"/gradio_api/run/{name}", body, headers)
        response = self.connection.getresponse()
        return response.status, response.read().decode()

    def ask(self, name: str, **fields: Any) -> list[str]:
        """Return what a function answers to a form."""
        body = json.dumps({"data": list({**DEFAULTS, **fields}.values()), "session_hash": "x"})
        status, text = self.send(name, body.encode())
        assert status == 200, text
        found: list[str] = json.loads(text)["data"]
        return found


def test_fifty_visitors_at_once_each_get_their_own_answer(served: Any) -> None:
    wrong: list[str] = []
    done: list[int] = []

    def visit(number: int) -> None:
        caller = Caller(served.address)
        for batch in (number + 1, number + 60):
            fields = {"batch_size": batch, "sequence_length": 128, "task": "training"}
            case = Case.from_dict({"model": "openai-community/gpt2", "gpu": "L4", **fields})
            wanted = format_gb(estimate(case).peak.allocated_bytes)
            summary = caller.ask("answer", model="openai-community/gpt2", gpu="L4", **fields)[0]
            fitting = caller.ask("fits", model="openai-community/gpt2", gpu="L4", **fields)[0]
            if f"<strong>{wanted}</strong>" not in summary or f">{batch}</th>" not in fitting:
                wrong.append(summary)
        done.append(number)

    visitors = [threading.Thread(target=visit, args=(number,)) for number in range(50)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert wrong == []
    assert sorted(done) == list(range(50))


@pytest.mark.parametrize("name", ["model", "config", "batch_size", "hidden_size", "lora_dropout"])
def test_hostile_values_get_an_answer_or_one_sentence(served: Any, name: str) -> None:
    caller = Caller(served.address)
    source = {"config": "config.json", "hidden_size": "numbers"}.get(name, "catalogue")
    for value in HOSTILE:
        for function in ("answer", "fits"):
            html = caller.ask(function, source=source, method="lora", **{name: value})[0]
            if "gm-problem" in html:
                assert re.fullmatch(r'<p class="gm-problem">gpumem: [^\n]+</p>\n?', html)
            assert "<script" not in html
            assert "<svg onload" not in html


def test_hostile_calls_are_refused_in_one_sentence(served: Any) -> None:
    caller = Caller(served.address)
    for body in BODIES:
        for function in ("answer", "predict", "open", "nothing"):
            status, text = caller.send(function, body)
            assert status == 400 or (function, status) == ("open", 200)
            assert "Traceback" not in text
            assert "/etc" not in text
            assert "site-packages" not in text


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/file=x", "/gradio_api/queue/join"],
)
def test_there_is_no_way_to_files(served: Any, path: str) -> None:
    for method in ("GET", "POST"):
        connection = Caller(served.address).connection
        connection.request(method, path, b"")
        assert connection.getresponse().status == 404


def test_the_page_names_no_path_of_the_server(served: Any) -> None:
    for path in ("/", "/config"):
        connection = Caller(served.address).connection
        connection.request("GET", path)
        text = connection.getresponse().read().decode()
        assert "gm-summary" in text
        for part in ("site-packages", "/tmp/", "/home/", "/root/", "/usr/"):
            assert part not in text
