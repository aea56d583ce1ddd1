"""Line charts as inline SVG, coloured by the page's own CSS variables so that they follow its theme."""

import math
from collections.abc import Sequence
from html import escape

from recipes.evaluation.report.words import both

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 20, 10, 34
MOST_POINTS = 400  # more than the pixels a phone has for them


def line_chart(title: str, x_label: str, points: Sequence[tuple[float, float]]) -> str:
    """Returns an `<svg>` element with one line; points that are not finite are left out.

    Args:
        title: read out by screen readers.
        x_label: written below the axis.
        points: (x, y), in the order of x.
    """
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    shown = finite[:: math.ceil(len(finite) / MOST_POINTS) or 1]
    if finite and shown[-1] != finite[-1]:
        shown.append(finite[-1])
    if not shown:
        return f"<p>{both('No finite values.')}</p>"
    xs, ys = ticks([x for x, _ in shown]), ticks([y for _, y in shown])
    x_of = _Scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    y_of = _Scale(ys[0], ys[-1], HEIGHT - BOTTOM, TOP)
    path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in shown)
    grid = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{y:g}</text>'
        for y in ys
    ]
    grid += [f'<text x="{x_of(x):.1f}" y="{HEIGHT - BOTTOM + 14}" text-anchor="middle">{_short(x)}</text>' for x in xs]
    label = f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x_label)}</text>'
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f'{"".join(grid)}{label}<polyline class="curve" points="{path}"/></svg>'
    )


def ticks(values: Sequence[float], most: int = 5) -> list[float]:
    """Returns 2 to `most` + 2 round numbers, evenly spaced, that enclose the values."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]


class _Scale:
    """Maps [low, high] to [start, stop] of the drawing."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self._low, self._start = low, start
        self._factor = (stop - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self._low) * self._factor


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
