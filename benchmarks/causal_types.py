"""Traces every causal model type of transformers: `python -m benchmarks.causal_types`.

The list of types is transformers' own. Each is built from its default configuration and traced
for one training step, for the same with LoRA on all linear layers, and for inference. What is not
traced is refused with a reason; a type whose default configuration does not build is listed, too.
"""

from __future__ import annotations

import argparse
import json
import math
import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.causal_types_page import write_page
from estimator.case import Case
from estimator.errors import ModelError, UnsupportedError
from estimator.families import PARSERS
from estimator.units import format_gb
from profiler.provenance import code_version
from profiler.workers import Worker

RUNS: dict[str, dict[str, Any]] = {
    "training": {"task": "training", "sequence_length": 64},
    "lora": {"task": "training", "method": "lora", "sequence_length": 64},
    "inference": {"task": "inference", "sequence_length": 64, "max_new_tokens": 8},
}
"""The fields of the three cases; all else is a case's default (bfloat16, batch size 1)."""

HUGE_PARAMETERS = 30_000_000_000
CUT_LAYERS = 8
"""Layers of a type whose default configuration has more parameters than that."""


@dataclass(frozen=True, slots=True)
class Run:
    """One traced case of a type, or why there is none.

    `layers` is None at the default depth. `reason` is set where the case was not traced.
    """

    peak_allocated_bytes: int | None
    phase: str | None
    seconds: float
    layers: int | None = None
    reason: str | None = None
    kind: str | None = None
    assumptions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One model type. `build_error` is set where its default configuration does not build."""

    model_type: str
    class_name: str
    parameters: int | None
    runs: dict[str, Run]
    build_error: str | None = None
    code_version: str = ""

    @property
    def traced(self) -> bool:
        """Whether all three cases were traced."""
        return all(run.reason is None for run in self.runs.values())


def causal_types() -> dict[str, str]:
    """Return transformers' causal model types with the class that each builds."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))


def default_configuration(model_type: str, layers: int | None = None) -> dict[str, Any]:
    """Return the configuration object of a case for a type's default model.

    Naming the type is enough for transformers; the estimator, where it knows the type, wants the
    sizes spelled out.

    Args:
        layers: how many layers, instead of the type's own number.
    """
    import transformers
    from huggingface_hub.errors import StrictDataclassError

    cut: dict[str, Any] = {}
    if layers is not None:
        known = transformers.CONFIG_MAPPING[model_type]()
        # The decoders of encoder-decoder models count their own.
        names: tuple[str, ...] = ("num_hidden_layers", "decoder_layers")
        if hasattr(known, "num_decoder_layers"):
            names = ("num_decoder_layers",)
        elif model_type == "longcat_flash":
            # Each of its layers has two attentions, which num_hidden_layers counts.
            names = ("num_layers",)
        cut = {name: layers for name in names if hasattr(known, name)}
    if model_type not in PARSERS:
        return {"model_type": model_type, **cut}
    try:
        default = transformers.AutoConfig.for_model(model_type, **cut)
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError):
        return {"model_type": model_type, **cut}
    values: dict[str, Any] = default.to_dict()
    # A case has no word for infinity (Mamba 2's `time_step_limit`); the type's own default has.
    kept = {key: value for key, value in values.items() if value is not None and _finite(value)}
    return {**json.loads(json.dumps(kept, default=str)), "model_type": model_type}


def _finite(value: Any) -> bool:
    inner = value if isinstance(value, (list, tuple)) else (value,)
    return not any(isinstance(item, float) and math.isinf(item) for item in inner)


def trace_type(
    worker: Worker, model_type: str, class_name: str, timeout_s: float, depth: int | None = None
) -> Row:
    """Trace the three cases of one type, with `depth` layers if that is given."""
    version, dirty = code_version()
    shown = version + ("-dirty" if dirty else "")
    config = default_configuration(model_type)
    try:
        parameters = _count(config)
    except (ModelError, UnsupportedError) as error:
        return Row(model_type, class_name, None, {}, str(error), shown)
    layers = depth
    if layers is None and parameters > HUGE_PARAMETERS:
        layers = CUT_LAYERS
    if layers is not None:
        cut = default_configuration(model_type, layers)
        try:
            _count(cut)
        except (ModelError, UnsupportedError):
            # Lists by layer that do not follow: this type is traced as it is.
            layers = None
        else:
            config = cut
    runs = {
        name: _trace(worker, config, fields, timeout_s, layers) for name, fields in RUNS.items()
    }
    return Row(model_type, class_name, parameters, runs, None, shown)


_BUILDING = threading.Lock()
"""Building switches initialization off for the whole process."""


def _count(config: dict[str, Any]) -> int:
    """Return the parameters of a configuration's model, built on the meta device.

    Raises:
        ModelError, UnsupportedError: it does not build.
    """
    from profiler import build, tensors

    with _BUILDING:
        model = build.build_model(Case.from_dict({"model": config, "task": "training"}), "meta")
        return tensors.count_parameters(model).total


