"""Which rule reads which source, and the reading of one printed row."""

from __future__ import annotations

from benchmarks.evidence import inference_rules as inference
from benchmarks.evidence import oom_rules as oom
from benchmarks.evidence import training_rules as training
from benchmarks.evidence.reading import NotStated, Printed, Rule, Stated
from benchmarks.evidence.rows import PublishedRow
from benchmarks.evidence.units import read_figure
from estimator.case import Case
from estimator.config_source import load_config
from estimator.errors import CaseError, ModelError
from estimator.gpus import find_gpu

RULES: dict[str, Rule] = {
    "fms_a100": training.fms,
    "fms_moe": training.fms_varied,
    "fms_orca_mp": training.fms_varied,
    "fms_orca_pf": training.fms_varied,
    "peft_metamath": training.peft,
    "ms_swift": training.swift,
    "litgpt": training.another("litgpt"),
    "torchtune": training.another("torchtune"),
    "torchtitan": training.another("torchtitan"),
    "torchao_train": training.another("torchao's benchmark"),
    "torchao_optim": training.another("torchtune"),
    "torchao_llama": training.another("torchao's benchmark"),
    "mbridge": training.another("Megatron-Core"),
    "xtuner_log": training.another("xtuner"),
    "vllm_logs": training.another("vLLM"),
    "qwen2_speed": inference.qwen2_speed,
    "qwen3_speed": inference.qwen3_speed,
    "ob_": inference.optimum_benchmark,
    "hf_docs": inference.octocoder,
}
"""By how a row's id begins; what is not here is unclear."""

OOM_RULES: dict[str, Rule] = {"litgpt": oom.litgpt, "deepseek_llm": oom.deepseek}

_OCTOCODER = "bigcode/octocoder"


def read_row(row: Printed) -> PublishedRow:
    """Return what a printed row says: a case with its figure, or the reason why it is none."""
    ran_out = row["use"] == "oom"
    try:
        stated = _rule(row, ran_out)(row)
        case = _case(stated)
        figure = None if ran_out else read_figure(row["value"], row["unit"])
        if figure is None and not ran_out:
            raise NotStated(f"the unit is not known: {row['unit']}")
    except NotStated as reason:
        return _published(row, ran_out, reason=str(reason))
    if ran_out:
        assert case.gpu is not None
        capacity = find_gpu(case.gpu).memory_bytes
        return _published(row, True, case=case, caveat=stated.caveat, capacity_bytes=capacity)
    assert figure is not None
    return _published(
        row,
        False,
        case=case,
        caveat=stated.caveat,
        counter=stated.counter,
        instant=stated.instant,
        size_bytes=figure[0],
        resolution_bytes=figure[1],
    )


def _rule(row: Printed, ran_out: bool) -> Rule:
    rules = OOM_RULES if ran_out else RULES
    found = [rule for prefix, rule in rules.items() if row["id"].startswith(prefix)]
    if found and not (row["id"].startswith("hf_docs") and row["model"] != _OCTOCODER):
        return found[0]
    return oom.unclear if ran_out else training.unclear


def _case(stated: Stated) -> Case:
    try:
        case = Case.from_dict(stated.case)
        load_config(case.model)
    except ModelError:
        raise NotStated("the model is not in the catalogue") from None
    except CaseError as error:
        raise NotStated(f"no case of ours: {error}") from None
    return case


def _published(row: Printed, ran_out: bool, **more: object) -> PublishedRow:
    return PublishedRow(
        row_id=row["id"],
        source=row["source"],
        tier=row["tier"],
        model=row["model"],
        task={"train": "training"}.get(row["task"], row["task"]),
        method=row["method"],
        metric=row["metric"],
        value=row["value"],
        unit=row["unit"],
        gpu=row["gpu"],
        framework=row["framework"],
        notes=row["notes"],
        outcome="oom" if ran_out else "ok",
        **more,  # type: ignore[arg-type]
    )
