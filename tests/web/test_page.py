"""What visitors do, typed and clicked; values are the library's."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from estimator import Case, estimate
from estimator.catalogue import find_model
from estimator.fit import largest_batch, played_peaks
from estimator.gpus import find_gpu
from estimator.headroom import Room
from estimator.units import format_gb

expect: Any = pytest.importorskip("playwright.sync_api").expect

LLAMA = "meta-llama/Llama-3.1-8B"


def peak(**fields: Any) -> str:
    """Return the library's peak as the page shows it."""
    case = Case.from_dict({"model": LLAMA, "gpu": "H100", **fields})
    return format_gb(estimate(case).peak.allocated_bytes)


def shows(visitor: Any, **fields: Any) -> None:
    expect(visitor.page.locator("#gm-summary strong")).to_have_text(peak(**fields))


def choose(visitor: Any, label: str, value: str) -> None:
    """Search a drop-down list as one does: type, take the first."""
    box = visitor.page.get_by_label(label, exact=True)
    box.click()
    box.fill("")
    visitor.page.keyboard.type(value)
    visitor.page.get_by_role("option", name=value, exact=True).click()


def test_the_first_answer(visitor: Any) -> None:
    page = visitor.open()
    shows(visitor)
    expect(page.get_by_role("heading", name="gpumem")).to_be_visible()
    assert "at the peak" in visitor.answer()
    assert "H100 (81559 MiB): fits" in visitor.answer()
    case = Case.from_dict({"model": LLAMA, "gpu": "H100"})
    largest = largest_batch(case, played_peaks, Room(find_gpu("H100"))).value
    row = page.get_by_role("row", name="largest batch at length 1024")
    expect(row.get_by_role("cell").first).to_have_text(str(largest))


def test_typing_and_clicking(visitor: Any) -> None:
    page = visitor.open()
    page.get_by_label("Sequence length").fill("4096")
    shows(visitor, sequence_length=4096)
    page.get_by_label("Batch size").fill("4")
    shows(visitor, sequence_length=4096, batch_size=4)
    choose(visitor, "Model", "openai-community/gpt2")
    page.get_by_label("Sequence length").fill("512")
    page.get_by_label("training", exact=True).check()
    fields = {"model": "openai-community/gpt2", "batch_size": 4, "sequence_length": 512}
    shows(visitor, **fields, task="training")
    page.get_by_label("Gradient checkpointing").check()
    shows(visitor, **fields, task="training", gradient_checkpointing=True)
    choose(visitor, "Optimizer", "sgd")
    training = {**fields, "task": "training", "gradient_checkpointing": True, "optimizer": "sgd"}
    shows(visitor, **training)
    page.get_by_role("button", name=re.compile("Advanced")).click()
    page.get_by_label("eager", exact=True).check()
    shows(visitor, **training, attention="eager")
    choose(visitor, "Card", "L4")
    shows(visitor, **{**training, "attention": "eager", "gpu": "L4"})
    expect(page.locator("#gm-fits")).to_contain_text("What would fit on L4")
    taken = json.loads(page.get_by_label("Case as JSON").input_value())
    assert Case.from_dict(taken) == Case.from_dict({**training, "attention": "eager", "gpu": "L4"})


def test_only_fields_that_matter_are_shown(visitor: Any) -> None:
    page = visitor.open()
    expect(page.get_by_label("New tokens")).to_be_visible()
    expect(page.get_by_label("Optimizer", exact=True)).to_be_hidden()
    page.get_by_label("training", exact=True).check()
    expect(page.get_by_label("New tokens")).to_be_hidden()
    expect(page.get_by_label("Optimizer", exact=True)).to_be_visible()
    page.get_by_role("button", name=re.compile("Advanced")).click()
    expect(page.get_by_label("LoRA r", exact=True)).to_be_hidden()
    page.get_by_label("lora", exact=True).check()
    expect(page.get_by_label("LoRA r", exact=True)).to_be_visible()
    shows(visitor, task="training", method="lora")


def test_the_seeds_calculator(visitor: Any) -> None:
    page = visitor.open()
    page.get_by_label("numbers", exact=True).check()
    page.get_by_label("Sequence length").fill("2048")
    gib = page.locator("#gm-article-gib")
    expect(gib).to_have_text("19.46")
    page.get_by_label("training", exact=True).check()
    expect(gib).to_have_text("108.87")
    choose(visitor, "Start from", "phi-2")
    expect(page.get_by_label("Parameters, billions")).to_have_value("2.7")
    expect(gib).to_have_text("38.99")
    page.get_by_label("Parameters, billions").fill("3.8")
    expect(gib).not_to_have_text("38.99")


def test_a_pasted_and_an_opened_configuration(visitor: Any, tmp_path: Any) -> None:
    page = visitor.open()
    page.get_by_label("config.json", exact=True).check()
    expect(page.locator("#gm-summary")).to_contain_text("gpumem: config.json is empty")
    config = find_model("openai-community/gpt2").config
    page.locator("#f-config textarea").fill(json.dumps(config))
    shows(visitor, model=config)
    other = find_model("Qwen/Qwen2.5-0.5B").config
    path = tmp_path / "config.json"
    path.write_text(json.dumps(other), encoding="utf-8")
    page.get_by_label(re.compile("Open config.json")).set_input_files(path)
    shows(visitor, model=other)
    command = page.get_by_label(re.compile("Command line")).input_value()
    assert command == "gpumem estimate ./config.json --gpu H100"
    path.write_text(" " * (2**20 + 1), encoding="utf-8")
    page.get_by_label(re.compile("Open config.json")).set_input_files(path)
    expect(page.get_by_role("alert")).to_have_text("gpumem: config.json is larger than 1 MiB")


