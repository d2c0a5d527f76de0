"""Test the exploration page in Chromium, as a reader uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eventually import eventually
from facts_folder import HOSTILE, WORDS, write_facts
from playwright.sync_api import Locator, Page, expect

from mtsae_lens.facts.folder import FactsFolder
from mtsae_lens.reporting.explorer.page import write_explorer
from mtsae_lens.reporting.explorer.scripts import write_shard_script
from mtsae_lens.reporting.explorer.shards import make_list_shard

Visit = Callable[..., Page]
N_LIVE = 200 - 11  # every seventeenth is dead


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explorer(write_facts(tmp_path_factory.mktemp("facts"), d_sae=200))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a page with 16,384 features in the list; the other files of such a page are not tested."""
    index = write_explorer(write_facts(tmp_path_factory.mktemp("wide"), d_sae=64, n_with_examples=0))
    features = list(FactsFolder.open(index.parent).features()) * 256
    (index.parent / "page" / "data" / "list-0.js").write_text(write_shard_script("list", 0, make_list_shard(features)))
    return index


@pytest.fixture(scope="module")
def pointwise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explorer(write_facts(tmp_path_factory.mktemp("pointwise"), d_sae=20, dilations=()))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_explorer(write_facts(tmp_path_factory.mktemp("hostile"), d_sae=20, words=HOSTILE))


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").replace(",", ""))


def numbers(cells: Locator) -> list[float]:
    return [number(text) for text in cells.all_inner_texts()]


def first_rows(page: Page, n: int = 3) -> list[str]:
    return page.locator(".tabulator-row .tabulator-cell:first-child").all_inner_texts()[:n]


def example(index: Path, feature: int, place: int = 0) -> dict[str, Any]:
    rows = pq.read_table(index.parent / "examples.parquet", filters=[("feature", "=", feature)]).to_pylist()
    return rows[place]


def test_list_counts_and_hides_the_dead(visit: Visit, index: Path) -> None:
    page = visit(index)
    expect(page.locator(".count")).to_have_text(f"{N_LIVE} of 200 features")
    eventually(page, lambda: first_rows(page), ["0", "1", "2"])
    page.select_option("label:has-text('Dead') select", "only")
    expect(page.locator(".count")).to_have_text("11 of 200 features")
    expect(page.locator(".tabulator-row").first).to_have_text(re.compile("(.*-){5}", re.DOTALL))  # what is missing is a dash


def test_search_sort_and_address(visit: Visit, index: Path) -> None:
    page = visit(index)
    page.fill("#search", "199")
    expect(page.locator(".count")).to_have_text("1 of 200 features")
    page.fill("#search", "SWORD")
    rows = pq.read_table(index.parent / "features.parquet").to_pylist()
    found = [row for row in rows if row["n_active"] > 0 and " sword" in [row["top_token"], *row["promoted_tokens"]]]
    assert 0 < len(found) < N_LIVE
    expect(page.locator(".count b")).to_have_text(str(len(found)))
    page.locator(".tabulator-col[tabulator-field=density]").click()
    address = "#/list?q=SWORD&sort=density%3Adesc"
    expect(page).to_have_url(index.as_uri() + address)
    order = [str(row["feature"]) for row in sorted(found, key=lambda row: -row["density"])]
    eventually(page, lambda: first_rows(page), order[:3])
    again = visit(index, address)
    expect(again.locator(".count b")).to_have_text(str(len(found)))
    eventually(again, lambda: first_rows(again), order[:3])


