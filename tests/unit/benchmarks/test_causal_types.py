"""What the benchmark of model types makes of its rows: lines, totals, a page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import causal_types
from benchmarks.causal_types import Row, Run, describe, read_rows, totals
from benchmarks.causal_types_page import page

TRACED = Run(2_500_000_000, "backward", 1.5, assumptions=("simulated",))
CUT = Run(1_000_000_000, "prefill", 0.5, layers=8)
REFUSED = Run(None, None, 0.1, reason="no adapters for this one", kind="ModelError")


def row(name: str, **runs: Run) -> Row:
    kept = {"training": TRACED, "lora": TRACED, "inference": TRACED, **runs}
    return Row(name, "AForCausalLM", 1_240_000_000, kept, code_version="abc")


ROWS = [
    row("full"),
    row("cut", inference=CUT),
    row("refusing", lora=REFUSED),
    Row("broken", "BForCausalLM", None, {}, "it lacks a size"),
]


def result(depth: int | None = None) -> dict[str, Any]:
    return {
        "versions": {"torch": "2", "transformers": "5"},
        "layers": depth,
        "totals": totals(ROWS),
        "rows": [asdict(one) for one in ROWS],
    }


def test_totals_count_what_builds() -> None:
    assert totals(ROWS) == {
        "types": 4,
        "built": 3,
        "training": 3,
        "lora": 2,
        "inference": 3,
        "all": 2,
    }


def test_a_line_says_bytes_depth_and_time() -> None:
    assert describe(ROWS[1]) == (
        "cut (1.24 B): training 2.50 GB in 1.5 s; lora 2.50 GB in 1.5 s; "
        "inference 1.00 GB at 8 layers in 0.5 s"
    )


def test_a_refusal_says_why() -> None:
    assert describe(ROWS[2]).splitlines()[1] == "  lora: no adapters for this one"
    assert describe(ROWS[3]) == (
        "broken: its default configuration does not build (it lacks a size)"
    )


def test_the_page_has_a_row_a_type_that_builds_and_every_reason() -> None:
    text = page(result())
    assert "| `cut` | 1.24 B | 2.50 GB | 2.50 GB | 1.00 GB (8 layers) |" in text
    assert "| `refusing` | 1.24 B | 2.50 GB | refused | 2.50 GB |" in text
    assert "* `refusing`, lora: no adapters for this one" in text
    assert "* `broken`: it lacks a size" in text
    assert "| `broken`" not in text
    assert "training 3 (100 %), LoRA 2 (67 %), inference 3 (100 %), all three 2 (67 %)" in text


def test_the_page_says_where_every_depth_was_changed() -> None:
    assert "`--layers 8`: every type has 8 layers" in page(result(8))
    assert "--layers" not in page(result())


def test_an_earlier_result_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result()))
    assert read_rows(path) == ROWS


def test_an_unknown_type_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(causal_types, "causal_types", lambda: {"llama": "LlamaForCausalLM"})
    with pytest.raises(SystemExit) as caught:
        causal_types.main(["--types", "lama"])
    assert caught.value.code == 2
    assert "no causal model type 'lama'" in capsys.readouterr().err
