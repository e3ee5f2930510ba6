"""The pairs of the page: what is stored is what the ledger and the rows say, and in a real browser
it sorts, filters, is searched, opens, and shows every text as it is."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import browsing
import numpy as np
import pytest
from plotly.offline import get_plotlyjs

from zephyr.analysis.pairs import PairText
from zephyr.analysis.runs import Run
from zephyr.analysis.visits import TOKENS, VALUES, Visits
from zephyr.report import pairs_data, pairs_table
from zephyr.report.assets import asset, compressed, compressed_json
from zephyr.report.groups import groupings, groups_table
from zephyr.report.pair_figures import QUANTILES, PairsOf, quantiles
from zephyr.report.pairs_data import VIEWS, derived, reading_order, view_order
from zephyr.report.pairs_table import COLUMNS, pairs_section

HOSTILE = (
    '</script><script>document.title = "owned"</script><img src=x onerror="document.title=1"> '
    "<b id='injected'>&amp; \"quoted\" `${1}` \u202eright to left\u202c שלום \U0001f600 a\u0301 "
    "line\u2028end \ud800 lone\n  two spaces"
)
PAIRS = 300
MISSING = 7  # pairs whose rows are gone


def make_run(name: str, pairs: int, seed: int = 0) -> PairsOf:
    """A run of 3 epochs with random rewards; ids and texts of the first pairs are hostile."""
    rng = np.random.default_rng(seed)
    visit_V = np.tile(np.arange(3), pairs)
    pair_V = np.repeat(np.arange(pairs), 3)
    ids = [f"{name}-{seed}-{n:05d}" for n in range(pairs)]
    ids[0], ids[1], ids[2] = f"hostile {HOSTILE}", "-dash it's", "nul\0id"
    margin_V = rng.normal(0.3, 0.7, 3 * pairs) * (visit_V + 1)
    chosen_V = rng.normal(-0.2, 0.4, 3 * pairs)
    values = {value: rng.normal(-50, 9, 3 * pairs) for value in VALUES}
    values |= {"rewards/chosen": chosen_V, "rewards/rejected": chosen_V - margin_V}
    tokens = {key: rng.integers(1, 900, pairs) for key in TOKENS}
    step_V = visit_V * 100 + pair_V % 100
    visits = Visits(ids, pair_V, visit_V, step_V, step_V / 100, values, tokens)
    texts = {
        id: PairText(
            prompt=HOSTILE if n == 0 else f"Prompt {n} asks for {rng.integers(9)} things.",
            chosen=f"{HOSTILE}\0chosen" if n == 0 else f"The answer of {n} is a good long one.",
            rejected="" if n == 1 else f"The answer of {n} is bad.",
            source="first" if n % 3 else "second",
            chosen_model="expert",
            rejected_model="</td>careless",
            score_chosen=4.5 if n % 2 else None,
            score_rejected=float(n % 4),
        )
        for n, id in enumerate(ids)
        if n < pairs - MISSING
    }
    config = {"beta": 0.1, "data.train": ["a's </script>.jsonl"]}
    return PairsOf(Run(Path(f"runs/{name}'s"), name, config, {}, {}, {}, {}, {}), visits, texts)


def payload(section: str, name: str) -> str:
    """What `zephyr.unpack(name)` gives."""
    (packed,) = re.findall(rf'data-payload="{name}">([^<]*)<', section)
    return gzip.decompress(base64.b64decode(packed)).decode("utf-8")


def numbers(stored: dict[str, str]) -> np.ndarray:
    """A stored column, read as pairs.js does."""
    ((kind, text),) = stored.items()
    planes = np.frombuffer(base64.b64decode(text), np.uint8).reshape(4, -1)
    words = np.ascontiguousarray(planes.T).view("<u4")[:, 0]
    return words.view("<f4" if kind == "float" else "<i4")


@pytest.fixture(scope="module")
def run() -> PairsOf:
    return make_run("dpo", PAIRS)


@pytest.fixture(scope="module")
def section(run: PairsOf) -> str:
    return pairs_section([run, make_run("other", 40, seed=1)])


def test_numbers_of_all_pairs_are_stored_to_what_is_shown(run: PairsOf, section: str) -> None:
    """Fails for a column of other pairs, in another order, or rounded to fewer digits than the
    table shows."""
    stored = json.loads(payload(section, "pairs-0"))
    margin_V = numbers(stored["numbers"]["margin"])
    assert stored["ids"] == run.visits.ids and len(margin_V) == 3 * PAIRS
    np.testing.assert_allclose(margin_V, run.visits.margin_V, rtol=2**-11, atol=2**-13)
    for name in TOKENS:
        np.testing.assert_array_equal(numbers(stored["numbers"][name]), run.visits.tokens[name])
    source = stored["names"]["source"]
    names = [source["names"][code] for code in numbers(source["codes"])]
    assert names == [
        run.texts[id].source if id in run.texts else "not known" for id in run.visits.ids
    ]


@pytest.mark.parametrize(
    "value", [0.0, 1e-30, 0.1234567, -7.77777, 65504.0, np.inf, -np.inf, np.nan, 1.9999999]
)
def test_rounding_keeps_what_is_not_finite(value: float) -> None:
    """Fails where a carry runs into the exponent's neighbours, or infinity becomes not a number."""
    stored = numbers(pairs_data.packed_floats(np.array([value, -value])))
    np.testing.assert_allclose(stored, [value, -value], rtol=2**-11)