def test_the_token_itself_is_found_before_tokens_that_contain_it_and_is_marked(visit: Visit, tmp_path: Path) -> None:
    words = ["aking", "oking", " King", " the", "king", "moon", " sun", "Making", "king dom", "b", "c", "d", "e", "f", "g"]
    facts = write_facts(tmp_path, d_sae=16, words=words)
    rows = pq.read_table(facts / "features.parquet").to_pylist()
    page = visit(write_explorer(facts), "#/list?q=KING")

    def place(row: dict[str, Any]) -> int:
        tokens = [word.strip().lower() for word in [row["top_token"], *row["promoted_tokens"]]]
        return tokens.index("king") if "king" in tokens else 98 if any(word.startswith("king") for word in tokens) else 99

    found = [row for row in rows if any("king" in word.lower() for word in [row["top_token"], *row["promoted_tokens"]])]
    order = [str(row["feature"]) for row in sorted(found, key=lambda row: (place(row), row["feature"]))]
    assert order != sorted(order, key=int)
    eventually(page, lambda: first_rows(page, 99), order)
    for at, row in enumerate(sorted(found, key=lambda row: (place(row), row["feature"]))):
        shown = page.locator(".tabulator-row").nth(at).locator(".tabulator-cell:not([tabulator-field=match]) .found:visible")
        expect(shown.first).to_have_text(re.compile("king", re.IGNORECASE))
        if place(row) < 90:
            eventually(page, lambda cells=shown: "king" in [t.strip("\u00b7").lower() for t in cells.all_inner_texts()], True)  # type: ignore[misc]
    expect(page).to_have_url(re.compile(r"q=KING$"))
    page.locator(".tabulator-col[tabulator-field=feature]").click()
    expect(page).to_have_url(re.compile(r"sort=feature%3Aasc"))
    eventually(page, lambda: first_rows(page, 99), sorted(order, key=int))
    page.fill("#search", "moon")
    expect(page.locator(".found").first).to_have_text("moon")
    page.fill("#search", "")
    expect(page.locator(".found")).to_have_count(0)


def test_a_phone_sorts_by_columns_that_it_hides(visit: Visit, index: Path) -> None:
    page = visit(index, width=360, height=740)
    rows = [row for row in pq.read_table(index.parent / "features.parquet").to_pylist() if row["n_active"]]
    page.get_by_label("Sort by").select_option(label="Context, highest first")
    order = [str(row["feature"]) for row in sorted(rows, key=lambda row: -round(row["context_share"], 4))]
    eventually(page, lambda: first_rows(page, 3), order[:3])
    expect(page).to_have_url(re.compile("sort=context_share%3Adesc"))
    page.get_by_label("Help: keys and meanings").click()
    expect(page.locator("dialog")).to_contain_text("Share of the lift that comes from earlier tokens")


def test_a_time_scale_that_is_the_same_for_all_is_said_once(visit: Visit, tmp_path: Path) -> None:
    facts = write_facts(tmp_path, d_sae=20)
    features = pq.read_table(facts / "features.parquet")
    place = features.schema.get_field_index("main_dilation")
    alone = pa.array([None if n == 0 else 0.0 for n in features["n_active"].to_pylist()], pa.float32())
    pq.write_table(features.set_column(place, features.schema.field(place), alone), facts / "features.parquet")
    page = visit(write_explorer(facts))
    expect(page.locator(".list .note")).to_contain_text(
        "The token alone has the largest share of the lift in every feature; see Context"
    )
    expect(page.locator(".tabulator-col[tabulator-field=main_dilation]")).to_have_count(0)
    expect(page.locator(".tabulator-col[tabulator-field=context_share]")).to_be_visible()
    expect(page.locator(".filters label:has-text('Time scale')")).to_have_count(0)


def test_one_corpus_is_compared_with_none(visit: Visit, tmp_path: Path) -> None:
    facts = write_facts(tmp_path, d_sae=4)
    about = json.loads((facts / "explore.json").read_text())
    (facts / "explore.json").write_text(json.dumps(about | {"corpora": about["corpora"][:1]}))
    features = pq.read_table(facts / "features.parquet")
    place = features.schema.get_field_index("corpus_density")
    one = pa.array([[0.02]] * len(features), pa.list_(pa.float32()))
    pq.write_table(features.set_column(place, features.schema.field(place), one), facts / "features.parquet")
    page = visit(write_explorer(facts), "#/feature/1")
    expect(page.locator("[data-fact=density]")).to_be_visible()
    expect(page.locator("[data-fact=selectivity], .card:has-text('Density by corpus')")).to_have_count(0)


