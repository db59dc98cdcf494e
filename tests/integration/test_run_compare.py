"""`gpumem run`, `compare` and `suites` as people run them: real traces of tiny models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from estimator.report import MemoryReport

ROOT = Path(__file__).parents[2]

SUITE = """
name = "tiny"
description = "two tiny models"

[defaults]
sequence_length = 32
model = { model_type = "llama", _name_or_path = "tiny", vocab_size = 256, hidden_size = 64, \
intermediate_size = 128, num_hidden_layers = 2, num_attention_heads = 4, num_key_value_heads = 2 }

[[case]]
id = "infer"
max_new_tokens = 4

[[case]]
id = "train"
task = "training"
optimizer = "sgd"

[[case]]
id = "eight"
task = "training"
optimizer = "sgd"
batch_size = 8
"""


def gpumem(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "app", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=240,
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    return done


def refused(code: int, *arguments: object) -> str:
    done = gpumem(*arguments, code=code)
    assert done.stdout == ""
    assert done.stderr.startswith("gpumem: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def _environment() -> dict[str, str]:
    # No GPU, wherever the tests run: these are about the trace.
    return {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "tiny.toml"
    path.write_text(SUITE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def records(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `run` has traced the whole suite, in two goes."""
    folder = tmp_path_factory.mktemp("run") / "records"
    first = gpumem("run", suite, "-o", folder, "-k", "infer").stdout
    assert "[1/1] ok       trace" in first
    second = gpumem("run", suite, "-o", folder).stdout
    assert second.startswith("1 of 3 cases are recorded already\n[2/3] ok")
    assert "3 cases: 3 ok" in second
    return folder


def test_a_finished_suite_is_not_run_again(suite: Path, records: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in records.iterdir()}
    done = json.loads(gpumem("run", suite, "-o", records, "--json").stdout)
    assert [case["fate"] for case in done["cases"]] == ["recorded"] * 3
    assert {path: path.stat().st_mtime_ns for path in records.iterdir()} == before


