"""`gpumem doctor` answers whatever is missing."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Any

import pytest

from app.cli import main
from app.commands import doctor

REAL_VERSION = metadata.version


def without(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    """Pretend that libraries have other versions, or none."""

    def version(name: str) -> str:
        if name not in versions:
            return REAL_VERSION(name)
        found = versions[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("app.commands.doctor.metadata.version", version)


def test_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, **dict.fromkeys((*doctor.LIBRARIES, "gpumem")))
    report = doctor.examine()
    assert report["gpumem"] is None
    assert not any(report["works"].values())
    assert "pip install 'gpumem[profile]'" in report["problems"]["trace"]
    assert "pip install 'gpumem[report]'" in report["problems"]["report pictures"]
    assert "not installed" in doctor._render(report)


def test_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, transformers="4.57.1")
    report = doctor.examine()
    assert not report["works"]["trace"]
    assert report["problems"]["trace"] == (
        "transformers 4.57.1 is too old: gpumem needs 5.0 or newer"
    )
    assert report["works"]["estimate"]


def test_local_versions_are_not_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, torch="2.13.0+cpu", transformers="5.17.0", peft="0.21.2")
    assert doctor.examine()["works"]["trace"]


def test_gpu_cannot_be_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(f"no module {name}")

    monkeypatch.setattr("app.commands.doctor.importlib.import_module", refuse)
    report = doctor.examine()
    assert report["gpu"] is None
    assert "cannot be looked for" in report["problems"]["profile"]


def test_with_a_gpu() -> None:
    report = doctor.examine()
    report["gpu"] = {"name": "NVIDIA L4", "total_bytes": 24 * 10**9, "driver": "580.1"}
    assert "NVIDIA L4, 24.00 GB (22.35 GiB), driver 580.1" in doctor._render(report)
    report["gpu"]["total_bytes"] = None
    assert "NVIDIA L4, driver 580.1" in doctor._render(report)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert set(data["works"]) == set(doctor.NEEDS)
    assert set(data["libraries"]) == set(doctor.LIBRARIES)
