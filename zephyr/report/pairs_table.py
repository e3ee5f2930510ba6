"""The pairs of runs become the part of the page that sorts, filters, searches and opens them.

This is its markup. `pairs_data.py` decides what is stored of each run, `pairs.js` fills the table.
"""

import json
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from zephyr.report.pair_figures import PairsOf
from zephyr.report.pairs_data import VIEWS, payloads


class Column(NamedTuple):
    """A column of the table; `key` is its name in pairs.js."""

    key: str
    head: str
    meaning: str
    digits: int | None  # after the decimal point; None for text


COLUMNS = (
    Column("pair", "Pair", "The start of its prompt, and its id. Opens the whole pair.", None),
    Column("source", "Source", "The row's own source or subset, else the name of its file.", None),
    Column(
        "last",
        "Margin",
        "Reward of the chosen minus that of the rejected response at the pair's last visit, just "
        "before the update. Above 0: compared with the start, the model moved towards the chosen "
        "one.",
        3,
    ),
    Column("first", "First", "The margin at the pair's first visit.", 3),
    Column("fell", "Fell", "How far the margin at the last visit is below the highest one.", 3),
    Column(
        "moved",
        "Moved",
        "How far the margin went in all, up and down, from 0 on, where every margin starts if the "
        "loss has a reference (there, the policy is the reference).",
        3,
    ),
    Column(
        "suspicion",
        "Flip?",
        "Flip suspicion, 0 to 1: how much the pair's visits look as if its two responses were "
        "swapped. It ranks pairs to look at; it is no proof.",
        2,
    ),
    Column(
        "reward",
        "Chosen reward",
        "Reward of the chosen response at the last visit: β times the change of its log-prob since "
        "the start. Below 0: it became less likely.",
        3,
    ),
    Column("longer", "Longer by", "Tokens of the chosen minus those of the rejected response.", 0),
    Column(
        "better",
        "Score gap",
        "The judge's score of the chosen minus that of the rejected response.",
        2,
    ),
)


def pairs_section(every: Sequence[PairsOf]) -> str:
    """The part of the page on the pairs of runs; "" where no run has visits of pairs."""
    found = [of for of in every if of.visits.ids]
    if not found:
        return ""
    return markup([of.run.name for of in found]) + payloads(found) + "</section>\n"


def markup(names: Sequence[str]) -> str:
    """The part without its data and its end. Args: names: of the runs."""
    return (
        '<section id="pairs"><h2>Pairs</h2>'
        '<p class="muted">What each pair did in training. A row opens to its prompt, both '
        "responses, its margin over its visits, and where it comes from.</p>"
        "<noscript><p>This table needs JavaScript. <code>zephyr pairs RUN</code> writes it as a "
        "file.</p></noscript>"
        f'<div id="pairs-table" hidden>{run_choice(names)}{view_buttons()}{filters()}'
        '<p class="pairs-count"><span id="pairs-count" role="status"></span> '
        '<span id="pairs-stored" class="muted"></span></p>'
        f"{table_head()}{pager()}{legend()}"
        '<ul id="pairs-notes" class="muted"></ul></div>'
    )


def run_choice(names: Sequence[str]) -> str:
    """A selector of the run, hidden where there is one."""
    options = "".join(
        f'<option value="{number}">{escape(name)}</option>' for number, name in enumerate(names)
    )
    hidden = " hidden" if len(names) == 1 else ""
    return f'<p{hidden}><label>Run <select id="pairs-run">{options}</select></label></p>'


def view_buttons() -> str:
    """A button for each ready view, and what `pairs.js` needs to apply it."""
    buttons = "".join(
        f'<button type="button" id="view-{view.key}" data-view="{view.key}" aria-pressed="false" '
        f'title="{escape(view.rule)}">{escape(view.label)} <span></span></button>'
        for view in VIEWS
    )
    rules = [
        {**view._asdict(), "limits": [limit._asdict() for limit in view.limits]} for view in VIEWS
    ]
    return (
        f'<div class="pairs-views" role="group" aria-label="Ready views">{buttons}</div>'
        f'<p id="pairs-rule" data-views="{escape(json.dumps(rules))}"></p>'
    )


def filters() -> str:
    """What narrows a view down."""
    numeric = "".join(
        f'<option value="{column.key}">{escape(column.head)}</option>'
        for column in COLUMNS
        if column.digits is not None
    )
    return (
        '<form class="pairs-filters" role="search">'
        '<label class="pairs-search">Search <input id="pairs-query" type="search" '
        'placeholder="id, text or writer" autocomplete="off"></label>'
        '<label>Source <select id="pairs-source"></select></label>'
        '<label>Margin <select id="pairs-sign"><option value="">any</option>'
        '<option value="above">above 0</option><option value="below">0 or below</option>'
        "</select></label>"
        '<fieldset><legend class="pairs-unseen">Range of a column</legend>'
        f'<select id="pairs-range" aria-label="Column">{numeric}</select> from '
        '<input id="pairs-low" type="number" step="any" aria-label="Lowest value"> to '
        '<input id="pairs-high" type="number" step="any" aria-label="Highest value"></fieldset>'
        f'<label class="pairs-narrow">Sort by <select id="pairs-sort">{numeric}</select></label>'
        '<button type="button" id="pairs-turn" class="pairs-narrow">Reverse the order</button>'
        '<button type="reset">Clear</button></form>'
    )


def table_head() -> str:
    """The table without rows; a head sorts."""
    heads = "".join(
        f'<th scope="col" data-column="{column.key}" data-digits="{column.digits}"'
        f"{'' if column.digits is None else ' class=pairs-number'}>"
        f'<button type="button" title="{escape(column.meaning)}">{escape(column.head)}</button>'
        "</th>"
        for column in COLUMNS
    )
    return (
        '<div class="pairs-frame"><table><caption class="pairs-unseen">Pairs</caption>'
        f'<thead><tr>{heads}</tr></thead><tbody id="pairs-rows"></tbody></table></div>'
    )


def pager() -> str:
    return (
        '<div class="pairs-pager" role="navigation" aria-label="Pages of the table">'
        '<button type="button" id="pairs-back">Back</button>'
        '<span id="pairs-page"></span>'
        '<button type="button" id="pairs-next">Next</button>'
        '<label>Rows <select id="pairs-size"><option>10</option><option selected>20</option>'
        "<option>50</option><option>100</option></select></label></div>"
    )


def legend() -> str:
    """What the columns mean."""
    entries = "".join(
        f'<div data-column="{column.key}"><dt>{escape(column.head)}</dt>'
        f"<dd>{escape(column.meaning)}</dd></div>"
        for column in COLUMNS[1:]
    )
    return f'<dl class="pairs-legend">{entries}</dl>'
