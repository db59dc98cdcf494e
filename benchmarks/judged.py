"""One figure that was predicted, beside the one it is judged by, and what it belongs to.

A comparison's tables by family, method, component and so on are summaries of these.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from benchmarks.error_summary import ErrorSummary, summarize
from estimator.config_source import load_config
from estimator.errors import ModelError
from estimator.report import COMPONENTS, MemoryReport

CASE_KEYS = ("family", "method", "dtype", "task", "stack", "gpu")
"""What a case is grouped by; `source` and `tier` are of published rows."""

KEYS = ("case", *CASE_KEYS, "source", "tier", "counter", "component", "phase")
"""What `--by` takes."""

NOT_STATED = "-"


@dataclass(frozen=True, slots=True)
class Judged:
    """A predicted figure: `error` is a share of the reference, plus an over-estimate.

    `name` says who predicted, `keys` what it is grouped by. Of a component the error is a share of
    the whole peak: small parts are not judged by themselves.
    """

    name: str
    label: str
    predicted_bytes: int
    reference_bytes: int
    keys: Mapping[str, str] = field(default_factory=dict)
    whole_bytes: int | None = None

    @property
    def error(self) -> float:
        """(predicted - reference) / reference, or / the whole where this is a part."""
        whole = self.reference_bytes if self.whole_bytes is None else self.whole_bytes
        return (self.predicted_bytes - self.reference_bytes) / whole


@dataclass(frozen=True, slots=True)
class Group:
    """How wrong one predictor is over the figures that have the same values of the keys."""

    values: tuple[str, ...]
    summary: ErrorSummary


def case_keys(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return what a case (as a JSON object) is grouped by."""
    lora = fields.get("lora") or {}
    method = fields.get("method", "full")
    if fields.get("task") != "training":
        method = "inference"
    elif method == "lora":
        adapters = "dora" if lora.get("use_dora") else "lora"
        method = f"q{adapters}" if fields.get("quantization") in ("nf4", "fp4") else adapters
    return {
        "family": _family_of(fields["model"]),
        "method": method,
        "dtype": fields.get("quantization") or fields.get("dtype", NOT_STATED),
        "task": fields.get("task", "inference"),
        "stack": fields.get("stack") or "today",
        "gpu": fields.get("gpu") or NOT_STATED,
    }


def _family_of(model: str | Mapping[str, Any]) -> str:
    if not isinstance(model, str):
        return str(model.get("model_type", NOT_STATED))
    return _family(model)


@lru_cache(maxsize=4096)
def _family(model: str) -> str:
    try:
        return load_config(model).model_type
    except ModelError:
        return NOT_STATED


def judge_report(
    name: str,
    label: str,
    predicted: MemoryReport,
    reference: MemoryReport,
    keys: Mapping[str, str],
) -> Iterator[Judged]:
    """Yield a prediction's figures that the reference has too: peak, phases, components."""
    whole = reference.peak.allocated_bytes
    yield Judged(
        name,
        label,
        predicted.peak.allocated_bytes,
        whole,
        {**keys, "counter": "allocated", "phase": "peak"},
    )
    known = {phase.name: phase for phase in predicted.phases}
    for phase in reference.phases:
        other = known.get(phase.name)
        if other is not None and phase.peak_allocated_bytes > 0:
            yield Judged(
                name,
                label,
                other.peak_allocated_bytes,
                phase.peak_allocated_bytes,
                {**keys, "counter": "allocated", "phase": phase.name},
            )
    ours, theirs = predicted.components, reference.components
    # What nobody told apart says nothing of a component.
    if theirs.unattributed_bytes == whole:
        return
    for component in COMPONENTS:
        sizes = [getattr(part, f"{component}_bytes") for part in (ours, theirs)]
        if any(sizes):
            part_keys = {**keys, "counter": "allocated", "component": component.replace("_", " ")}
            yield Judged(name, label, sizes[0], sizes[1], part_keys, whole)


def judge_counters(
    name: str,
    label: str,
    predicted: MemoryReport,
    reference: MemoryReport,
    keys: Mapping[str, str],
) -> Iterator[Judged]:
    """Yield the peaks of the counters beside allocated bytes that both sides know.

    An estimate's reserved bytes have it played on the allocator's model, which takes a while.
    """
    for counter in ("reserved", "device"):
        theirs: int | None = getattr(reference.peak, f"{counter}_bytes")
        if theirs is None:
            continue
        ours: int | None = getattr(predicted.peak, f"{counter}_bytes")
        if ours is not None:
            yield Judged(name, label, ours, theirs, {**keys, "counter": counter, "phase": "peak"})


def group(judged: Iterable[Judged], by: Sequence[str]) -> tuple[Group, ...]:
    """Summarize by the values of `by`, a group of each predictor apart.

    Figures of phases and components only count where `by` asks for them; otherwise it is peaks of
    allocated bytes.
    """
    found: dict[tuple[str, ...], list[tuple[str, float]]] = {}
    for one in judged:
        if not _counts(one, by):
            continue
        values = tuple(one.label if key == "case" else one.keys.get(key, NOT_STATED) for key in by)
        found.setdefault((*values, one.name), []).append((one.label, one.error))
    order = {name: index for index, name in enumerate(("architecture", "article", "trace", "new"))}
    keys = sorted(found, key=lambda key: (key[:-1], order.get(key[-1], len(order))))
    return tuple(Group(key[:-1], summarize(key[-1], found[key])) for key in keys)


def _counts(one: Judged, by: Sequence[str]) -> bool:
    keys = one.keys
    if "component" in by:
        return "component" in keys
    if "component" in keys:
        return False
    if "counter" not in by and keys.get("counter") != "allocated":
        return False
    return "phase" in by or keys.get("phase") == "peak"
