"""Flags and files to cases."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from app.options import CASE_FLAGS, CaseLine, case_options, read_case, read_cases
from estimator.case import Case, Lora, Parallelism
from estimator.errors import CaseError


@click.command()
@case_options
def probe(**options: Any) -> None:
    click.echo(json.dumps(read_case(options).to_dict()))


@click.command()
@case_options
def probe_lines(**options: Any) -> None:
    lines: list[CaseLine] = list(read_cases(options))
    click.echo(json.dumps([str(line.error) if line.error else line.raw for line in lines]))


def read(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(probe, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    case: dict[str, Any] = json.loads(result.stdout)
    return case


def refuse(*arguments: str) -> str:
    with pytest.raises((CaseError, click.UsageError)) as raised:
        probe.main(list(arguments), standalone_mode=False)
    return str(raised.value)


def test_every_field_of_a_case_is_a_flag() -> None:
    case_fields = {field.name for field in fields(Case)} - {"model", "lora", "parallelism"}
    lora_fields = {f"lora.{field.name}" for field in fields(Lora)}
    spread = {f"parallelism.{field.name}" for field in fields(Parallelism)}
    assert {flag.field for flag in CASE_FLAGS} == case_fields | lora_fields | spread


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["-b", "4"], "batch_size", 4),
        (["--batch-size", "4"], "batch_size", 4),
        (["-s", "2048"], "sequence_length", 2048),
        (["--quantization", "nf4"], "quantization", "nf4"),
        (["--quantization", "none"], "quantization", None),
        (["--quantization", "nf4", "--double-quantization"], "double_quantization", True),
        (["--no-prepare-kbit"], "prepare_kbit", False),
        (["--max-new-tokens", "1"], "max_new_tokens", 1),
        (["--gpu", "h100"], "gpu", "H100"),
        (["--attention", "eager"], "attention", "eager"),
        (["--task", "training", "--gradient-checkpointing"], "gradient_checkpointing", True),
        (
            ["--task", "training", "--gradient-checkpointing", "--recompute-granularity=selective"],
            "recompute_granularity",
            "selective",
        ),
        (["--task", "training", "--optimizer", "sgd", "--momentum", "0.9"], "momentum", 0.9),
        (["--task", "training", "--mixed-precision", "null"], "mixed_precision", None),
        (["--task", "training", "--sp-size", "4"], "parallelism", {"sp_size": 4}),
        (["--task", "training", "--sp-size", "1"], "parallelism", None),
    ],
)
def test_flags(arguments: list[str], field: str, value: Any) -> None:
    assert read("gpt2", *arguments)[field] == value


def test_lora_flags_choose_the_method() -> None:
    case = read(
        "gpt2", "--lora-r", "8", "--lora-alpha", "32", "--lora-dropout", "0.1",
        "--lora-target-modules", "q_proj, v_proj", "--use-dora",
    )  # fmt: skip
    assert case["method"] == "lora"
    assert case["lora"] == {
        "r": 8,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "use_dora": True,
    }


def test_lora_flags_do_not_override_the_method() -> None:
    assert "lora" in refuse("gpt2", "--method", "full", "--lora-r", "8")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-b", "x"], "batch_size is 'x', but must be a whole number"),
        (["-b", "1.5"], "batch_size is '1.5'"),
        (["-b", "-3"], "batch_size is -3"),
        (["-b", "9" * 30], "batch_size is '999"),
        (["--momentum", "much"], "momentum is 'much'"),
        (["--dtype", "bf16"], "dtype is 'bf16'"),
        (["--dtype", "none"], "dtype is None"),
        (["--lora-target-modules", "a,,b"], "lora.target_modules"),
    ],
)
def test_wrong_flags_get_the_sentences_of_cases(arguments: list[str], says: str) -> None:
    assert says in refuse("gpt2", *arguments)


def test_no_model() -> None:
    assert "no model given" in refuse()


def test_case_file_and_flags_on_top(tmp_path: Path) -> None:
    path = tmp_path / "case.json"
    lora = {"method": "lora", "lora": {"r": 4, "lora_alpha": 2}}
    path.write_text(json.dumps({"model": "gpt2", "batch_size": 2, **lora}))
    case = read("--case", str(path), "-b", "8", "--lora-r", "64")
    assert (case["batch_size"], case["lora"]["r"], case["lora"]["lora_alpha"]) == (8, 64, 2)
    assert read("opt-125m", "--case", str(path))["model"] == "opt-125m"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is empty"),
        ("{", "is not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "names no model"),
        ('{"model": "gpt2", "x": 1}', "unknown case field 'x'"),
        ('{"model": "gpt2", "lora": 3}', "lora is 3"),
    ],
)
def test_wrong_case_file(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "case.json"
    path.write_text(content)
    assert says in refuse("--case", str(path))


def test_missing_case_file(tmp_path: Path) -> None:
    assert "No such file" in refuse("--case", str(tmp_path / "none.json"))
    assert "cannot be read" in refuse("--case", "nul\0")


def lines(path: Path) -> list[Any]:
    result = CliRunner().invoke(probe_lines, ["--cases", str(path)], catch_exceptions=False)
    read_lines: list[Any] = json.loads(result.stdout)
    return read_lines


def test_cases_file_keeps_order_and_skips_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_bytes(b'{"model": "gpt2"}\n\n  \nnope\n{"model": 3}\r\n\xff\n{"model": "b"}')
    found = lines(path)
    assert found[0] == {"model": "gpt2"}
    assert "line 4 is not JSON" in found[1]
    assert "model is 3" in found[2]
    assert "not UTF-8" in found[3]
    assert found[4] == {"model": "b"}


@pytest.mark.parametrize("extra", [["gpt2"], ["-b", "2"], ["--case", "x"]])
def test_cases_file_stands_alone(tmp_path: Path, extra: list[str]) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text("")
    with pytest.raises(click.UsageError, match="leave out"):
        probe_lines.main(["--cases", str(path), *extra], standalone_mode=False)