def test_nonsense_is_the_command_lines_sentence(visitor: Any) -> None:
    page = visitor.open()
    page.get_by_label("Batch size").fill("0")
    expect(page.locator("#gm-summary")).to_have_text(
        "gpumem: batch_size is 0, but must be a whole number from 1 to 2147483647"
    )
    expect(page.locator("#gm-main")).to_be_empty()
    page.get_by_label("Batch size").fill("")
    expect(page.locator("#gm-summary")).to_contain_text("gpumem: batch_size is None")
    page.get_by_label("Batch size").fill("2")
    shows(visitor, batch_size=2)


def test_a_link_reproduces_the_page(visitor: Any) -> None:
    fields = {"task": "training", "batch_size": 4, "lora": {"r": 8}, "method": "lora", "gpu": "A10"}
    query = "?task=training&batch_size=4&lora_r=8&method=lora&gpu=A10&__theme=dark"
    page = visitor.open(query)
    shows(visitor, **fields)
    expect(page.get_by_label("Batch size")).to_have_value("4")
    expect(page.get_by_label("training", exact=True)).to_be_checked()
    page.get_by_label("Batch size").fill("3")
    shows(visitor, **{**fields, "batch_size": 3})
    link = page.get_by_label("Link to this page as it is")
    expect(link).to_have_value(re.compile("batch_size=3"))
    wanted = {"task": "training", "batch_size": "3", "lora_r": "8", "method": "lora", "gpu": "A10"}
    found = {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}
    assert found == {**wanted, "__theme": "dark"}
    visitor.open("?" + urlsplit(link.input_value()).query)
    shows(visitor, **{**fields, "batch_size": 3})


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?batch_size=abc", "batch_size is 'abc', but must be a whole number"),
        ("?task=<script>alert(1)</script>", "task is '<script>alert(1)</script>', but must be"),
        ("?model=../../etc/passwd", "model '../../etc/passwd' is not in the catalogue"),
        ("?gpu=%00%ff", "which is not in the catalogue of"),
        ("?source=config.json&config={", "config.json is not JSON"),
        ("?source=numbers&hidden_size=1e99", "hidden_size is '1e99', but must be"),
    ],
)
def test_a_hostile_link_is_one_sentence(visitor: Any, query: str, sentence: str) -> None:
    page = visitor.page
    page.goto(visitor.address + query)
    expect(page.locator("#gm-summary")).to_contain_text("gpumem: ")
    expect(page.locator("#gm-summary")).to_contain_text(sentence)
    page.get_by_label("Sequence length").fill("64")
    expect(page.locator("#gm-summary")).to_contain_text(sentence)


def test_a_change_that_makes_it_fit_is_taken_over(visitor: Any) -> None:
    page = visitor.open(
        "?task=training&batch_size=32&model=openai-community/gpt2&gpu=RTX-3060-12GB"
    )
    row = page.locator(".gm-changes tr", has_text="yes").first
    row.get_by_role("link").click()
    expect(page.locator("#gm-summary")).to_contain_text("RTX-3060-12GB (12288 MiB): fits")


def test_what_is_copied(visitor: Any) -> None:
    page = visitor.open()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy Command line").click()
    expect(page.get_by_role("button", name="Copied Command line")).to_be_visible()
    text = page.evaluate("navigator.clipboard.readText()")
    assert text == f"gpumem estimate {LLAMA} --gpu H100"


def test_the_evidence(visitor: Any) -> None:
    page = visitor.open()
    page.get_by_role("tab", name="Evidence").click()
    expect(page.get_by_role("heading", name="How wrong is it?")).to_be_visible()
    expect(
        page.get_by_role("img", name=re.compile("predicted, GB against measured"))
    ).to_be_visible()


def test_the_keyboard_is_enough(visitor: Any) -> None:
    page = visitor.open()
    keys = page.keyboard
    page.get_by_role("tab", name="Estimate").focus()
    seen = set()
    for _ in range(40):
        keys.press("Tab")
        name = page.evaluate(
            "() => { const e = document.activeElement;"
            " return e.ariaLabel || e.labels?.[0]?.innerText.trim() || e.innerText.trim() }"
        )
        seen.add(name.splitlines()[0])
        if name.startswith("Batch size"):
            keys.press("Control+a")
            keys.type("3")
        if page.evaluate("document.activeElement.value") == "inference":
            keys.press("ArrowRight")
    shows(visitor, task="training", batch_size=3)
    wanted = {"catalogue", "Model", "full", "bfloat16", "Batch size", "Sequence length", "Card"}
    assert wanted <= seen


def test_everything_has_a_name(visitor: Any) -> None:
    page = visitor.open()
    page.get_by_label("training", exact=True).check()
    page.get_by_role("button", name=re.compile("Advanced")).click()
    page.get_by_label("LoRA r", exact=True).wait_for(state="attached")
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('input, textarea, select, fieldset, svg[role=img]')]
        .filter(e => e.checkVisibility())
        .filter(e => !(e.ariaLabel || e.labels?.[0]?.innerText.trim()))
        .map(e => e.outerHTML.slice(0, 200))"""
    )
    assert nameless == []
    status = page.get_by_role("status").first
    expect(status).to_contain_text("at the peak")
    assert page.locator("html").get_attribute("lang") == "en"
