"""Writes the result of `benchmarks.causal_types` as the page docs/model_types.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from estimator.units import format_gb

_HEAD = """# Model types

Which causal language models of transformers the trace knows: all of them are played by their own
code, so a type needs no formulas here. This page is written by

    python -m benchmarks.causal_types -o results/reports/causal_types.json \\
        --page docs/model_types.md

Each type is built from its default configuration (bfloat16, random weights on the meta device) and
traced three times, batch size 1: a full training step of 64 tokens (fused AdamW), the same with
LoRA on all linear layers, and 64 tokens prefilled and 8 decoded. The figures are peak allocated
bytes, simulated, not measured. A depth beside a figure is not the type's own: types of more than
30 billion parameters are always cut. What is not traced is refused in one sentence; the reasons
stand below the table.

What a trace assumes where the values of real tensors would decide:

* Tokens are spread evenly over experts. Most classes run their experts as one grouped product
  (`grouped_mm`) and, from the second generated token on, as one batched product over copies of the
  chosen experts' weights, as transformers does on CUDA; where a class loops over its experts in
  Python, each gets its equal share, rounded up. The report says so.
* Masks are full, because batches are.
* A class without sdpa gets eager attention, as transformers itself chooses; the report says so.
* State-space and linear-attention layers run transformers' own torch code, as on a GPU without the
  packages mamba-ssm, causal-conv1d and flash-linear-attention.
"""


def write_page(result: dict[str, Any], path: Path) -> None:
    """Write the page. `result` is what `causal_types.to_json` returned."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(result))


def page(result: dict[str, Any]) -> str:
    """Return the page as Markdown."""
    counts = result["totals"]
    built = counts["built"]
    versions = ", ".join(f"{name} {value}" for name, value in result["versions"].items())
    depth = result["layers"]
    lines = [
        _HEAD,
        *(
            [
                f"This run was made with `--layers {depth}`: every type has {depth} layers, "
                "whatever its own number, unless its default configuration cannot be changed so.",
                "",
            ]
            if depth is not None
            else []
        ),
        f"Traced with {versions}. Of {counts['types']} types, {built} build from their default "
        f"configuration. Of these are traced: training {_share(counts['training'], built)}, LoRA "
        f"{_share(counts['lora'], built)}, inference {_share(counts['inference'], built)}, all "
        f"three {_share(counts['all'], built)}.",
        "",
        "| type | parameters | training | LoRA | inference |",
        "|---|---|---|---|---|",
    ]
    notes: list[str] = []
    unbuilt: list[str] = []
    for row in result["rows"]:
        name = row["model_type"]
        if row["build_error"] is not None:
            unbuilt.append(f"* `{name}`: {row['build_error']}")
            continue
        cells = []
        for case, run in row["runs"].items():
            if run["reason"] is not None:
                cells.append("refused")
                notes.append(f"* `{name}`, {case}: {run['reason']}")
                continue
            depth = "" if run["layers"] is None else f" ({run['layers']} layers)"
            cells.append(format_gb(run["peak_allocated_bytes"]) + depth)
        count = row["parameters"]
        size = "" if count is None else f"{count / 1e9:.2f} B"
        lines.append(f"| `{name}` | {size} | " + " | ".join(cells) + " |")
    lines += ["", "## Refused", "", *(notes or ["Nothing."])]
    lines += ["", "## Default configurations that do not build", "", *(unbuilt or ["None."])]
    return "\n".join(lines) + "\n"


def _share(count: int, whole: int) -> str:
    return f"{count} ({100 * count / max(1, whole):.0f} %)"
