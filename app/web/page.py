"""The page's widgets and what they start. Gradio is imported here and nowhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

import gradio as gr

from app.web.fields import (
    ADVANCED_FIELDS,
    BY_NAME,
    DEFAULTS,
    FIELDS,
    MODEL_FIELDS,
    NONE,
    SOURCES,
    Field,
)
from app.web.form import State, state_of
from app.web.link import from_query
from app.web.numbers import PRESETS, preset_numbers
from app.web.render import Pages, render_answer, render_evidence
from estimator.catalogue import entries
from estimator.gpus import gpus

TITLE = "gpumem: how much GPU memory does this LLM run need?"

Search = Callable[[State], Awaitable[str]]

_EVENT: dict[str, Any] = {
    "queue": False,
    "show_progress": "hidden",
    "trigger_mode": "always_last",
    "preprocess": False,
    "postprocess": False,
}
"""Raw values in, HTML out: what a browser sends is for `form` to judge."""


def build_page(search: Search) -> gr.Blocks:
    """Return the page; `style` has what goes with it.

    Args:
        search: what fits for a state, as HTML, somewhere else than in the server's own thread.
    """
    first = render_answer(dict(DEFAULTS))
    with gr.Blocks(title=TITLE, analytics_enabled=False) as page:
        gr.HTML(_asset("header.html"), elem_id="gm-header")
        with gr.Tabs():
            with gr.Tab("Estimate"):
                _estimate_tab(page, first, search)
            with gr.Tab("Evidence"):
                gr.HTML(render_evidence(), elem_classes="gm-answer")
    return page


def style() -> dict[str, Any]:
    """Return the arguments of `mount_gradio_app` that concern how the page looks."""
    return {
        "theme": gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        "css": _asset("page.css") + _visibility(),
        "head": f"<style>{_asset('frame.css')}</style><script>{_asset('page.js')}</script>",
        "footer_links": [],
    }


def calls(page: gr.Blocks) -> dict[str | int, int]:
    """Return how many values each of the page's functions takes, by its name and its number."""
    counts: dict[str | int, int] = {}
    for number, function in page.fns.items():
        counts[number] = counts[function.api_name] = len(function.inputs)
    return counts


def _estimate_tab(page: gr.Blocks, first: Pages, search: Search) -> None:
    async def fits(*values: Any) -> str:
        return await search(state_of(list(values)))

    with gr.Row(elem_id="gm-columns"):
        with gr.Column(scale=2, min_width=300, elem_id="gm-form"):
            widgets = _form()
        with gr.Column(scale=3, min_width=300, elem_id="gm-result"):
            summary = gr.HTML(first.summary, elem_id="gm-summary", elem_classes="gm-answer")
            main = gr.HTML(first.main, elem_id="gm-main", elem_classes="gm-answer")
            fitting = gr.HTML("", elem_id="gm-fits", elem_classes="gm-answer")
            more = gr.HTML(first.more, elem_id="gm-more", elem_classes="gm-answer")
    values = [widgets[field.name] for field in FIELDS]
    parts = [summary, main, more]
    # Not `input`: it misses what is pasted, and radio buttons chosen by the keyboard.
    changed = gr.on(
        [widget.change for name, widget in widgets.items() if name != "preset"],
        _answer,
        values,
        parts,
        api_name="answer",
        **_EVENT,
    )
    filled = [widgets[name] for name in preset_numbers(next(iter(PRESETS)))]
    preset = widgets["preset"]
    preset.change(_fill_in, [preset], filled, api_name="preset", **_EVENT)
    opened = page.load(
        _open,
        [widgets["config"]],
        [*values, *parts],
        # The link's query is the only input: page.js keeps it, and it is sent in the text's place.
        js="() => [window.gmQuery]",
        api_name="open",
        **_EVENT,
    )
    changed.then(fits, values, [fitting], api_name="fits", **_EVENT)
    opened.then(fits, values, [fitting], api_name="fits_first", **_EVENT)


def _form() -> dict[str, Any]:
    """Place the widgets; return them by their fields' names."""
    widgets: dict[str, Any] = {}

    def place(*names: str) -> None:
        for name in names:
            widgets[name] = _widget(BY_NAME[name])

    place("source")
    with gr.Column(elem_id="gm-catalogue"):
        place("model")
    with gr.Column(elem_id="gm-config"):
        place("config")
        gr.HTML(_asset("open_file.html"))
    with gr.Column(elem_id="gm-numbers"):
        place("preset")
        with gr.Row():
            place("parameters_billions", "hidden_size", "num_hidden_layers")
        with gr.Row():
            place("num_attention_heads", "num_key_value_heads", "vocab_size")
    place("task", "method", "dtype", "quantization")
    with gr.Row():
        place("batch_size", "sequence_length", "max_new_tokens")
    place("optimizer", "gradient_checkpointing", "gpu")
    with gr.Accordion("Advanced", open=False):
        place(*(field.name for field in ADVANCED_FIELDS))
    return widgets


def _widget(field: Field) -> Any:
    common = {"label": field.label, "elem_id": f"f-{field.name}", "value": field.default}
    if field.kind == "flag":
        return gr.Checkbox(**common)
    common["info"] = field.info or None
    if field.kind == "choice":
        return gr.Radio(list(field.choices), **common)
    if field.kind == "search":
        return gr.Dropdown(_choices(field), allow_custom_value=True, **common)
    if field.kind in ("count", "decimal"):
        step = 1 if field.kind == "count" else 0.1
        return gr.Number(minimum=0, step=step, min_width=90, **common)
    lines = 8 if field.kind == "long_text" else 1
    return gr.Textbox(lines=lines, max_lines=12, **common)


def _choices(field: Field) -> list[str]:
    if field.name == "model":
        return [entry.name for entry in entries()]
    if field.name == "gpu":
        return [NONE, *(gpu.name for gpu in gpus())]
    return [NONE, *PRESETS] if field.name == "preset" else list(field.choices)


def _visibility() -> str:
    """Return rules that hide what the chosen radio buttons have no use for."""
    shown = {f"f-{field.name}": field.shown for field in FIELDS if field not in MODEL_FIELDS}
    for source, place in zip(SOURCES, ("gm-catalogue", "gm-config", "gm-numbers"), strict=True):
        shown[place] = (("source", (source,)),)
    rules = []
    for place, conditions in shown.items():
        for name, values in conditions:
            chosen = ",".join(f'#f-{name} input[value="{value}"]:checked' for value in values)
            rules.append(f"#gm-form:not(:has({chosen})) #{place}{{display:none}}")
    return "\n".join(rules)


def _asset(name: str) -> str:
    return files("app.web").joinpath("assets", name).read_text(encoding="utf-8")


def _texts(pages: Pages) -> list[str]:
    return [pages.summary, pages.main, pages.more]


def _answer(*values: Any) -> list[str]:
    return _texts(render_answer(state_of(list(values))))


def _open(query: Any) -> list[Any]:
    """Fill in the form from a link's query, and answer it."""
    state = from_query(query if isinstance(query, str) else "")
    return [*(state[field.name] for field in FIELDS), *_texts(render_answer(state))]


def _fill_in(preset: Any) -> list[Any]:
    """Return a preset's numbers; anything else leaves the form as it is."""
    if not isinstance(preset, str) or preset not in PRESETS:
        return [gr.skip()] * len(preset_numbers(next(iter(PRESETS))))
    return list(preset_numbers(preset).values())
