"""`gpumem fit` as people run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN = ("Meta-Llama-3-8B", "--task", "training", "-b", "4", "-s", "2048", "--gpu", "L4")


def gpumem(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", "fit", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=300,
    )


def refused(code: int, *arguments: str) -> str:
    done = gpumem(*arguments)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("gpumem: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_for_people() -> None:
    done = gpumem(*RUN, "--optimizer", "adamw_torch", "-v")
    assert done.returncode == 0, done.stderr
    assert "L4 (23034 MiB): does not fit, peak " in done.stdout
    assert "largest batch at length 2048   none" in done.stdout
    assert "--optimizer adamw_torch_fused      free" in done.stdout
    assert "kept free for the CUDA context" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_quiet_is_one_sentence_and_check_a_finding() -> None:
    done = gpumem(*RUN, "-q", "--check")
    assert done.returncode == 1
    assert done.stdout.startswith("L4: does not fit; largest batch none at length 2048")
    fitting = gpumem("Llama-3.2-1B", "--gpu", "L4", "-q", "--check")
    assert fitting.returncode == 0
    assert fitting.stdout.startswith("L4: fits; ")


def test_what_was_decided_about_the_configuration_is_said() -> None:
    done = gpumem("Llama-3.2-1B-Instruct", "--gpu", "L4", "--json")
    assert done.returncode == 0, done.stderr
    note = "Llama-3.2-1B-Instruct is taken to have meta-llama/Llama-3.2-1B's shapes"
    assert json.loads(done.stdout)["assumptions"].count(note) == 1


def test_json() -> None:
    data = json.loads(gpumem(*RUN, "--json").stdout)
    assert data["source"] == "architecture"
    assert data["fits"] is False
    assert data["case"]["gpu"] == data["gpu"]["name"] == "L4"
    assert data["gpu"]["room_bytes"] == data["gpu"]["memory_bytes"] - data["gpu"]["reserve_bytes"]
    assert data["largest_batch"] == {"value": None, "limit": "memory", "peak": None}
    fitting = [change for change in data["changes"] if change["fits"]]
    assert fitting
    assert all(c["peak"]["allocated_bytes"] < data["gpu"]["room_bytes"] for c in fitting)

    data = json.loads(gpumem("Llama-3.2-1B", "--gpu", "L4", "--json").stdout)
    assert data["fits"] is True
    assert data["changes"] == []
    assert data["largest_batch"]["value"] > 1
    assert data["longest_sequence"]["limit"] in ("memory", "positions")


def test_more_kept_free_leaves_less() -> None:
    def batch(*more: str) -> int:
        data = json.loads(gpumem("Llama-3.2-1B", "--gpu", "L4", "--json", *more).stdout)
        value: int = data["largest_batch"]["value"]
        return value

    assert batch("--reserve-gib", "10") < batch() < batch("--reserve-gib", "0")


def test_many_cases() -> None:
    lines = [{"model": "gpt2", "gpu": "L4"}, {"model": "gpt2"}, {"model": "none", "gpu": "L4"}]
    done = gpumem("--cases", "-", stdin="\n".join(map(json.dumps, lines)))
    assert done.returncode == 3
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert first["fits"] is True
    assert "--gpu" in second["error"]["message"]
    assert "none" in third["error"]["message"]


def test_wrong_usage_is_one_sentence() -> None:
    assert "give --gpu" in refused(2, "gpt2")
    assert "--reserve-gib is 'much'" in refused(2, "gpt2", "--gpu", "L4", "--reserve-gib", "much")
    assert "--reserve-gib is '-1'" in refused(2, "gpt2", "--gpu", "L4", "--reserve-gib", "-1")
    assert "leaves nothing of L4" in refused(2, "gpt2", "--gpu", "L4", "--reserve-gib", "100")
    assert "nan" in refused(2, "gpt2", "--gpu", "L4", "--reserve-gib", "nan")
    assert "--source trace" in refused(2, "gpt2", "--gpu", "L4", "--surface", "x.json")


def test_a_surface_file_answers_without_torch(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    config = {
        "model_type": "llama",
        "vocab_size": 256,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
    }
    model, file = tmp_path / "config.json", tmp_path / "surface.json"
    model.write_text(json.dumps(config))
    run = (str(model), "--task", "training", "--method", "lora", "-b", "4", "-s", "256")
    run = (*run, "--gpu", "L4", "--source", "trace", "--surface", str(file), "--json")
    traced = gpumem(*run)
    assert traced.returncode == 0, traced.stderr
    data = json.loads(traced.stdout)
    assert data["source"] == "trace"
    assert data["peak"]["reserved_bytes"] >= data["peak"]["allocated_bytes"]
    assert data["longest_sequence"]["value"] == 4096
    assert "simulated" in data["assumptions"][0]

    script = (
        "import sys; from app.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules);"
        "assert not heavy, heavy; sys.exit(code)"
    )
    again = subprocess.run(
        [sys.executable, "-c", script, "fit", *run],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert again.returncode == 0, again.stderr
    assert again.stdout == traced.stdout

    other = refused(2, *run, "--optimizer", "sgd")
    assert "is of another run: its optimizer is 'adamw_torch_fused', not 'sgd'" in other
    file.write_text(file.read_text()[:2000])
    assert "is not JSON" in refused(2, *run)
