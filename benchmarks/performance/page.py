"""How long the page takes: `python -m benchmarks.performance.page [--users N] [--json FILE]`.

Starts `gpumem web`, waits until it is served, and changes the form as visitors do: each time the
answer is asked for, and then what fits (`--think` seconds later, the next change). Every change is
another state, so that no answer is remembered. Latencies are those of a client on this machine,
which takes its share of it; with a browser (`--chromium PATH`) the first page is timed, too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.error_summary import percentile

_MODELS = (
    "meta-llama/Llama-3.1-8B",
    "google/gemma-2-9b",
    "Qwen/Qwen2.5-0.5B",
    "openai-community/gpt2",
)
_START_LIMIT_S = 60


@dataclass(slots=True)
class Latencies:
    """Seconds from a change to the answer, and to what fits."""

    answer: list[float] = field(default_factory=list)
    fits: list[float] = field(default_factory=list)


@contextmanager
def served(started: float) -> Iterator[tuple[int, float]]:
    """Run the page; yield its port and the seconds until it was served."""
    command = [sys.executable, "-u", "-m", "app.web", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield int(line.split(":")[2].split("/")[0]), time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(10)


class Visitor:
    """One visitor with a connection of their own."""

    def __init__(self, port: int, form: dict[str, Any], seed: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_LIMIT_S)
        self.form = dict(form)
        self.random = random.Random(seed)

    def change(self) -> None:
        """Type something."""
        self.form["model"] = self.random.choice(_MODELS)
        self.form["task"] = self.random.choice(("inference", "training"))
        self.form["method"] = self.random.choice(("full", "lora"))
        self.form["batch_size"] = self.random.randint(1, 16)
        self.form["sequence_length"] = self.random.randint(64, 1000)

    def ask(self, name: str) -> float:
        """Call one of the page's functions; return the seconds it took."""
        body = json.dumps({"data": list(self.form.values()), "session_hash": "benchmark"})
        begun = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        self.connection.request("POST", f"/gradio_api/run/{name}", body, headers)
        response = self.connection.getresponse()
        text = response.read()
        taken = time.perf_counter() - begun
        if response.status != 200 or b"gm-problem" in text:
            raise RuntimeError(f"{name}: {response.status} {text[:200]!r}")
        return taken


def visit(visitor: Visitor, changes: int, think_s: float, found: Latencies) -> None:
    """Change the form so many times."""
    for _ in range(changes):
        time.sleep(visitor.random.uniform(0.5, 1.5) * think_s)
        visitor.change()
        answered = visitor.ask("answer")
        found.answer.append(answered)
        found.fits.append(answered + visitor.ask("fits"))


def read_form(port: int) -> dict[str, Any]:
    """Return the form's fields and their first values, in the order of the page's functions."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_LIMIT_S)
    connection.request("GET", "/config")
    config = json.loads(connection.getresponse().read())
    widgets = {item["id"]: item["props"] for item in config["components"]}
    answer = next(item for item in config["dependencies"] if item["api_name"] == "answer")
    props = [widgets[number] for number in answer["inputs"]]
    return {item["elem_id"].removeprefix("f-"): item.get("value") for item in props}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--changes", type=int, default=6, help="of each of the users")
    parser.add_argument("--think", type=float, default=2.0, help="seconds between changes")
    parser.add_argument("--chromium", metavar="PATH", help="time the first page in this browser")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    started = time.perf_counter()
    with served(started) as (port, start_s):
        figures["served_s"] = start_s
        if options.chromium:
            _first_page(options.chromium, port)
            figures["first_page_usable_s"] = time.perf_counter() - started
        form = read_form(port)
        one = Latencies()
        visit(Visitor(port, form, 0), 60, 0.0, one)
        figures |= _summary("one user", one)
        many = [Latencies() for _ in range(options.users)]
        threads = [
            threading.Thread(
                target=visit,
                args=(Visitor(port, form, 1 + n), options.changes, options.think, many[n]),
            )
            for n in range(options.users)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        everybody = Latencies(
            [s for found in many for s in found.answer], [s for found in many for s in found.fits]
        )
        if len(everybody.fits) != options.users * options.changes:
            raise RuntimeError("some visitors got no answer")
        figures |= _summary(f"{options.users} users", everybody)
    for name, value in figures.items():
        print(f"{name}: {value:.3f}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return 0


def _summary(who: str, found: Latencies) -> dict[str, float]:
    return {
        f"{who}, {what}, {name}_s": percentile(sorted(values), share)
        for what, values in (("answer", found.answer), ("and what fits", found.fits))
        for name, share in (("median", 0.5), ("p95", 0.95))
    }


def _first_page(chromium: str, port: int) -> None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_label("Batch size").wait_for()
        page.locator("#gm-summary strong").wait_for()
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
