"""`gpumem doctor`: what is installed here and what works; a report to paste in an issue."""

from __future__ import annotations

import importlib
import json
import platform
import re
from importlib import metadata
from typing import Any

import click

from app.output import wrap
from estimator.catalogue import entries
from estimator.gpus import gpus
from estimator.units import format_both

NEEDS = {
    "estimate": ("click",),
    "run": ("rich", "pydantic"),
    "compare": ("pydantic", "jinja2"),
    "trace": ("torch", "transformers", "peft", "pydantic"),
    "profile": ("torch", "transformers", "peft", "pydantic"),
    "report pictures": ("matplotlib",),
    "quantized cases": ("torch", "bitsandbytes"),
}
"""What each part of gpumem needs beside Python."""

LIBRARIES = (
    *("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors"),
    *("nvidia-ml-py", "matplotlib", "click", "rich", "jinja2", "pydantic", "numpy"),
)

EXTRAS = {"click": "", "rich": "", "jinja2": "", "pydantic": "", "matplotlib": "[report]"}
"""The extra of the package that brings a library; the others come with `profile`."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """What is installed here, and what works.

    A report to paste in an issue. It holds no path and no host name. Always exits with 0: what
    is missing is part of the answer.
    """
    report = examine()
    click.echo(json.dumps(report) if as_json else _render(report))


def examine() -> dict[str, Any]:
    """Return the state of this installation as a JSON object; imports no heavy library."""
    versions = {name: _version(name) for name in LIBRARIES}
    gpu, no_gpu = _look_for_gpu()
    works: dict[str, str | None] = {}
    for part, needs in NEEDS.items():
        problems = [problem for name in needs if (problem := _problem(name)) is not None]
        works[part] = "; ".join(problems) or None
    if works["profile"] is None:
        works["profile"] = no_gpu
    return {
        "gpumem": _version("gpumem"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "catalogue": {"models": len(entries()), "gpus": len(gpus())},
        "libraries": versions,
        "gpu": gpu,
        "works": {part: problem is None for part, problem in works.items()},
        "problems": {part: problem for part, problem in works.items() if problem is not None},
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _problem(name: str) -> str | None:
    """Return why a library cannot be used: missing, or older than gpumem asks for."""
    version = _version(name)
    if version is None:
        extra = EXTRAS.get(name, "[profile]")
        return f"{name} is not installed: pip install 'gpumem{extra}'"
    least = _minima().get(name)
    if least is not None and _number(version) < _number(least):
        return f"{name} {version} is too old: gpumem needs {least} or newer"
    return None


def _minima() -> dict[str, str]:
    """Return the oldest versions that the package's own metadata allows."""
    try:
        lines = metadata.requires("gpumem") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([A-Za-z0-9_-]+)\s*>=\s*([0-9.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match is not None}


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _look_for_gpu() -> tuple[dict[str, Any] | None, str | None]:
    """Return what is known of the GPU, and why nothing can be measured here, if so."""
    try:
        environment = importlib.import_module("profiler.environment")
    except ImportError as problem:
        return None, f"the GPU cannot be looked for: {problem}"
    found = environment.collect_environment("cuda")
    gpu = None
    if found.gpu is not None:
        gpu = {
            "name": found.gpu,
            "total_bytes": found.gpu_total_bytes,
            "driver": found.driver,
            "cuda": found.cuda,
            "allocator": found.allocator,
        }
    return gpu, environment.cuda_problem()


def _render(report: dict[str, Any]) -> str:
    lines = [
        f"gpumem    {report['gpumem'] or 'run from its source, not installed'}",
        f"python    {report['python']} on {report['platform']}",
        f"catalogue {report['catalogue']['models']} models, {report['catalogue']['gpus']} cards",
        "gpu       " + _render_gpu(report["gpu"]),
        "",
        "libraries",
        *(f"  {name:13} {version or '-'}" for name, version in report["libraries"].items()),
        "",
        "what works here",
    ]
    for part, works in report["works"].items():
        reason = "" if works else ": " + report["problems"][part]
        lines.append(wrap(f"  {part:16} {'yes' if works else 'no'}{reason}", indent=19))
    return "\n".join(lines)


def _render_gpu(gpu: dict[str, Any] | None) -> str:
    if gpu is None:
        return "none found"
    size = gpu["total_bytes"]
    memory = "" if size is None else f", {format_both(size)}"
    return f"{gpu['name']}{memory}, driver {gpu['driver']}"
