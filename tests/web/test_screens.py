"""Phone and desktop, light and dark: nothing is cut off, and what is written can be read."""

from __future__ import annotations

import re
from typing import Any

import pytest

expect: Any = pytest.importorskip("playwright.sync_api").expect

LONGEST = (
    "?task=training&method=lora&quantization=nf4&batch_size=4&sequence_length=4096"
    "&gradient_checkpointing=true&gpu=RTX-4070-Ti"
)

# The elements with text whose contrast to what is behind them is below WCAG's 4.5 to 1.
FAINT = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = channels(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("#gm-header *, #gm-form *, #gm-result *")]
    .filter((e) => hasText(e) && e.checkVisibility() && !e.closest("svg, .gm-heat, option"))
    .map((e) => {
      const [a, b] = [light(channels(getComputedStyle(e).color)), light(behind(e))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 120)];
    })
    .filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_or_faint(new_visitor: Any, width: int, scheme: str) -> None:
    visitor = new_visitor(viewport={"width": width, "height": 844}, color_scheme=scheme)
    page = visitor.open(LONGEST)
    expect(page.locator(".gm-changes")).to_be_visible()
    page.get_by_role("button", name=re.compile("Advanced")).click()
    page.get_by_label("LoRA target modules").wait_for()
    page.get_by_text("All 47 cards").click()
    for tab in ("Estimate", "Evidence"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("tab", name="Estimate").click()
    dark = page.evaluate("document.body.classList.contains('dark')")
    assert dark == (scheme == "dark")
    assert page.evaluate(FAINT) == []


def test_a_phone_always_shows_the_answer(new_visitor: Any) -> None:
    visitor = new_visitor(viewport={"width": 390, "height": 844})
    page = visitor.open(LONGEST)
    short = page.locator(".gm-short")
    expect(short).to_be_in_viewport()
    expect(short).to_contain_text("RTX-4070-Ti: does not fit")
    page.get_by_label("Batch size").fill("1")
    expect(page.locator("#gm-summary .gm-label")).to_contain_text("1x4096")
    expect(short).to_be_in_viewport()