def test_a_bar_of_a_small_effect_is_short(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/7")
    row = pq.read_table(index.parent / "features.parquet").to_pylist()[7]
    card = page.locator(".card:has-text('Effect of setting it to zero')")
    expect(card).to_contain_text("Bars reach from \u22121 to +1 nats")
    widths = "bars => bars.map((bar) => parseFloat(bar.style.width))"
    wanted = pytest.approx([50 * abs(row["ablation_next_nll"]), 50 * abs(row["ablation_rest_nll"])], abs=0.05)
    eventually(page, lambda: card.locator(".fill").evaluate_all(widths), wanted)
    shares = page.locator(".panel:has-text('Time scales') .fill")
    eventually(
        page, lambda: shares.evaluate_all(widths), pytest.approx([100 * share for share in row["scale_shares"]], abs=0.05)
    )


def test_examples_stand_high_and_only_the_strongest_is_called_so(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/7")
    expect(page.locator("#example-1 .tok").first).to_be_visible()
    eventually(page, lambda: page.locator("#example-1").evaluate("example => example.getBoundingClientRect().top < 320"), True)
    expect(page.locator("#example-2 .where")).to_have_text(re.compile("above .* % of its firings"))
    expect(page.locator("#example-1 .source")).to_have_text(re.compile(r", token \d+$"))


def test_filters(visit: Visit, index: Path) -> None:
    page = visit(index, "#/list?dilation=8")
    rows = pq.read_table(index.parent / "features.parquet").to_pylist()
    expect(page.locator(".count b")).to_have_text(str(sum(row["main_dilation"] == 8 for row in rows)))
    page.evaluate("location.hash = '#/list?dmin=1.15&smin=0'")
    wanted = sum(row["density"] >= 0.0115 and (row["selectivity"] or -1) >= 0 for row in rows)
    expect(page.locator(".count b")).to_have_text(str(wanted))


@pytest.mark.parametrize("width", [1280, 360])
def test_sixteen_thousand_features_draw_few_rows(visit: Visit, wide: Path, width: int) -> None:
    page = visit(wide, "#/list?sort=max_activation:desc", width=width)
    expect(page.locator(".tabulator-row").first).to_be_visible()
    assert page.locator(".tabulator-row").count() < 120
    page.fill("#search", "king")
    page.locator(".tabulator-col[tabulator-field=density]").click()
    expect(page.locator(".tabulator-col[tabulator-field=density]")).to_have_attribute("aria-sort", "descending")
    expect(page.locator(".count b")).to_have_text(re.compile(r"^\d+,\d{3}$"))  # thousands, and fewer than all
    expect(page.locator(".count b")).not_to_have_text("16,384")
    assert page.locator(".tabulator-row").count() < 120


def test_keyboard_from_list_to_feature_and_back(visit: Visit, index: Path) -> None:
    page = visit(index)
    expect(page.locator(".tabulator-row").first).to_be_visible()
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("queen")
    page.wait_for_function("location.hash.includes('q=queen')")
    expect(page.locator(".count b")).not_to_have_text(str(N_LIVE))  # the list has followed, which ends any selection
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    expect(page.locator(".tabulator-selected")).to_have_count(1)
    chosen = page.locator(".tabulator-selected .tabulator-cell").first.inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_contain_text(f"Feature {chosen}")
    page.keyboard.press("j")
    expect(page.locator("h1")).to_contain_text(f"Feature {int(chosen) + 1}")
    page.keyboard.press("Escape")
    expect(page.locator("#search")).to_have_value("queen")
    page.locator(".frame .name").focus()
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).not_to_be_visible()


def test_what_is_typed_stays_where_the_address_is_behind(visit: Visit, index: Path) -> None:
    """The list is drawn again, as when rows come in, between a letter and the address's event."""
    page = visit(index)
    expect(page.locator(".tabulator-row").first).to_be_visible()
    kept = page.evaluate(
        """async () => {
            const search = document.getElementById("search");
            search.focus();
            search.value = "que";
            search.dispatchEvent(new Event("input", { bubbles: true }));
            MT.table.grid.setFilter(() => false);
            for (let turn = 0; turn < 5; turn += 1) await null;
            return [search.value, document.querySelector(".count b").textContent];
        }"""
    )
    assert kept == ["que", "0"]


def test_a_late_drawing_keeps_the_selection(visit: Visit, index: Path) -> None:
    """A key comes between the event of an older address and the drawing that it asked for."""
    page = visit(index)
    expect(page.locator(".tabulator-row").first).to_be_visible()
    page.evaluate(
        """() => new Promise((done) => {
            const key = () => { location.hash = "#/list?q=queen"; MT.table.move(1); setTimeout(done, 300); };
            window.addEventListener("hashchange", key, { once: true });
            location.hash = "#/list?q=king";
        })"""
    )
    expect(page.locator(".tabulator-selected")).to_have_count(1)


def test_a_row_that_opens_takes_the_keys_from_the_search(visit: Visit, index: Path) -> None:
    """At once: a hidden field keeps the focus until the next frame, and would swallow a key."""
    page = visit(index)
    expect(page.locator(".tabulator-row").first).to_be_visible()
    focused = page.evaluate(
        """() => {
            const search = document.getElementById("search");
            search.focus();
            search.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true }));
            return [location.hash, document.activeElement.id];
        }"""
    )
    assert focused == ["#/feature/0", ""]


def test_columns_that_nothing_fills_are_left_out(visit: Visit, tmp_path: Path) -> None:
    facts = write_facts(tmp_path, d_sae=20)
    features = pq.read_table(facts / "features.parquet")
    place = features.schema.get_field_index("selectivity")
    nothing = pa.nulls(len(features), features.schema.field(place).type)
    pq.write_table(features.set_column(place, features.schema.field(place), nothing), facts / "features.parquet")
    page = visit(write_explorer(facts))
    expect(page.locator(".tabulator-col[tabulator-field=ablation_next_nll]")).to_have_count(1)
    expect(page.locator(".tabulator-col[tabulator-field=selectivity]")).to_have_count(0)


def test_row_opens_and_previous_and_next_lead_on(visit: Visit, index: Path) -> None:
    page = visit(index)
    page.locator(".tabulator-row").nth(4).click()
    expect(page.locator("h1")).to_contain_text("Feature 4")
    page.get_by_label("Next feature").click()
    expect(page.locator("h1")).to_contain_text("Feature 5")
    page.locator(".related a").first.click()
    expect(page.locator("h1")).not_to_contain_text(re.compile(r"Feature 5\b"))
    page.evaluate("location.hash = '#/feature/16'")
    expect(page.locator(".examples .note")).to_have_text("It never fired on these texts.")
    expect(page.locator("[data-fact=max_activation]")).to_have_text("-")


def test_hover_shows_each_scale_as_the_table_has_it(visit: Visit, index: Path) -> None:
    row = example(index, 70)
    page = visit(index, "#/feature/70")
    n_scales = 5
    silent = next(at for at, value in enumerate(row["activations"]) if value == 0)
    firing = [at for at, value in enumerate(row["activations"]) if value > 0]
    for at in firing:
        page.locator(f"#example-1 [data-place='{at}']").hover()
        wanted = row["token_scale_contributions"][at * n_scales : (at + 1) * n_scales]
        eventually(page, lambda: numbers(page.locator("#tip .bars .num")), pytest.approx(wanted, abs=1e-3))
        activation = pytest.approx([row["activations"][at]], abs=1e-2)
        eventually(page, lambda: numbers(page.locator("#tip [data-role=activation]")), activation)
    page.locator(f"#example-1 [data-place='{silent}']").hover()
    expect(page.locator("#tip")).to_contain_text("does not fire here")


def test_the_parts_add_up_and_underlines_stand_where_the_encoder_read(visit: Visit, index: Path) -> None:
    row = example(index, 70)
    page = visit(index, "#/feature/70")
    tables = page.locator("#example-1 .account table")
    expect(tables).to_have_count(2)
    for at, parts in enumerate((row["scale_contributions"], row["offset_contributions"])):
        cells = numbers(tables.nth(at).locator(".num"))
        assert cells[: len(parts)] == pytest.approx(parts, abs=1e-3)
        assert cells[-3:] == pytest.approx([row["bias"], row["hidden_pre"], row["hidden_pre"]], abs=1e-3)
        assert sum(cells[:-2]) == pytest.approx(cells[-1], abs=5e-3)
    underlined = page.locator("#example-1 .tok.up, #example-1 .tok.down")
    read = {20 + offset: part for offset, part in zip((0, -1, -2, -4, -8, -16), row["offset_contributions"], strict=True)}
    places = "tokens => tokens.map((token) => [Number(token.dataset.place), token.classList.contains('down')])"
    wanted = {place: part < 0 for place, part in read.items()}
    eventually(page, lambda: dict(underlined.evaluate_all(places)), wanted)
    page.get_by_role("radio", name="through the model").click()
    expect(page.locator("#example-1 .tok.up, #example-1 .tok.down")).to_have_count(len(row["tokens"]))
    expect(page).to_have_url(re.compile("why=model"))


def test_tokens_by_keyboard(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/70?example=2")
    expect(page.locator("#example-2")).to_have_class(re.compile("open"))
    peak = page.locator("#example-2 .tok.peak")
    peak.focus()
    expect(page.locator("#tip")).to_be_visible()
    expect(peak).to_have_attribute("aria-label", re.compile("activation"))
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#example-2 [data-place='19']")).to_be_focused()
    expect(page.locator("h1")).to_contain_text("Feature 70")
    expect(page.locator("#example-2 .tok[tabindex='0']")).to_have_count(1)  # one tab stop for an example


def test_deep_link_opens_and_shows_the_example(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/130?example=s2")
    expect(page.locator("#example-s2 .account")).to_be_visible()
    expect(page.locator("#example-s2")).to_be_in_viewport()
    expect(page.locator("#example-1 .account")).to_have_count(0)


def test_pointwise_has_no_empty_plots(visit: Visit, pointwise: Path) -> None:
    page = visit(pointwise)
    expect(page.locator(".list .note")).to_contain_text("reads one position")
    assert page.locator(".tabulator-col[tabulator-field=main_dilation]").count() == 0
    page.evaluate("location.hash = '#/feature/3'")
    expect(page.locator(".time .note")).to_contain_text("reads one position")
    expect(page.locator(".time .panel")).to_have_count(1)
    expect(page.get_by_role("radio", name="encoder taps")).to_be_disabled()


def test_a_decoder_with_memory_shows_how_long_a_firing_lasts(visit: Visit, index: Path, tmp_path: Path) -> None:
    page = visit(write_explorer(write_facts(tmp_path, d_sae=20, dilations=(0,), impulse_lags=(1, 2, 4))))
    expect(page.locator(".tabulator-col[tabulator-field=carried_over]")).to_have_count(1)
    page.evaluate("location.hash = '#/feature/3'")
    expect(page.locator("[data-fact=carried_over]")).to_have_text("60.0 %")
    expect(
        page.get_by_role("img", name=re.compile("Impulse response. after 1: 60 %, after 2: 36 %, after 4: 13 %"))
    ).to_be_visible()
    expect(page.locator(".time")).to_contain_text("25 % of the variance of an output is carried over")
    without = visit(index, "#/feature/3")
    expect(without.locator("[data-fact=next_persistence]")).to_have_text("50.0 %")
    expect(without.locator("[data-fact=next_persistence_control]")).to_have_text("4.0 %")
    expect(without.locator("[data-fact=carried_over]")).to_have_count(0)
    expect(without.get_by_role("img", name=re.compile("Impulse"))).to_have_count(0)


def test_a_persistence_that_was_never_seen_is_a_dash(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/3")
    expect(page.get_by_role("img", name=re.compile("Persistence"))).to_have_attribute("aria-label", re.compile("after 8: -$"))


def test_dark_follows_the_system_and_the_button(visit: Visit, index: Path) -> None:
    page = visit(index, "#/feature/3", color_scheme="dark")
    expect(page.locator(".chart canvas").first).to_be_visible()
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(ground)
    page.get_by_label("Light or dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")
    assert page.evaluate(ground) != dark
    page.reload()
    expect(page.locator("html")).to_have_attribute("data-theme", "light")


DRAWN = {  # what stands on the page once each address is drawn
    "#/list": ".list .tabulator-row",
    "#/feature/7": ".feature #example-1 .tok",
    "#/feature/3?why=model&lines=1": ".feature #example-1 .tok.up",
    "#/text/1?token=3&feature=3": ".text .tok.on",
    "#/text/0?color=loss": ".text .tok.loss",
}


@pytest.mark.parametrize("case", ["index", "hostile"])
def test_phone_width_does_not_scroll_sideways(visit: Visit, case: str, request: pytest.FixtureRequest) -> None:
    page = visit(request.getfixturevalue(case), width=360, height=740)
    for address, drawn in DRAWN.items():
        page.evaluate(f"location.hash = {address!r}")
        expect(page.locator(f"main{drawn}").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, address


def test_hostile_tokens_are_text(visit: Visit, hostile: Path) -> None:
    page = visit(hostile)
    for address, drawn in DRAWN.items():
        page.evaluate(f"location.hash = {address!r}")
        expect(page.locator(f"main{drawn}").first).to_be_visible()
        assert page.evaluate("window.hacked") is None
        assert page.locator("#app script, #app img, #tip script, #tip img").count() == 0
    page.evaluate("location.hash = '#/feature/0'")
    expect(page.locator("h1")).to_contain_text(HOSTILE[0])
    for at in range(0, 29, 4):
        page.locator("#example-1 .tok").nth(at).hover()
    assert page.evaluate("window.hacked") is None
    assert "\u202e" not in page.locator("main").inner_text()


def test_text_view(visit: Visit, index: Path) -> None:
    text = pq.read_table(index.parent / "texts.parquet").to_pylist()[9]
    at = next(at for at, features in enumerate(text["features"]) if len(features) > 3)
    page = visit(index, "#/text/9")
    expect(page.locator(".tok")).to_have_count(len(text["tokens"]))
    page.locator(f".tok[data-place='{at}']").click()
    links = page.locator(".strongest > li > a")
    expect(links).to_have_count(len(text["features"][at]))
    expect(links).to_have_text([str(feature) for feature in text["features"][at]])
    marked = page.locator(".strongest button[aria-pressed=true]")
    expect(marked).to_have_count(1)  # the strongest of the text, before anything is asked
    marked.click()
    expect(page.locator(".tok.on")).to_have_count(0)
    page.locator(".strongest button").nth(1).click()
    chosen = text["features"][at][1]
    places = "tokens => tokens.map((token) => Number(token.dataset.place))"
    wanted = [place for place, features in enumerate(text["features"]) if chosen in features]
    eventually(page, lambda: page.locator(".tok.on").evaluate_all(places), wanted)
    expect(page).to_have_url(re.compile(f"feature={chosen}"))
    page.get_by_role("radio", name="loss per token").click()
    expect(page.locator(".tokens .tok.loss")).to_have_count(len(text["tokens"]) - 1)
    links.nth(1).click()
    expect(page.locator("h1")).to_contain_text(f"Feature {chosen}")


def test_a_text_opens_with_its_strongest_feature_and_counts_what_fires(visit: Visit, tmp_path: Path) -> None:
    facts = write_facts(tmp_path, d_sae=30)
    texts = pq.read_table(facts / "texts.parquet")
    rows = texts.to_pylist()
    rows[0]["tokens"][0] = "<|endoftext|>"
    rows[0]["features"][:4] = [[], [3], [*range(7)], [*range(8)]]
    rows[0]["activations"][:4] = [[], [9.0], [2.0] * 7, [2.0] * 8]
    pq.write_table(pa.Table.from_pylist(rows, schema=texts.schema), facts / "texts.parquet")
    page = visit(write_explorer(facts), "#/text/0")
    expect(page.get_by_label("Feature", exact=True)).to_have_value("3")
    expect(page.locator(".text section .meaning")).to_contain_text("the strongest in this text")
    wanted = [at for at, features in enumerate(rows[0]["features"]) if 3 in features]
    places = "tokens => tokens.map((token) => Number(token.dataset.place))"
    eventually(page, lambda: page.locator(".tok.on").evaluate_all(places), wanted)
    expect(page.locator(".picker option").first).not_to_contain_text("endoftext")
    for at, said in enumerate(("no feature fires", "1 feature", "7 features", "8 or more features")):
        page.locator(f".tokens [data-place='{at}']").hover()
        expect(page.locator("#tip .part")).to_have_text(said)


def test_a_missing_shard_says_what_to_do(browser: Any, tmp_path: Path) -> None:
    index = write_explorer(write_facts(tmp_path, d_sae=2, words=WORDS))
    (tmp_path / "page" / "data" / "examples-0.js").unlink()
    page = browser.new_page()
    page.goto(index.as_uri() + "#/feature/1")
    expect(page.get_by_role("alert")).to_contain_text("Keep index.html and the folder page/ together")
    page.close()