def test_a_dry_run_says_what_it_would_do_and_does_nothing(suite: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none"
    text = gpumem("run", suite, "-o", folder, "-n", "--shard", "1/2").stdout
    assert text.startswith("suite tiny, source trace: 2 cases, 0 recorded, 2 to run\n")
    data = json.loads(gpumem("run", suite, "-o", folder, "-n", "--json").stdout)
    assert [case["id"] for case in data["cases"]] == ["infer", "train", "eight"]
    assert all(case["estimated_peak_allocated_bytes"] > 0 for case in data["cases"])
    assert not folder.exists()


def test_estimates_against_traces(records: Path, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "report.html"
    text = gpumem("compare", "estimates", records, "--report", page).stdout
    assert "traced" in text
    assert "measured" not in text
    assert "architecture (n = 3)" in text
    assert "article (n = 3)" in text
    assert max(len(line) for line in text.splitlines() if str(page) not in line) <= 80
    assert "Estimated against traced" in page.read_text(encoding="utf-8")
    data = json.loads(gpumem("compare", records, "estimates", "--json").stdout)
    for case in data["cases"]:
        assert MemoryReport.from_dict(case["reference"]).source == "trace"
        for name, answer in case["compared"].items():
            report = MemoryReport.from_dict(answer["report"])
            assert report.source == name
            assert report.components.total_bytes == report.peak.allocated_bytes
    assert gpumem("compare", "estimates", records, "--format", "markdown").stdout.startswith("| ")


def test_estimates_against_what_is_published() -> None:
    text = gpumem("compare", "estimates", "published", "--by", "family,method").stdout
    lines = text.splitlines()
    assert lines[0].startswith("family, method ")
    assert "llama, inference" in lines
    assert max(map(len, lines)) <= 80
    assert "ran out of memory on their cards" in lines
    data = json.loads(gpumem("compare", "published", "estimates", "--by", "stack", "--json").stdout)
    assert {group["by"]["stack"] for group in data["groups"]} > {"transformers-4.35"}
    assert {case["reference"]["source"] for case in data["cases"]} == {"published"}
    wide = json.loads(gpumem("compare", "estimates", "published", "--tier", "A,B", "--json").stdout)
    assert len(wide["cases"]) >= len(data["cases"])
    gpumem("compare", "estimates", "published", "--fail-on", "peak_allocated:-1%", code=1)
    gpumem("compare", "estimates", "published", "--fail-on", "peak_allocated:-3%")
    assert "by component" in gpumem("compare", "estimates", "published", "--by", "component").stdout


def test_errors_by_component_and_phase(records: Path) -> None:
    text = gpumem("compare", "estimates", records, "--by", "component").stdout
    assert "\nweights\n  architecture" in text
    text = gpumem("compare", "estimates", records, "--by", "phase", "--format", "markdown").stdout
    assert text.startswith("| phase | prediction | n |")
    assert "| backward | architecture |" in text


def test_a_threshold_is_an_exit_code(records: Path, tmp_path: Path) -> None:
    same = gpumem("compare", records, records, "--fail-on", "peak_allocated:0%")
    assert "change of peak allocated" in same.stdout
    for path in records.glob("*.json"):
        data = json.loads(path.read_text(encoding="utf-8"))
        data["peak"]["allocated_bytes"] += 512
        (tmp_path / path.name).write_text(json.dumps(data), encoding="utf-8")
    grown = gpumem("compare", records, tmp_path, "--fail-on", "peak_allocated:+511B", code=1)
    assert grown.stdout.count("(peak_allocated:+511B)") == 3
    gpumem("compare", records, tmp_path, "--fail-on", "peak_allocated:+512B,-0%")


def test_a_baseline_is_a_gate(records: Path, tmp_path: Path) -> None:
    kept = ("--baselines", tmp_path / "kept")
    said = gpumem("baseline", "save", "main", records, *kept).stdout
    assert "3 cases, torch" in " ".join(said.split())
    assert "there already" in refused(2, "baseline", "save", "main", records, *kept)
    assert gpumem("baseline", "list", *kept).stdout.startswith("main: 3 cases, torch")
    gpumem("compare", "--baseline", "main", records, *kept)
    for share, code in ((1.02, 1), (0.98, 0)):
        folder = tmp_path / str(share)
        folder.mkdir()
        for path in records.glob("*.json"):
            data = json.loads(path.read_text(encoding="utf-8"))
            data["peak"]["allocated_bytes"] = round(data["peak"]["allocated_bytes"] * share)
            data["environment"] |= {"environment_id": "f" * 12, "transformers": "99.0.0"}
            (folder / path.name).write_text(json.dumps(data), encoding="utf-8")
        text = gpumem("compare", "--baseline", "main", folder, *kept, code=code).stdout
        assert "and 99.0.0" in text
        assert ("over the limits" in text) is (code == 1)
        assert ("below the base" in text) is (code == 0)
        gpumem("compare", "--baseline", "main", folder, *kept, "--fail-on", "peak_allocated:3%")
    told = json.loads(gpumem("history", "main", tmp_path / "1.02", *kept, "--json").stdout)
    assert told["points"][1]["versions"] == "transformers 99.0.0"
    assert [round(case["changes"][0]["change"], 3) for case in told["cases"]] == [0.02] * 3
    (tmp_path / "0.98" / next(records.glob("*.json")).name).unlink()
    gone = gpumem("compare", "--baseline", "main", tmp_path / "0.98", *kept, code=1).stdout
    assert "only in" in gone
    gpumem("compare", "--baseline", "main", tmp_path / "0.98", "--allow-missing", *kept)


def test_sides_that_make_no_sense_are_refused(records: Path, tmp_path: Path) -> None:
    assert "give BASE and NEW" in refused(2, "compare", records)
    assert "give NEW alone" in refused(2, "compare", records, records, "--baseline", "main")
    assert "--allow-missing" in refused(2, "compare", records, records, "--allow-missing")
    assert "published can only" in refused(2, "compare", "published", "published")
    assert "no record of" in refused(2, "compare", "published", records)
    assert "give published first" in refused(2, "compare", records, "published")
    assert "--tier is of published" in refused(2, "compare", records, records, "--tier", "A")
    assert "--trace is for estimates" in refused(2, "compare", records, records, "--trace")
    told = refused(2, "compare", "estimates", records, "--by", "famly")
    assert "did you mean family" in told
    assert "must be A, B or C" in refused(2, "compare", "estimates", "published", "--tier", "Z")
    kept = ("--baselines", tmp_path)
    assert "no baseline 'main'" in refused(2, "compare", "--baseline", "main", records, *kept)
    assert "there are no baselines" in refused(2, "history", *kept)


def test_a_report_of_records(records: Path, tmp_path: Path) -> None:
    page = tmp_path / "deep" / "report.html"
    alone = ("--no-published", "--baselines", tmp_path / "none")
    done = gpumem("report", records, "-o", page, "--json", *alone)
    rows = {row["name"]: row for row in json.loads(done.stdout)["summaries"]}
    assert {row["against"] for row in rows.values()} == {"traced"}
    assert rows["architecture"]["count"] == 3
    text = page.read_text(encoding="utf-8")
    assert text.count('class="chart timeline"') == 3
    assert 'class="c-weights" d="M' in text
    quiet = gpumem("report", records, "-o", page, "--no-timelines", "-q", *alone)
    assert quiet.stdout == quiet.stderr == ""
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "nothing to report" in refused(2, "report", empty, "-o", page, *alone)
    assert "neither a folder" in refused(2, "report", tmp_path / "gone", "-o", page, *alone)


def test_a_record_cut_in_half_is_named_kept_and_run_again(suite: Path, records: Path) -> None:
    victim = next(iter(sorted(records.glob("*.json"))))
    whole = victim.read_bytes()
    victim.write_bytes(whole[: len(whole) // 2])
    try:
        text = gpumem("compare", "estimates", records).stdout
        assert "files without a readable record" in text
        assert "cut off" in text
        assert "cut off" in refused(2, "compare", victim, records)
        plan = gpumem("run", suite, "-o", records, "-n").stdout
        assert "2 recorded, 1 to run" in plan
        assert victim.read_bytes() == whole[: len(whole) // 2]
    finally:
        victim.write_bytes(whole)


def test_refusals(suite: Path, records: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("", encoding="utf-8")
    assert "cannot be written" in refused(2, "run", suite, "-o", file / "below")
    assert "did you mean smoke?" in refused(2, "run", "smoek")
    assert "--source trace" in refused(4, "run", suite, "--source", "cuda", "-o", tmp_path / "a")
    assert "matches none" in refused(2, "run", suite, "-k", "zzz", "-n")
    assert "I/N" in refused(2, "run", suite, "--shard", "4/3", "-n")
    assert "--time-budget" in refused(2, "run", suite, "--time-budget", "soon", "-n")
    assert "with records" in refused(2, "compare", "estimates", "estimates")
    assert "neither a folder" in refused(2, "compare", "estimates", tmp_path / "none")
    assert "names no counter" in refused(2, "compare", "estimates", records, "--fail-on", "1%")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "there are no records" in refused(2, "compare", "estimates", empty)
    bad = tmp_path / "bad.toml"
    bad.write_text('[[case]]\nmodel = "gpt22"\n', encoding="utf-8")
    message = refused(2, "run", bad, "-o", tmp_path / "b")
    assert "suite 'bad', case gpt22-infer-bf16-1x1024+128: model:" in message
    assert list((tmp_path / "b").glob("*.json")) == []


def test_suites_are_listed(suite: Path) -> None:
    *lines, note = gpumem("suites").stdout.splitlines()
    listed = [line.split()[0] for line in lines if not line.startswith(" ")]
    names = ["core", "holdout", "inference", "long-context"]
    names += ["peft", "smoke", "training", "upgrades"]
    assert listed == names
    assert note == "peaks are estimates, times rough guesses for one case after another"
    assert all(len(line) <= 90 for line in lines)
    title, needs, *ids = gpumem("suites", suite).stdout.splitlines()
    assert title == "tiny: two tiny models"
    assert needs.startswith("3 cases, up to 0.0 GB (0.0 GiB); ")
    assert ids == ["  infer", "  train", "  eight"]
    data = json.loads(gpumem("suites", suite, "--json", "-k", "train").stdout)
    (only,) = data["suites"]
    assert only["case_count"] == 3
    assert only["needs"]["case_count"] == 1
    assert only["needs"]["largest_peak_allocated_bytes"] > 0
    assert [case["id"] for case in only["cases"]] == ["train"]
    assert only["cases"][0]["case"]["optimizer"] == "sgd"


def test_a_failing_case_is_exit_code_three_and_can_be_tried_again(tmp_path: Path) -> None:
    path, folder = tmp_path / "one.toml", tmp_path / "records"
    path.write_text(SUITE[: SUITE.index("[[case]]")] + "[[case]]\n", encoding="utf-8")
    arguments = ("run", path, "-o", folder, "--timeout", "0.2s", "--json")
    first = json.loads(gpumem(*arguments, code=3).stdout)["cases"][0]
    assert (first["fate"], first["status"]) == ("ran", "timeout")
    again = json.loads(gpumem(*arguments, code=3).stdout)["cases"][0]
    assert (again["fate"], again["record_id"]) == ("recorded", first["record_id"])
    retried = json.loads(gpumem(*arguments, "--rerun", "failed", code=3).stdout)["cases"][0]
    assert retried["fate"] == "ran"
    assert len(list(folder.glob("*.json"))) == 2


def test_interrupting_ends_the_workers(suite: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "app", "run", str(suite), "-o", str(tmp_path / "records")]
    runner = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
        # A test run in a shell's background ignores it, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 30
    while not (workers := list(_children(runner.pid))):
        assert time.monotonic() < deadline
        assert runner.poll() is None
        time.sleep(0.02)
    runner.send_signal(signal.SIGINT)
    _, errors = runner.communicate(timeout=30)
    assert runner.returncode == 130
    assert "run again to go on" in errors
    assert "Traceback" not in errors
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    left = sorted(path.name for path in (tmp_path / "records").iterdir())
    assert [name for name in left if not name.endswith(".json")] == []


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text(encoding="utf-8").split())


def test_files_that_all_cannot_be_read_are_no_comparison(tmp_path: Path) -> None:
    (tmp_path / "cut.json").write_text("{")
    for sides in (("estimates", str(tmp_path)), (str(tmp_path), str(tmp_path))):
        done = subprocess.run(
            [sys.executable, "-m", "app", "compare", *sides], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert done.stderr.startswith("gpumem: no file in")
        assert done.stderr.count("\n") == 1
