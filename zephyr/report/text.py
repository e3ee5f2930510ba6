"""Values become the words and tables of a page; everything in them is escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

SHOWN = 20  # items of a list in a cell


def format_number(value: float) -> str:
    """An integer with commas, another number with six digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def percent(share: float, digits: int = 0) -> str:
    """A share as a percentage: 0.964 is `96 %`."""
    return f"{100 * share:.{digits}f} %"


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a real minus, and as many decimals."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def seconds_text(seconds: float) -> str:
    """A duration: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def plural(count: int, noun: str) -> str:
    """`1 pair`, `1,500 pairs`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def side_by_side(columns: Mapping[str, Mapping[str, object]]) -> str:
    """A table with a column for each mapping and a row for each key of any; "" without a key."""
    keys = dict.fromkeys(key for column in columns.values() for key in column)
    if not keys:
        return ""
    rows = ([key, *(column.get(key) for column in columns.values())] for key in keys)
    return table(["", *columns], rows)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """An HTML table. The first cell of a row is its heading."""
    header = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    lines = ""
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(cell_text(value))}</td>" for value in rest)
        lines += f'<tr><th scope="row">{escape(cell_text(first))}</th>{cells}</tr>'
    return f'<div class="wide" tabindex="0"><table><tr>{header}</tr>{lines}</table></div>'


def cell_text(value: object) -> str:
    """The text of a cell: numbers by `format_number`, the first items of a list a line each."""
    if value is None:
        return "-"
    if isinstance(value, list):
        items = [item_text(item) for item in value[:SHOWN]]
        if len(value) > SHOWN:
            items.append(f"... {len(value)} in all")
        return "\n".join(items) or "none"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return format_number(value)
    return str(value)


def item_text(item: object) -> str:
    return ": ".join(map(str, item.values())) if isinstance(item, Mapping) else str(item)