def test_views_keep_their_rules(run: PairsOf) -> None:
    """The rules as words, pair by pair, against the views. Fails for a limit on another column, a
    wrong side or a wrong order."""
    suspicion_P = np.random.default_rng(2).random(PAIRS)
    suspicion_P[5] = 0.5  # not over it
    columns = derived(run.visits, suspicion_P)
    margins = run.visits.margin_V.reshape(-1, 3)
    last = margins[:, 2]
    rules = {
        "wrong": (suspicion_P > 0.5, -suspicion_P),
        "never": (margins.max(1) <= 0, last),
        "moved": (last == last, -np.abs(np.diff(margins, axis=1, prepend=0)).sum(1)),
        "forgotten": (
            (margins.max(1) > 0) & (margins.max(1) - last >= np.median(np.abs(last)) / 4),
            last - margins.max(1),
        ),
        "all": (last == last, last),
    }
    assert [view.key for view in VIEWS] == list(rules)
    for view in VIEWS:
        chosen_P, key_P = rules[view.key]
        wanted = [pair for pair in np.argsort(key_P, kind="stable") if chosen_P[pair]]
        assert wanted and view_order(view, columns).tolist() == wanted, view.key
        assert view.key in ("moved", "all") or len(wanted) < PAIRS


def test_groups_tell_what_was_learned(run: PairsOf) -> None:
    """Sources and writers, against sums over the pairs. Fails where a margin is another group's, or
    a field that is the same for all pairs is told."""
    found = {title: list(of_field) for title, of_field in groupings(run)}
    last_P, first_P = run.visits.margin_V[2::3], run.visits.margin_V[::3]
    of_second = [n for n in range(PAIRS - MISSING) if n % 3 == 0]
    second = {group.name: group for group in found["Source"]}["second"]
    assert second.pairs == len(of_second)
    assert second.margin == pytest.approx(last_P[of_second].mean())
    assert second.learned == pytest.approx((last_P[of_second] > 0).mean())
    assert second.grew == pytest.approx((last_P - first_P)[of_second].mean())
    writers = [group.name for group in found["Chosen over rejected writer"]]
    assert writers == ["expert over </td>careless", "-"]
    assert "&lt;/td&gt;careless" in groups_table([run])
    text = next(iter(run.texts.values()))
    assert groups_table([run._replace(texts=dict.fromkeys(run.visits.ids, text))]) == ""


