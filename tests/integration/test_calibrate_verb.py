"""`gpumem calibrate`, and estimates that use what it wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def gpumem(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); "]
    command[-1] += "from app.cli import main; sys.exit(main())"
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=cwd)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coefficients")
    done = gpumem("calibrate", "published", "--json", "-o", str(folder))
    assert done.returncode == 0, done.stderr
    path = folder / "published.json"
    assert done.stderr == f"calibration: {path}\n"
    assert json.loads(done.stdout) == json.loads(path.read_text())
    return path


def test_the_published_evidence_says_what_it_rests_on(stored: Path) -> None:
    data = json.loads(stored.read_text())
    assert data["schema_version"] == 1
    assert "published by others" in data["evidence"]
    assert len(data["evidence_hash"]) == 16
    fits = {fit["name"]: fit for fit in data["fits"]}
    assert set(fits) == {"article", "scratch", "fragmentation", "device", "context"}
    for fit in fits.values():
        assert len(set(fit["evidence"])) == len(fit["evidence"]) >= fit["runs"]
        assert fit["accepted"] is not fit["reason"].startswith("refused: ")


def test_an_estimate_takes_a_file_and_says_so(stored: Path) -> None:
    done = gpumem("estimate", "gpt2", "--formulas", "article", "--calibration", str(stored))
    assert done.returncode == 0, done.stderr
    assert "calibration published, fitted to" in done.stdout
    plain = gpumem("estimate", "gpt2", "--formulas", "article", "--json")
    assert (
        plain.stdout
        == gpumem(
            "estimate", "gpt2", "--formulas", "article", "--json", "--calibration", "none"
        ).stdout
    )


def test_without_a_calibration_nothing_is_added() -> None:
    done = gpumem("estimate", "gpt2", "--json", "--calibration", "none")
    data = json.loads(done.stdout)
    assert data["interval"] is None
    assert data["peak"]["device_bytes"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["estimate", "gpt2", "--calibration", "nowhere"], "there is no calibration 'nowhere'"),
        (["calibrate", "nowhere"], "nowhere"),
        (["calibrate", "--name", "a/b"], "--name is 'a/b'"),
        (["calibrate", "--seed", "-1"], "seed"),
        (["calibrate", "empty"], "no measured run"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = gpumem(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("gpumem: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_without_scipy(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import importlib.util as u\n"
        "old = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'scipy' else old(name, *rest)\n"
        "from app.cli import main; sys.exit(main(['calibrate']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 4
    assert done.stderr == (
        "gpumem: calibrate needs scipy, not installed here: pip install 'gpumem[calibrate]'\n"
    )
