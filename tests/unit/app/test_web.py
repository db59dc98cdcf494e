"""`gpumem web` before it serves anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from app.cli import main
from app.web.server import bind


def test_a_taken_port_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    listener = bind("127.0.0.1", 0)
    listener.listen()
    try:
        assert main(["web", "--port", str(listener.getsockname()[1])]) == 2
    finally:
        listener.close()
    said = capsys.readouterr().err
    assert said.startswith("gpumem: 127.0.0.1 port ")
    assert "--port takes another" in said


def test_without_gradio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["web", "--port", "0"]) == 4
    assert capsys.readouterr().err == (
        "gpumem: web needs gradio, not installed here: pip install 'gpumem[web]'\n"
    )


def test_the_page_costs_the_other_verbs_nothing() -> None:
    code = (
        "import sys; from app.cli import main; main(['estimate', 'gpt2', '-q']); "
        "found = {'gradio', 'fastapi', 'uvicorn', 'app.web'} & set(sys.modules); assert not found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
