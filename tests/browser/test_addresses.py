"""Test the links of the exploration page: copied, opened again, and edited by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from eventually import eventually
from facts_folder import write_facts
from playwright.sync_api import Dialog, Page, expect

from mtsae_lens.reporting.explorer.page import write_explorer

Visit = Callable[..., Page]
DILATIONS = (0, 1.5, 45.6789, 123.456)  # learned ones; the list's columns have four digits


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explorer(write_facts(tmp_path_factory.mktemp("facts"), d_sae=40, dilations=DILATIONS))


def test_a_copied_link_leads_back(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/3?example=s2", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("status")).to_have_text("Copied")
    link = index.as_uri() + "#/feature/3?example=s2"
    expect(page).to_have_url(link)
    assert page.evaluate("navigator.clipboard.readText()") == link
    again = visit(index, link.removeprefix(index.as_uri()))
    expect(again.locator("#example-s2 .account")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("")


@pytest.mark.parametrize("clipboard", ["undefined", "{ writeText: () => Promise.reject(new Error('not allowed')) }"])
def test_without_a_clipboard_the_link_is_shown(visit: Visit, index: Path, clipboard: str) -> None:
    page = visit(index, "#/feature/4")
    shown: list[str] = []

    def read(dialog: Dialog) -> None:
        shown.append(dialog.default_value)
        dialog.dismiss()

    page.on("dialog", read)
    page.evaluate(f"Object.defineProperty(navigator, 'clipboard', {{ value: {clipboard} }})")
    page.get_by_role("button", name="Copy link").click()
    eventually(page, lambda: shown, [index.as_uri() + "#/feature/4"])
    expect(page.get_by_role("status")).to_have_text("")


def test_what_is_shown_of_a_feature_is_kept_from_one_to_the_next(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/3?why=model&lines=1&example=2")
    page.get_by_label("Next feature").click()
    expect(page.locator("h1")).to_contain_text("Feature 4")
    expect(page).to_have_url(by_button := index.as_uri() + "#/feature/4?why=model&lines=1")
    page.keyboard.press("k")
    expect(page.locator("h1")).to_contain_text("Feature 3")
    page.keyboard.press("j")
    expect(page.locator("h1")).to_contain_text("Feature 4")
    expect(page).to_have_url(by_button)


@pytest.mark.parametrize("token", ["abc", "-1", "999", "1.5", ""])
def test_a_token_that_is_not_there_is_no_token(visit: Visit, index: Path, token: str) -> None:
    page = visit(index, f"#/text/0?token={token}&feature={token}")
    expect(page.locator("aside .meaning")).to_contain_text("Choose a token")
    expect(page.locator(".tok.peak, .tok.on")).to_have_count(0)


@pytest.mark.parametrize("address", ["#/feature/40", "#/feature/99999999999999999999999", "#/text/10", "#/text/99"])
def test_what_is_not_there_is_said(visit: Visit, index: Path, address: str) -> None:
    page = visit(index)
    expect(page.locator(".tabulator-row").first).to_be_visible()
    page.evaluate(f"location.hash = {address!r}")
    expect(page.locator("main > .note")).to_contain_text(re.compile("There is no (feature|text)"))


def test_a_learned_dilation_finds_its_features(visit: Visit, index: Path) -> None:
    page = visit(index)
    rows = pq.read_table(index.parent / "features.parquet").to_pylist()
    for dilation in DILATIONS:
        page.select_option("label:has-text('Time scale') select", str(dilation))
        n = sum(row["main_dilation"] == pytest.approx(dilation) for row in rows if row["n_active"])
        expect(page.locator(".count b")).to_have_text(str(n))
    assert n > 0
