"""`gpumem trace` shows what it saw: files, the largest storages, a card that runs out."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli import main

ROOT = Path(__file__).parents[2]

TINY = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny") / "config.json"
    path.write_text(json.dumps(TINY))
    return str(path)


def gpumem(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        timeout=240,
    )


def test_everything_at_once(model: str, tmp_path: Path) -> None:
    flags = ["--task", "training", "-b", "4", "-s", "256", "--gradient-checkpointing"]
    files = ["--timeline", "t.json", "--picture", "p.png", "--snapshot", "s.pickle"]
    card = ["--capacity-mib", "230", "--check", "--json", "--expandable-segments"]
    done = gpumem("trace", model, *flags, *files, *card, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    peak = answer["peak"]
    assert peak["phase"] == "backward"
    assert peak["instant"].startswith("backward: LlamaForCausalLM (")
    assert "logits" in peak["reason"]
    assert "the allocator with expandable_segments:True" in answer["assumptions"]

    capacity = answer["capacity"]
    assert capacity["state"] == "does not fit"
    assert capacity["failure"]["asked_bytes"] > 0
    assert capacity["available_bytes"] == capacity["memory_bytes"] - capacity["context_bytes"]

    timeline = json.loads((tmp_path / "t.json").read_text())
    assert timeline["case"] == answer["case"]
    assert timeline["peak"]["allocated_bytes"] == peak["allocated_bytes"]
    assert max(timeline["points"]["allocated_bytes"]) == peak["allocated_bytes"]
    modules = {storage["module"] for storage in timeline["peak"]["largest"]}
    assert "model.embed_tokens" in modules

    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    snapshot = pickle.loads((tmp_path / "s.pickle").read_bytes())
    reserved = sum(segment["total_size"] for segment in snapshot["segments"])
    assert reserved == peak["reserved_bytes"]

    for event in snapshot["device_traces"][0]:
        event["frames"] = []
    (tmp_path / "as_measured.pickle").write_bytes(pickle.dumps(snapshot))
    beside = ["--picture", "both.png", "--beside", "as_measured.pickle"]
    done = gpumem("-q", "trace", model, *flags, *beside, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    alone, both = ((tmp_path / name).read_bytes() for name in ("p.png", "both.png"))
    assert _height(both) > 1.5 * _height(alone)


def _height(png: bytes) -> int:
    return int.from_bytes(png[20:24], "big")


def test_the_largest_storages_and_a_card_in_words(model: str) -> None:
    done = gpumem(
        "trace", model, "-v", "-s", "64", "--max-new-tokens", "2", "--gpu", "L4", "--check"
    )
    assert done.returncode == 0, done.stderr
    assert "largest at the peak" in done.stdout
    assert "model.embed_tokens" in done.stdout
    assert "L4 (23034 MiB): fits with 563 MiB of it for the CUDA context" in " ".join(
        done.stdout.split()
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gpt2", "--picture", "a.gif"], "must end in .png or .svg"),
        (["gpt2", "--picture", "a"], "must end in .png or .svg"),
        (["gpt2", "--timeline", "/nonesuch/a.json"], "there is no folder '/nonesuch'"),
        (["gpt2", "--snapshot", "/"], "which is a folder"),
        (["gpt2", "--beside", "a.pickle"], "--beside is drawn below the traced run"),
        (["gpt2", "--picture", "a.png", "--beside", "/nonesuch"], "snapshot '/nonesuch' cannot be"),
        (["gpt2", "--check"], "--check needs a card: give --gpu or --capacity-mib"),
        (["gpt2", "--capacity-mib", "0"], "0 is not in the range"),
        (["--cases", "-", "--timeline", "a.json"], "--timeline is for one case, not for --cases"),
        (["--cases", "-", "--capacity-mib", "9"], "--capacity-mib is for one case"),
    ],
)
def test_wrong_usage_is_told_before_anything_slow(
    arguments: list[str], words: str, capsys: Any
) -> None:
    assert main(["trace", *arguments]) == 2
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr("app.trace_files.find_spec", lambda name: None)
    assert main(["trace", "gpt2", "--picture", "a.png"]) == 4
    assert "pip install 'gpumem[report]'" in capsys.readouterr().err
