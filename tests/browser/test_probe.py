"""Test the text box of `FeatureProbe`: its JavaScript in Chromium and its Python here, connected as in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eventually import eventually
from playwright.sync_api import Page, expect

from mtsae_lens.exploration.live import explain
from mtsae_lens.exploration.probe import FeatureProbe

TEXT = "the king sat under the tree"
TRAITS = ("text", "feature", "position", "tokens", "activations", "strongest", "contributions", "error")

# What anywidget gives `render`: get, set, save_changes and events; changes go to Python and its answer comes back.
MODEL = """async () => {
  const state = await window.toPython({}), listeners = {}, unsent = {};
  window.model = {
    get: (name) => state[name],
    set: (name, value) => { state[name] = unsent[name] = value; },
    on: (event, listener) => { (listeners[event] ||= []).push(listener); },
    save_changes: async () => {
      const sent = { ...unsent };
      Object.keys(unsent).forEach((name) => delete unsent[name]);
      const answer = await window.toPython(sent);
      Object.assign(state, answer);
      Object.keys(answer).forEach((name) => (listeners["change:" + name] || []).forEach((listener) => listener()));
    },
  };
  window.probe.render({ model: window.model, el: document.body });
}"""


@pytest.fixture
def box(lm: Any) -> FeatureProbe:
    return FeatureProbe(lm)


@pytest.fixture
def page(visit: Callable[..., Page], box: FeatureProbe, tmp_path: Path) -> Iterator[Page]:
    (tmp_path / "index.html").write_text("<!doctype html><title>box</title>")
    page = visit(tmp_path / "index.html")

    def to_python(changes: dict[str, Any]) -> dict[str, Any]:
        for name, value in changes.items():
            setattr(box, name, value)
        return {name: getattr(box, name) for name in TRAITS}

    page.expose_function("toPython", to_python)
    page.add_style_tag(content=str(box._css))
    page.add_script_tag(content=str(box._esm).replace("export default", "window.probe ="), type="module")
    page.wait_for_function("window.probe !== undefined")
    page.evaluate(MODEL)
    return page


def test_typing_shows_tokens_and_a_click_says_why(page: Page, box: FeatureProbe, lm: Any) -> None:
    read = explain(lm, TEXT)
    page.get_by_label("text", exact=True).fill(TEXT)
    tokens = page.locator(".mtsae-token")
    expect(tokens).to_have_count(len(read.tokens))
    eventually(page, tokens.all_text_contents, list(read.tokens))
    strengths = "tokens => tokens.map((token) => parseFloat(token.style.getPropertyValue('--strength')))"
    acts = read.feature_acts.amax(dim=1)
    eventually(page, lambda: tokens.evaluate_all(strengths), pytest.approx((80 * acts / acts.max()).tolist(), abs=0.01))
    tokens.nth(3).click()
    expect(tokens.nth(3)).to_have_class("mtsae-token mtsae-clicked")
    feature, value = read.strongest(3)[0]
    expect(page.locator(".mtsae-chip").first).to_have_text(f"{feature} {value:.2f}")
    expect(page.locator(".mtsae-drivers > div").first).to_contain_text(f"feature {feature}: pre-activation {value:.2f}")
    found = read.contributions(feature, 3)
    parts = page.locator(".mtsae-bars").first.locator(".mtsae-bar span:last-child")
    expect(parts).to_have_text([f"{part:+.2f}" for part in found.scales.values()])


def test_a_chip_chooses_its_feature_and_the_number_another(page: Page, box: FeatureProbe, lm: Any) -> None:
    page.get_by_label("text", exact=True).fill(TEXT)
    chip = page.locator(".mtsae-chip").nth(1)
    expect(chip).to_be_visible()
    chosen = int(chip.inner_text().split()[0])
    chip.click()
    number = page.get_by_label("feature, -1")
    expect(number).to_have_value(str(chosen))
    eventually(page, lambda: box.feature, chosen)
    number.fill("99")
    number.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("from 0 to 31")
    number.fill("")
    number.press("Enter")
    expect(page.locator(".mtsae-error")).to_have_text("")
    eventually(page, lambda: box.feature, -1)
    number.fill("5.7")
    number.press("Enter")
    expect(number).to_have_value("5")


def test_a_text_is_text_and_one_too_long_says_so(page: Page, box: FeatureProbe) -> None:
    hostile = "<img src=x onerror=window.hacked=1>"
    page.get_by_label("text", exact=True).fill(hostile)
    expect(page.locator(".mtsae-token").first).to_be_visible()
    eventually(page, lambda: "".join(page.locator(".mtsae-token").all_text_contents())[-len(hostile) :], hostile)
    assert page.evaluate("window.hacked") is None
    page.get_by_label("text", exact=True).fill(TEXT * 9)
    expect(page.get_by_role("alert")).to_contain_text("give a shorter one")
    expect(page.locator(".mtsae-token")).to_have_count(0)


def test_what_python_sets_is_shown(page: Page, box: FeatureProbe, lm: Any) -> None:
    box.text = TEXT
    page.evaluate("window.model.save_changes()")
    expect(page.get_by_label("text", exact=True)).to_have_value(TEXT)
    expect(page.locator(".mtsae-token")).to_have_count(len(box.tokens))
