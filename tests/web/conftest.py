"""The page as visitors have it: `python -m app.web` in a process, and Debian's Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.web)


@dataclass(frozen=True, slots=True)
class Served:
    """The page's address, and the file that its standard error goes to."""

    address: str
    log: Path


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Run the page in a folder of its own; no file may be in it, nothing in the log, at the end."""
    pytest.importorskip("gradio", reason="the extra web is not installed")
    folder = tmp_path_factory.mktemp("served")
    log = tmp_path_factory.mktemp("log") / "stderr"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)}
    command = [sys.executable, "-u", "-m", "app.web", "--port", "0"]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), log.read_text()
        yield Served(line.split()[0], log)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(20)
    assert log.read_text() == ""
    # Gradio makes an empty folder among the temporary files.
    assert [path for path in folder.rglob("*") if not path.is_dir()] == []


# Of a module, not of the session: playwright's event loop runs until it is closed, and then other
# tests could start none.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


class Visitor:
    """A page in the browser; what went wrong in it is in `problems`, whom it asked in `hosts`."""

    def __init__(self, browser: Any, address: str, **settings: Any) -> None:
        self.page = browser.new_page(**settings)
        self.page.set_default_timeout(20_000)
        self.address = address
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", self._console)
        self.page.on("request", lambda request: self._asked(request.url))

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def _asked(self, url: str) -> None:
        if url.startswith(("http", "ws")):
            self.hosts.add(url.split("/")[2])

    def open(self, query: str = "") -> Any:
        """Open the page, and wait until it is answered whole."""
        self.page.goto(self.address + query)
        self.page.locator("#gm-fits table").first.wait_for()
        return self.page

    def answer(self) -> str:
        """Return the summary as a visitor reads it."""
        text: str = self.page.locator("#gm-summary").inner_text()
        return text


@pytest.fixture
def new_visitor(browser: Any, served: Served) -> Iterator[Callable[..., Visitor]]:
    """Make visitors, with the settings of playwright's `new_page`; nothing may go wrong."""
    made: list[Visitor] = []

    def make(**settings: Any) -> Visitor:
        made.append(Visitor(browser, served.address, **settings))
        return made[-1]

    yield make
    for found in made:
        found.page.close()
        assert found.problems == []
        assert found.hosts == {served.address.split("/")[2]}


@pytest.fixture
def visitor(new_visitor: Callable[..., Visitor]) -> Visitor:
    """A visitor with a desktop's screen."""
    return new_visitor(viewport={"width": 1280, "height": 900})
