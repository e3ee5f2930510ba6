"""The values of metrics over steps become one inline SVG, which shows a value under the pointer."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

Point = tuple[int, float | None]  # step and value; None: a gap in the curve
WIDTH, HEIGHT, LEFT, RIGHT, ABOVE, BELOW = 460, 210, 54, 14, 8, 24  # of the SVG and its margins


class Curve(NamedTuple):
    """One metric of one run."""

    name: str  # shown with each value
    colour: str
    dots: bool  # draw its points; without it a point is visible under the pointer only
    points: Sequence[Point]


class Drawn(NamedTuple):
    """A point that is on the axes."""

    step: int
    value: float
    height: float  # the value, or its logarithm


class Axes(NamedTuple):
    """The ranges of both axes: steps from 0 to `last`, heights from `low` to `high` and `pad`
    beyond both ends."""

    last: int
    low: float
    high: float
    pad: float

    def x(self, step: float) -> str:
        return f"{LEFT + step / self.last * (WIDTH - LEFT - RIGHT):.1f}"

    def y(self, height: float) -> str:
        below_top = (self.high + self.pad - height) / (self.high - self.low + 2 * self.pad)
        return f"{ABOVE + below_top * (HEIGHT - ABOVE - BELOW):.1f}"


def downsample(points: Sequence[Point], most: int = 300) -> Sequence[Point]:
    """Keep at most `most` points: the first, the last, and of each stretch its extremes and a gap.

    The stretches are of equal length; of each its lowest, its highest and its first gap are kept.
    """
    if len(points) <= most:
        return points
    kept = {0, len(points) - 1}
    size = -(-3 * len(points) // (most - 2))
    for start in range(0, len(points), size):
        stretch = range(start, min(start + size, len(points)))
        values = [(value, i) for i in stretch if (value := points[i][1]) is not None]
        if values:
            kept |= {min(values)[1], max(values)[1]}
        kept.update([i for i in stretch if points[i][1] is None][:1])
    return [points[i] for i in sorted(kept)]


def axis_ticks(low: float, high: float, log: bool = False) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten.

    Args: log: `low`, `high` and the result are logarithms (base 10) of such numbers.
    """
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
    """An integer with commas, another number with six digits."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def chart(curves: Sequence[Curve], log: bool = False) -> str:
    """Draw curves on one pair of axes. Returns: the SVG, "" where no curve has a value.

    Args: log: use a logarithmic axis if the positive values span a factor of ten; other values are
    then gaps.
    """
    positive = [y for curve in curves for _, y in curve.points if y is not None and y > 0]
    log = log and max(positive, default=0) >= 10 * min(positive, default=1)
    thinned = [downsample(curve.points) for curve in curves]
    lines = [connected(points, log) for points in thinned]
    heights = [point.height for line in lines for part in line for point in part]
    if not heights:
        return ""
    last = max(1, *(step for points in thinned for step, _ in points))
    low, high = min(heights), max(heights)
    axes = Axes(last, low, high, 0.06 * (high - low) or 0.1 * abs(low) or 1.0)
    parts = grid(axes, log)
    parts += [draw(curve, line, axes) for curve, line in zip(curves, lines)]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def connected(points: Sequence[Point], log: bool) -> list[list[Drawn]]:
    """The stretches of points without a gap; a value without a logarithm is a gap."""
    parts: list[list[Drawn]] = [[]]
    for step, value in points:
        if value is None or (log and value <= 0):
            parts.append([])
        else:
            parts[-1].append(Drawn(step, value, math.log10(value) if log else value))
    return [part for part in parts if part]


def grid(axes: Axes, log: bool) -> list[str]:
    """Horizontal lines with their values, and the steps below."""
    parts = []
    for tick in axis_ticks(axes.low - axes.pad, axes.high + axes.pad, log):
        value, y = 10**tick if log else tick, axes.y(tick)
        parts.append(
            f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
            f'<text class="y" x="{LEFT - 6}" y="{y}" dy="4">{value:.4g}</text>'
        )
    return parts + [
        f'<text class="x" x="{axes.x(tick)}" y="{HEIGHT - 6}">{tick:.6g}</text>'
        for tick in axis_ticks(0, axes.last)
    ]


def draw(curve: Curve, line: Sequence[Sequence[Drawn]], axes: Axes) -> str:
    """A curve as one path of all its stretches, and a circle for each point with its value."""
    path, circles = "", ""
    for part in line:
        places = [f"{axes.x(point.step)} {axes.y(point.height)}" for point in part]
        # the first place twice, so that a single point is drawn as a dot
        path += "M" + "L".join([places[0], *places])
        for point in part:
            text = f"{escape(curve.name)}, step {point.step}: {format_number(point.value)}"
            circles += (
                f'<circle cx="{axes.x(point.step)}" cy="{axes.y(point.height)}" r="3">'
                f"<title>{text}</title></circle>"
            )
    return (
        f'<g class="{"dots" if curve.dots else "curve"}" stroke="{curve.colour}" '
        f'fill="{curve.colour}"><path d="{path}"/>{circles}</g>'
    )
