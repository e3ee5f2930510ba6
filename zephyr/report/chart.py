"""A metric's values over steps become one inline SVG: curves on one pair of axes, every point
telling its value under the pointer."""

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby

Point = tuple[int, float | None]  # step and value; None: a gap
Curve = tuple[
    str, str, bool, Sequence[Point]
]  # name, told with each value; colour; whether its points are to be seen; points
WIDTH, HEIGHT, LEFT, RIGHT, ABOVE, BELOW = 460, 210, 54, 14, 8, 24


def downsample(points: Sequence[Point], most: int = 300) -> Sequence[Point]:
    """At most so many of the points: the first, the last, and of each of equal stretches its
    lowest, its highest and a gap."""
    if len(points) <= most:
        return points
    kept, size = {0, len(points) - 1}, -(-3 * len(points) // (most - 2))
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        there = sorted((i for i in stretch if points[i][1] is not None), key=lambda i: points[i][1])
        kept.update(there[:1], there[-1:], [i for i in stretch if points[i][1] is None][:1])
    return [points[i] for i in sorted(kept)]


def axis_ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round numbers in between: multiples of 1, 2 or 5 times a power of ten. Args: log: in and out
    are logarithms of such numbers."""
    if log:
        found = [
            math.log10(digit) + power
            for power in range(math.floor(low), math.ceil(high))
            for digit in (1, 2, 5)
        ]
        return [tick for tick in found if low <= tick <= high][:: -(-len(found) // 9)]
    unit = 10.0 ** math.floor(math.log10((high - low) / 6))
    gap = next(digit * unit for digit in (1, 2, 5, 10) if digit * unit >= (high - low) / 6)
    return [n * gap for n in range(math.ceil(low / gap), math.floor(high / gap) + 1)]


def format_number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def chart(curves: Sequence[Curve], log: bool = False) -> str:
    """The SVG; empty where there is no value. Args: log: of values above 0 where they span a factor
    of ten; others are then gaps."""
    above = [y for *_, points in curves for _, y in points if y is not None and y > 0]
    log = log and max(above, default=0) >= 10 * min(above, default=1)

    def height(y: float | None) -> float | None:
        return None if y is None or (log and y <= 0) else math.log10(y) if log else y

    drawn = [[(x, y, height(y)) for x, y in downsample(points)] for *_, points in curves]
    heights = [h for points in drawn for *_, h in points if h is not None]
    if not heights:
        return ""
    low, high, last = (
        min(heights),
        max(heights),
        max(1, *(x for points in drawn for x, *_ in points)),
    )
    pad = 0.06 * (high - low) or 0.1 * abs(low) or 1.0

    def at(x: float, h: float) -> tuple[str, str]:
        return (
            f"{LEFT + x / last * (WIDTH - LEFT - RIGHT):.1f}",
            f"{ABOVE + (high + pad - h) / (high - low + 2 * pad) * (HEIGHT - ABOVE - BELOW):.1f}",
        )

    parts = [
        '<path class="grid" d="M{} {y}H{}"/><text class="y" x="{}" y="{y}" dy="4">{:.4g}</text>'.format(
            LEFT, WIDTH - RIGHT, LEFT - 6, 10**tick if log else tick, y=at(0, tick)[1]
        )
        for tick in axis_ticks(low - pad, high + pad, log)
    ]
    parts += [
        f'<text class="x" x="{at(tick, low)[0]}" y="{HEIGHT - 6}">{tick:.6g}</text>'
        for tick in axis_ticks(0, last)
    ]
    for (name, colour, seen, _), points in zip(curves, drawn):
        runs = [
            list(of) for there, of in groupby(points, lambda point: point[2] is not None) if there
        ]
        line = "".join(
            "M" + "L".join(" ".join(at(x, h)) for x, _, h in (run[0], *run)) for run in runs
        )  # one alone is a dot
        dots = "".join(
            '<circle cx="{}" cy="{}" r="3"><title>{}, step {}: {}</title></circle>'.format(
                *at(x, h), escape(name), x, format_number(y)
            )
            for run in runs
            for x, y, h in run
        )
        parts.append(
            f'<g class="{"dots" if seen else "curve"}" stroke="{colour}" fill="{colour}"><path d="{line}"/>{dots}</g>'
        )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'