def test_violins_reach_both_extremes() -> None:
    """Of more values than are drawn. Fails where the hover calls a quantile the maximum."""
    values = np.random.default_rng(3).normal(size=5000)
    drawn = quantiles(values)
    assert len(drawn) == QUANTILES
    assert (drawn[0], drawn[-1]) == pytest.approx((values.min(), values.max()), rel=1e-4)


def test_texts_that_views_show_first_are_stored_up_to_the_budget(
    run: PairsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where texts go beyond the budget, or those of other pairs are stored."""
    monkeypatch.setattr(pairs_data, "BUDGET_BYTES", 20_000)
    monkeypatch.setattr(pairs_data, "LEAST_TEXT_BYTES", 5_000)
    rng = np.random.default_rng(0)
    noise = {
        id: text._replace(chosen=rng.bytes(150).hex(), rejected=rng.bytes(150).hex())
        for id, text in run.texts.items()
    }
    cut = pairs_section([run._replace(texts=noise)])
    stored = [json.loads(line) for line in payload(cut, "pairs-texts-0").splitlines()]
    suspicion_P = pairs_data.flip_suspicion(run.visits)
    order = [n for n in reading_order(run.visits, suspicion_P) if run.visits.ids[n] in noise]
    assert [line[0] for line in stored] == order[: len(stored)] and 5 < len(stored) < PAIRS - 50
    assert stored[0][1:5] == [run.visits.ids[order[0]], *noise[run.visits.ids[order[0]]][:3]]
    sizes = [len(text) for text in re.findall(r">([A-Za-z0-9+/=]{500,})<", cut)]
    assert len(sizes) == 2 and 0.8 * (20_000 - sizes[0]) < sizes[1] < 20_100 - sizes[0]


def test_a_page_keeps_as_many_pairs_and_visits_as_it_has_room_for(
    run: PairsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kept pairs keep their first, best and last visit. Fails where a column is cut at other
    pairs than the ids."""
    monkeypatch.setattr(pairs_data, "MOST_PAIRS", 50)
    monkeypatch.setattr(pairs_data, "MOST_VISITS", 100)
    stored = json.loads(payload(pairs_section([run]), "pairs-0"))
    counts, margin_V = numbers(stored["numbers"]["visits"]), numbers(stored["numbers"]["margin"])
    assert len(stored["ids"]) == 50 and counts.sum() == len(margin_V) < 150 and stored["notes"]
    suspicion = dict(zip(run.visits.ids, pairs_data.flip_suspicion(run.visits)))
    kept = numbers(stored["numbers"]["suspicion"])
    np.testing.assert_allclose(kept, [suspicion[id] for id in stored["ids"]], rtol=2**-7)
    of_pair = dict(zip(run.visits.ids, run.visits.margin_V.reshape(-1, 3)))
    for id, own in zip(stored["ids"], np.split(margin_V, np.cumsum(counts)[:-1])):
        whole = of_pair[id]
        wanted = whole if whole[1] == whole.max() else whole[[0, 2]]
        np.testing.assert_allclose(own, wanted, rtol=2**-11, atol=2**-13)


def test_runs_share_the_room_of_a_page() -> None:
    """Fails where a small run is cut because of a large one, or the room is given out twice."""
    assert pairs_data.shares([60_000, 1500], 60_000) == [58_500, 1500]
    assert pairs_data.shares([5, 900, 900, 1], 100) == [5, 47, 47, 1]


def test_long_ids_are_cut_in_their_middle() -> None:
    """Fails where 60,000 random ids take more than their share of the page."""
    rng = np.random.default_rng(0)
    ids = [rng.bytes(32).hex() for _ in range(20_000)]
    short = pairs_data.short_ids(ids)
    assert all(id[:4] == of[:4] and id[-4:] == of[-4:] for id, of in zip(ids, short))
    assert pairs_data.short_ids(ids[:2000]) == ids[:2000]


def test_a_run_without_visits_has_no_part() -> None:
    """Fails where an SFT run gets an empty table."""
    empty = np.zeros(0, np.int64)
    none = Visits([], empty, empty, empty, np.zeros(0), {}, {})
    assert pairs_section([make_run("dpo", 9)._replace(visits=none)]) == pairs_section([]) == ""


def write_page(path: Path, section: str) -> str:
    """A page of the table alone. Returns: its address."""
    styles = asset("page.css") + asset("pairs.css")
    figures = compressed_json("palette", []) + compressed_json("figures", {})
    text = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>pairs</title>'
        f'<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f"<style>{styles}</style><main>{section}</main>{figures}"
        f"{compressed('plotly', get_plotlyjs())}"
        f"<script>{asset('page.js')}</script><script>{asset('pairs.js')}</script></html>"
    )
    path.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path.as_uri()