def _trace(
    worker: Worker,
    config: dict[str, Any],
    fields: dict[str, Any],
    timeout_s: float,
    layers: int | None,
) -> Run:
    started = time.monotonic()
    record = worker.run(Case.from_dict({"model": config, **fields}), timeout_s)
    seconds = round(time.monotonic() - started, 1)
    if record.report is None:
        message = record.error.message if record.error is not None else record.status
        kind = None if record.error is None else record.error.kind
        return Run(None, None, seconds, layers, message, kind)
    report = record.report
    peak = report.peak
    lines = tuple(report.assumptions)
    return Run(peak.allocated_bytes, peak.phase, seconds, layers, assumptions=lines)


def trace_types(
    types: dict[str, str], workers: int, timeout_s: float, depth: int | None = None
) -> list[Row]:
    """Trace many types in worker processes, and print each as it is done."""
    waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
    for item in types.items():
        waiting.put(item)
    rows: list[Row] = []
    lock = threading.Lock()

    def work() -> None:
        with Worker("trace", timeout_s) as worker:
            while True:
                try:
                    model_type, class_name = waiting.get_nowait()
                except queue.Empty:
                    return
                row = trace_type(worker, model_type, class_name, timeout_s, depth)
                with lock:
                    rows.append(row)
                    print(describe(row), flush=True)

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(rows, key=lambda row: row.model_type)


def describe(row: Row) -> str:
    """Return a type's result as text: a line, and one more for each case that was refused."""
    if row.build_error is not None:
        return f"{row.model_type}: its default configuration does not build ({row.build_error})"
    size = "?" if row.parameters is None else f"{row.parameters / 1e9:.2f} B"
    parts = []
    lines = []
    for name, run in row.runs.items():
        if run.reason is not None or run.peak_allocated_bytes is None:
            parts.append(f"{name} refused")
            lines.append(f"  {name}: {run.reason}")
            continue
        depth = "" if run.layers is None else f" at {run.layers} layers"
        shown = format_gb(run.peak_allocated_bytes)
        parts.append(f"{name} {shown}{depth} in {run.seconds:.1f} s")
    return "\n".join([f"{row.model_type} ({size}): " + "; ".join(parts), *lines])


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """Return how many types there are, build, and are traced, in each case and in all three."""
    built = [row for row in rows if row.build_error is None]
    counts: dict[str, Any] = {"types": len(rows), "built": len(built)}
    for name in RUNS:
        counts[name] = sum(row.runs[name].reason is None for row in built)
    counts["all"] = sum(row.traced for row in built)
    return counts


def to_json(rows: Sequence[Row], timeout_s: float, depth: int | None) -> dict[str, Any]:
    """Return the result as an object: versions, cases, totals and rows."""
    import peft
    import torch
    import transformers

    return {
        "source": "trace",
        "versions": {
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
        "timeout_s": timeout_s,
        "layers": depth,
        "cases": RUNS,
        "totals": totals(rows),
        "rows": [asdict(row) for row in rows],
    }


def read_rows(path: Path) -> list[Row]:
    """Return the rows of an earlier result."""
    rows = []
    for data in json.loads(path.read_text())["rows"]:
        runs = {
            name: Run(**{**run, "assumptions": tuple(run["assumptions"])})
            for name, run in data["runs"].items()
        }
        rows.append(Row(**{**data, "runs": runs}))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 1 where less than 90 % of what builds is traced."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causal_types", description=__doc__)
    parser.add_argument(
        "--types", help="only these, separated by commas; a result that exists keeps its other rows"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds a case (default 120)")
    parser.add_argument("--layers", type=int, help="layers of every type (default: its own depth)")
    parser.add_argument("-o", "--output", type=Path, help="write the result as JSON")
    parser.add_argument("--page", type=Path, help="write the result as a Markdown page")
    options = parser.parse_args(arguments)
    types = causal_types()
    if options.types:
        wanted = options.types.split(",")
        unknown = [name for name in wanted if name not in types]
        if unknown:
            parser.error(f"transformers knows no causal model type {unknown[0]!r}")
        types = {name: types[name] for name in wanted}
    rows = trace_types(types, options.workers, options.timeout, options.layers)
    if options.types and options.output is not None and options.output.exists():
        new = {row.model_type for row in rows}
        rows += [row for row in read_rows(options.output) if row.model_type not in new]
        rows.sort(key=lambda row: row.model_type)
    result = to_json(rows, options.timeout, options.layers)
    counts = result["totals"]
    print(
        f"{counts['types']} types, {counts['built']} build; traced: {counts['training']} training, "
        f"{counts['lora']} LoRA, {counts['inference']} inference, {counts['all']} all three"
    )
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.page is not None:
        write_page(result, options.page)
    return 0 if min(counts[name] for name in RUNS) >= 0.9 * counts["built"] else 1


if __name__ == "__main__":
    sys.exit(main())
