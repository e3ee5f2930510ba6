"""Tokens coloured by their log-ratio: every token is there as it was, its colour and number are
those of log pi - log pi_ref, nothing in it is taken for HTML."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from zephyr.evaluation.score import TokenScores
from zephyr.report.tokens import (
    ScoredPair,
    colour_scale,
    number,
    tokens_html,
    tokens_page,
)

if TYPE_CHECKING:
    from browsing import Browser

TOKENS = [
    "A",
    " cat",
    "\n",
    " </script><b>",
    "&amp;",
    "\tx",
    "",
    "\0",
    "\ud800",
    "\U0001f600",
    "</s>",
]
RATIOS = [0.5, -0.25, 0.0, 3.0, -0.04, 0.1, -0.1, 0.2, -1.0, 0.3, -0.004]


def scores(tokens: list[str] = TOKENS, ratios: list[float] = RATIOS) -> TokenScores:
    reference = [-1.0 - n / 8 for n in range(len(tokens))]
    return TokenScores(tokens, [r + ratio for r, ratio in zip(reference, ratios)], reference)


class Reader(HTMLParser):
    """The elements of a fragment, and each token's text, attributes, and colour's strength."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.tokens: list[tuple[str, dict[str, str]]] = []
        self.depth = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = {name: value or "" for name, value in attrs}
        if "zt-t" in found.get("class", "").split():
            self.tokens.append(("", found))
            self.depth = 1
        elif self.depth:
            self.depth += 1

    def handle_endtag(self, tag: str) -> None:
        self.depth = max(0, self.depth - 1)

    def handle_data(self, data: str) -> None:
        if self.depth:
            text, found = self.tokens[-1]
            self.tokens[-1] = (text + data, found)


def test_every_token_has_its_text_its_number_and_its_colour() -> None:
    """Fails where a token is lost or merged, the sign is turned, or the sum skips a token."""
    read = Reader(tokens_html([("chosen", scores())]))
    assert [text for text, _ in read.tokens] == [
        *TOKENS[:7],
        "\u2400",
        "\ufffd",
        *TOKENS[9:],
    ]
    assert read.tags <= set("div style span i b p script sub".split())
    total, scale = 0.0, colour_scale([scores()])
    for (_, found), ratio in zip(read.tokens, RATIOS):
        total += ratio
        assert found["data-v"].startswith(f"{number(ratio)} nats\nlog p ")
        assert found["data-v"].endswith(f"sum so far {number(total)}")
        assert found["style"] == f"--a:{min(abs(ratio) / scale, 1):.2f}"
        shown = found["class"].split()
        assert ("zt-down" if ratio < -1e-9 else "zt-up") in shown
        assert ("zt-far" in shown) == (abs(ratio) / scale >= 0.25)
    assert [found["tabindex"] for _, found in read.tokens] == ["0"] + ["-1"] * (len(TOKENS) - 1)


def test_the_scale_is_shared_symmetric_and_not_a_single_tokens() -> None:
    """Fails where each response has a scale of its own, or one outlier fades all other tokens."""
    small = scores(["a"] * 99, [0.3] * 99)
    assert colour_scale([small, scores(["b"], [-40.0])]) == 0.3
    assert colour_scale([small, scores(["b"] * 50, [-0.61] * 50)]) == 0.7
    assert colour_scale([scores(["a"], [math.nan]), scores([], [])]) == 0.1
    html = tokens_html([("chosen", small), ("rejected", scores(["b"] * 50, [-0.61] * 50))])
    assert html.count("≤ −0.7") == html.count("≥ +0.7") == 1
    assert "99 tokens, log-ratio +29.70 nats, +0.30 a token" in html
    assert "50 tokens, log-ratio −30.50 nats, −0.61 a token" in html


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "+0.00"),
        (-0.001, "+0.00"),
        (1.25, "+1.25"),
        (-12.5, "−12.50"),
        (-math.inf, "−∞"),
        (math.nan, "not a number"),
    ],
)
def test_numbers(value: float, shown: str) -> None:
    """Fails where a value that rounds to zero is called negative."""
    assert number(value) == shown


def test_scores_without_a_reference_are_refused() -> None:
    """Fails where tokens are dropped in silence because there are fewer reference log-probs."""
    with pytest.raises(ValueError, match="chosen: 11 tokens, 11 log-probs and 0 of the reference"):
        tokens_html([("chosen", scores()._replace(ref_logp=[]))])


def test_a_page_is_whole_and_can_be_written() -> None:
    """Fails where a title or an id ends an element, or a lone surrogate makes it no UTF-8."""
    pair = ScoredPair("</title>\ud800'", "<p>prompt\0", scores(), scores(["b"], [-1.0]))
    page = tokens_page([pair, pair], "</title><script>alert(1)</script>")
    assert page.encode("utf-8") and "alert(1)</script>" not in page
    assert page.count("</title>") == 1
    assert len(Reader(page).tokens) == 2 * (len(TOKENS) + 1)
    assert not re.search(r"(src|href)=|url\(|@import", page)


def test_a_value_is_shown_by_keyboard_and_fits_a_narrow_screen(
    chromium: Browser, tmp_path: Path
) -> None:
    """Arrows move the focus from token to token, which shows its numbers, and nothing is wider than
    420 pixels. Fails without the script, or where a long token can't break."""
    long = scores([*TOKENS, " token" * 30, "x" * 300], [*RATIOS, 0.2, -0.3])
    page = tokens_page([ScoredPair("id" * 200, "p" * 300, long, long)], "tokens")
    (tmp_path / "tokens.html").write_text(page, encoding="utf-8")
    chromium.emulate(420)
    chromium.driver.get((tmp_path / "tokens.html").as_uri())
    assert chromium.run("return document.documentElement.scrollWidth") <= 420
    chromium.find(".zt-t").send_keys("\ue014\ue014\ue012")  # right, right, left
    focused = chromium.driver.switch_to.active_element
    assert focused.text.strip() == "cat" and focused.get_attribute("tabindex") == "0"
    shown = chromium.run("return getComputedStyle(document.activeElement, '::after').content")
    assert "−0.25 nats" in shown and "sum so far +0.25" in shown
    colour = focused.value_of_css_property("background-color")
    assert re.match(r"rgba\(230, 126, 20, 0\.[0-9]+\)", colour)
    chromium.emulate(1400)