class Browser:
    """Headless Chromium on a page of pairs."""

    def __init__(self, browser: browsing.Browser) -> None:
        self.driver, self.run = browser.driver, browser.run
        self.wait, self.find, self.emulate = browser.wait, browser.find, browser.emulate

    def open(self, address: str) -> None:
        self.driver.get(address)
        self.wait("!document.getElementById('pairs-table').hidden")

    def shown(self) -> list[int]:
        """The pairs on the page, in their order."""
        return self.run(
            "return [...document.querySelectorAll('.pairs-row')].map(r => Number(r.dataset.pair))"
        )

    def count(self) -> int:
        return int(re.match(r"[\d,]+", self.find("#pairs-count").text)[0].replace(",", ""))

    def view(self, key: str) -> None:
        self.find(f"#view-{key}").click()

    def put(self, name: str, value: str) -> None:
        """Give a filter a value, as a person's input does, and wait for the table."""
        self.run(
            "const e = document.getElementById('pairs-' + arguments[0]); e.value = arguments[1];"
            "e.dispatchEvent(new Event('input', {bubbles: true}));"
            "document.getElementById('pairs-count').textContent = '';",
            name,
            value,
        )
        self.wait("document.getElementById('pairs-count').textContent")

    def clear(self) -> None:
        self.run("document.getElementById('pairs-count').textContent = ''")
        self.find("#pairs button[type=reset]").click()
        self.wait("document.getElementById('pairs-count').textContent")


@pytest.fixture(scope="module")
def pages(chromium: browsing.Browser) -> Browser:
    return Browser(chromium)


@pytest.fixture(scope="module")
def table(pages: Browser, section: str, tmp_path_factory: pytest.TempPathFactory) -> Browser:
    pages.open(write_page(tmp_path_factory.mktemp("page") / "pairs.html", section))
    return pages


def test_views_show_what_they_say(table: Browser, run: PairsOf) -> None:
    """The browser's order of each view is that of `view_order`. Fails where pairs.js computes a
    column or reads a limit in another way."""
    columns = derived(run.visits, pairs_data.flip_suspicion(run.visits))
    for view in VIEWS:
        table.view(view.key)
        wanted = view_order(view, columns).tolist()
        values = columns[view.sort]
        np.testing.assert_allclose(values[table.shown()], values[wanted[:20]], rtol=2**-7)
        assert table.count() == len(wanted), view.key
        assert table.find("#pairs-rule").text == view.rule
        assert table.find("[data-view][aria-pressed=true]").get_attribute("id") == (
            f"view-{view.key}"
        )


def test_heads_sort(table: Browser, run: PairsOf) -> None:
    """Each numeric column, both ways, with values that are not there last. Fails where numbers are
    compared as text, or missing scores come first."""
    table.view("all")
    chosen = [run.texts[id].score_chosen if id in run.texts else None for id in run.visits.ids]
    gap = [
        np.nan if score is None else score - run.texts[id].score_rejected
        for id, score in zip(run.visits.ids, chosen)
    ]
    tokens = run.visits.tokens
    values = {
        "longer": tokens["chosen_tokens"] - tokens["rejected_tokens"],
        "better": np.array(gap),
        "first": run.visits.margin_V[::3],
    }
    for column, value_P in values.items():
        for direction, key_P in (("descending", -value_P), ("ascending", value_P)):
            table.find(f"th[data-column={column}] button").click()
            wanted = np.argsort(key_P, kind="stable").tolist()
            assert table.shown() == wanted[:20]
            head = table.find(f"#pairs th[data-column={column}]")
            assert head.get_attribute("aria-sort") == direction
    table.run("document.querySelector('#pairs-size').value = '100'")
    table.find("th[data-column=better] button").click()
    for _ in range(2):
        table.find("#pairs-next").click()
    assert all(np.isnan(gap[pair]) for pair in table.shown()[-50:])
    table.run("document.querySelector('#pairs-size').value = '20'")


