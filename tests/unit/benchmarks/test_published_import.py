"""What a printed row becomes: a case with its figure, or a reason."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.evidence.rows import (
    FOLDER,
    KEPT,
    MEASUREMENTS,
    PublishedError,
    PublishedRow,
    published_figures,
    published_measurements,
    read_rows,
    write_rows,
)
from benchmarks.evidence.rules import read_row
from benchmarks.evidence.units import read_figure
from benchmarks.published_import import COLUMNS, main
from estimator import Case

FMS = {
    "id": "fms_a100-0114",
    "source": "foundation-model-stack/fms-acceleration@876e2ed6fc:a100_80gb.csv",
    "model": "mistralai/Mistral-7B-v0.1",
    "task": "train",
    "method": "LoRA r=16 alpha=16 dropout=0.1 targets=q_proj v_proj; plugin=baseline-peft-bnb",
    "weights_dtype": "bfloat16",
    "quant": "bnb nf4",
    "optimizer": "adamw_torch (HF Trainer default)",
    "batch": "4",
    "seq": "4096",
    "new_tokens": "",
    "grad_ckpt": "True",
    "attn": "flash_attention_2",
    "gpu": "1x A100 80GB",
    "n_gpus": "1",
    "framework": "transformers 4.48.1",
    "metric": "torch.cuda.max_memory_allocated (HF Trainer memory tracker peak, rank0)",
    "value": "20669338112",
    "unit": "B",
    "tier": "A",
    "use": "yes",
    "notes": "autocast bf16; grad_accum 1",
}
OPTIMUM = {
    **FMS,
    "id": "ob_llamas_Llama-7b-0004",
    "model": "NousResearch/Llama-2-7b-hf",
    "task": "inference",
    "method": "fp16 / generate",
    "weights_dtype": "float16",
    "quant": "none",
    "batch": "1",
    "seq": "256",
    "new_tokens": "512",
    "attn": "eager (transformers 4.35-4.36 default)",
    "gpu": "['NVIDIA A100-SXM4-80GB']",
    "metric": "torch.cuda.max_memory_reserved",
    "value": "14356",
    "unit": "MB (1e6)",
}
OOM = {
    **FMS,
    "id": "litgpt_resource-0015",
    "model": "meta-llama/Llama-2-7b-hf",
    "method": "LoRA r=8 alpha=16 targets=q,v; trainable=4,194,304",
    "weights_dtype": "bf16-true",
    "quant": "none",
    "seq": "1304",
    "gpu": "1 x A100 SXM4-40GB",
    "value": "OOM",
    "unit": "GB (1e9)",
    "use": "oom",
}


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        ("123", "B", (123, 0)),
        ("1.5", "GiB", (1610612736, 53687091)),
        ("13738", "MB (1e6)", (13738000000, 500000)),
        ("13738", "MiB", (13738 * 2**20, 2**19)),
        ("12", "GB (unspecified)", None),
        ("73.71+78.54", "GiB", None),
    ],
)
def test_a_figure_in_bytes(value: str, unit: str, expected: tuple[int, int] | None) -> None:
    assert read_figure(value, unit) == expected


def test_a_training_run_with_everything_stated() -> None:
    row = read_row(FMS)
    assert row.reason is None
    assert row.case is not None
    assert (row.counter, row.instant, row.size_bytes) == ("allocated", "peak", 20669338112)
    assert row.case.lora is not None
    assert row.case.lora.target_modules == ("q_proj", "v_proj")
    assert row.case.quantization == "nf4"
    assert row.case.mixed_precision == "bf16"
    assert row.case.stack == "fms-acceleration"
    assert row.case.gpu == "A100-80GB"
    assert row.case.gradient_checkpointing


def test_an_inference_run_by_its_counter_and_stack() -> None:
    row = read_row(OPTIMUM)
    assert row.case is not None
    assert (row.counter, row.instant) == ("reserved", "peak")
    assert row.size_bytes == 14356 * 10**6
    assert row.case.model == "meta-llama/Llama-2-7b-hf"
    assert row.case.max_new_tokens == 512
    assert (row.case.attention, row.case.stack) == ("eager", "transformers-4.35")


def test_a_forward_is_a_prefill() -> None:
    row = read_row({**OPTIMUM, "new_tokens": "0"})
    assert row.case is not None
    assert row.case.max_new_tokens == 1


def test_out_of_memory_is_one_sided() -> None:
    row = read_row(OOM)
    assert row.case is not None
    assert row.outcome == "oom"
    assert row.size_bytes is None
    assert row.capacity_bytes == 40960 * 2**20
    assert row.case.lora is not None
    assert row.case.lora.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n_gpus": "2"}, "2 GPUs"),
        ({"quant": "GPTQ int4"}, "GPTQ int4"),
        ({"method": "full finetune; plugin=aadp-padding-free"}, "aadp-padding-free"),
        ({"model": "mistralai/Mixtral-8x7B-Instruct-v0.1"}, "experts"),
        ({"seq": "<= 512"}, "sequence length: <= 512"),
        ({"model": "example/unknown"}, "not in the catalogue"),
        ({"unit": "GB (unspecified)"}, "unit is not known"),
        ({"id": "torchtune-0001"}, "own implementation"),
        ({"id": "someone-0001", "metric": "peak memory (unspecified)"}, "what was counted"),
    ],
)
def test_a_row_that_is_no_case_says_why(changes: dict[str, str], reason: str) -> None:
    row = read_row({**FMS, **changes})
    assert row.case is None
    assert row.reason is not None
    assert reason in row.reason
    assert row.source == FMS["source"]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [read_row(FMS), read_row(OPTIMUM), read_row(OOM), read_row({**FMS, "n_gpus": "2"})]
    write_rows(tmp_path / "rows.jsonl", rows)
    assert list(read_rows(tmp_path / "rows.jsonl")) == rows


def test_a_broken_file_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [read_row(FMS)])
    path.write_text(path.read_text() + '{"row_id": 1, "what": 2}\n')
    with pytest.raises(PublishedError, match="line 2"):
        read_rows(path)
    with pytest.raises(PublishedError, match="cannot be read"):
        read_rows(tmp_path / "none.jsonl")


def test_the_same_table_gives_the_same_bytes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    with table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows([FMS, OPTIMUM, OOM, {**FMS, "n_gpus": "2"}])
    outputs = []
    for name in ("one", "two"):
        assert main([str(table), "-o", str(tmp_path / name)]) == 0
        outputs.append([(tmp_path / name / f).read_bytes() for f in (MEASUREMENTS, KEPT)])
    assert outputs[0] == outputs[1]
    assert "4 rows, 3 of them cases" in capsys.readouterr().out


def test_a_table_without_a_column_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("id,source\n1,2\n")
    with pytest.raises(SystemExit, match="no column model"):
        main([str(table), "-o", str(tmp_path)])


def test_the_stored_rows_are_whole() -> None:
    kept = read_rows(FOLDER / KEPT)
    rows = published_measurements()
    assert len(rows) + len(kept) == 2678
    assert len({row.row_id for row in (*rows, *kept)}) == 2678
    assert all(row.reason for row in kept)
    assert all(row.source and row.metric for row in rows)
    assert all((row.size_bytes is None) == (row.outcome == "oom") for row in rows)
    assert (FOLDER / KEPT).stat().st_size + (FOLDER / MEASUREMENTS).stat().st_size < 2 * 2**20


def test_figures_are_picked_by_counter_instant_and_tier() -> None:
    rows = published_figures("device", tiers=("B",))
    assert rows
    assert all(isinstance(row, PublishedRow) and isinstance(row.case, Case) for row in rows)
    assert {row.counter for row in rows} == {"device"}
    assert not published_figures("device", tiers=("A",))