def test_filters_and_search_narrow(table: Browser, run: PairsOf) -> None:
    """Fails where a filter is ignored, is combined wrongly, or texts are not searched."""
    last_P = run.visits.margin_V[2::3]
    table.view("all")
    table.put("sign", "below")
    assert table.count() == (last_P <= 0).sum()
    table.put("low", "-1")
    assert table.count() == ((last_P <= 0) & (last_P >= -1)).sum()
    table.put("high", "-0.5")
    sources = [run.texts[id].source if id in run.texts else "" for id in run.visits.ids]
    wanted = (last_P <= -0.5) & (last_P >= -1) & (np.array(sources) == "second")
    option = table.run(
        "return [...document.querySelectorAll('#pairs-source option')]"
        ".find(o => o.textContent === 'second').value"
    )
    table.put("source", option)
    assert table.count() == wanted.sum() > 0
    table.clear()
    assert table.count() == PAIRS
    for words, found in (("prompt 123 ASKS", [123]), ("-00042", [42]), ("nothing like it", [])):
        table.put("query", words)
        assert table.shown() == found
    table.put("query", "td>Careless")  # who wrote the rejected response
    assert table.count() == PAIRS - MISSING
    table.clear()


def test_a_row_opens_by_keyboard_to_its_texts_and_visits(table: Browser, run: PairsOf) -> None:
    """Hostile ids and texts stay text. Fails where one becomes HTML, loses a letter, or where Enter
    and Space do nothing."""
    table.view("all")
    table.put("query", "hostile")
    button = table.find(".pairs-open")
    assert button.get_attribute("aria-expanded") == "false"
    button.send_keys("\ue007")
    assert button.get_attribute("aria-expanded") == "true"
    texts = table.run(
        "return [...document.querySelectorAll('.pairs-detail .pairs-text')].map(e => "
        "[...e.textContent].map(c => c.codePointAt(0)))"
    )
    of = run.texts[run.visits.ids[0]]
    wanted = [of.prompt, of.chosen.replace("\0", "\u2400"), of.rejected]
    assert texts == [[ord(c) for c in text] for text in wanted]
    assert table.driver.title == "pairs"
    assert not table.driver.find_elements("css selector", "#injected, #pairs img, #pairs tbody b")
    assert "</td>careless" in table.find(".pairs-rejected h4").text
    table.wait("document.querySelector('.pairs-chart .main-svg')")
    plotted = table.run("return document.querySelector('.pairs-chart').data[0].y")
    np.testing.assert_allclose(plotted, run.visits.margin_V[:3], rtol=2**-10, atol=2**-12)
    table.find(".pairs-open").send_keys(" ")
    assert not table.driver.find_elements("css selector", ".pairs-detail")
    assert not [one for one in table.driver.get_log("browser") if one["level"] == "SEVERE"]
    table.clear()
    table.find(".pairs-open").send_keys("\ue015")  # arrow down
    assert table.run(
        "return document.activeElement === document.querySelectorAll('.pairs-open')[1]"
    )


def test_commands_of_a_pair_are_quoted_for_a_shell(table: Browser) -> None:
    """Fails where an id with an apostrophe or a leading dash makes another command."""
    table.view("all")
    table.put("query", "-dash it's")
    table.find(".pairs-open").click()
    command = table.find(".pairs-command code").text
    assert command == "zephyr lineage --run 'runs/dpo'\"'\"'s' -- '-dash it'\\''s'"
    assert table.find(".pairs-rejected .pairs-text").text == "(empty)"
    table.clear()


def test_differing_words_are_marked(table: Browser) -> None:
    """Fails where marks are on words of both responses, or on none."""
    table.view("all")
    table.put("query", "dpo-0-00123")
    table.find(".pairs-open").click()
    marks = table.run(
        "return ['chosen', 'rejected'].map(s => "
        "[...document.querySelectorAll(`.pairs-${s} mark`)].map(e => e.textContent))"
    )
    assert marks == [["a good long one"], ["bad"]]
    decoration = table.find(".pairs-chosen mark").value_of_css_property("text-decoration-line")
    assert decoration == "underline"
    table.clear()


def test_a_narrow_screen_and_paper_show_the_table(table: Browser) -> None:
    """With a row opened, nothing is wider than 420 pixels; print leaves out the controls. Fails
    where a cell, a text or the chart makes the page scroll sideways."""
    table.emulate(420)
    table.view("all")
    table.put("query", "hostile")
    table.find(".pairs-open").click()
    table.wait("document.querySelector('.pairs-chart .main-svg')")
    assert table.run("return document.documentElement.scrollWidth") <= 420
    assert table.find("#pairs tbody td[data-column=last]").is_displayed()
    assert not table.find("#pairs tbody td[data-column=first]").is_displayed()
    table.emulate(420, "print")
    assert not table.find("#pairs-query").is_displayed() and table.find(".pairs-row").is_displayed()
    table.emulate(1400)
    table.clear()


def test_another_run_can_be_chosen(table: Browser) -> None:
    """Fails where the table stays with the first run."""
    assert table.count() == PAIRS
    table.run(
        "const e = document.getElementById('pairs-run'); e.value = '1';"
        "e.dispatchEvent(new Event('change', {bubbles: true}))"
    )
    table.wait("/of 40 pairs/.test(document.getElementById('pairs-count').textContent)")
    table.view("all")
    assert "dpo-" not in table.find("#pairs-rows").text and table.count() == 40


def test_sixty_thousand_pairs(
    pages: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 64 random digits as ids and a page of text a pair, all are in the table, it sorts, and
    the page has room for its other parts. Fails where the page is too large to send."""
    count, rng = 60_000, np.random.default_rng(0)
    run = make_run("large", count)
    ids = [rng.bytes(32).hex() for _ in range(count)]
    text = [rng.bytes(700).hex(" ", 3) for _ in range(300)]
    texts = {
        id: PairText(text[n % 300], text[-n % 299], text[n % 297], "source", "a", "b", 1.0, 2.0)
        for n, id in enumerate(ids)
    }
    suspicion_P = rng.random(count)  # the estimate takes seconds, and has tests of its own
    monkeypatch.setattr(pairs_data, "flip_suspicion", lambda _: suspicion_P)
    large = pairs_section([run._replace(visits=run.visits._replace(ids=ids), texts=texts)])
    assert len(large) < 2_300_000
    address = write_page(tmp_path / "large.html", large)
    assert (tmp_path / "large.html").stat().st_size < 4_600_000
    pages.open(address)
    pages.view("all")
    assert pages.count() == count
    assert pages.shown() == np.argsort(run.visits.margin_V[2::3], kind="stable")[:20].tolist()
    longer_P = run.visits.tokens["chosen_tokens"] - run.visits.tokens["rejected_tokens"]
    pages.find("th[data-column=longer] button").click()
    assert pages.shown() == np.argsort(-longer_P, kind="stable")[:20].tolist()
    pages.put("query", ids[777])
    assert 777 in pages.shown()


def test_heads_and_legend_say_what_columns_mean(section: str) -> None:
    """Fails where a column has no explanation that can be seen, or none to hover."""
    for column in COLUMNS:
        assert f'title="{pairs_table.escape(column.meaning)}"' in section
        if column.digits is not None:
            assert f"<dd>{pairs_table.escape(column.meaning)}</dd>" in section
