"""Line charts and bars as inline SVG, coloured by the page's own CSS variables so that they follow its theme."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import accumulate

from recipes.evaluation.report.words import both

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 20, 10, 38
MOST_POINTS = 400  # more than the pixels a phone has for them
COLOURS = 6
"""That the style sheet has, `c0` to `c5`; further lines and parts take the last."""

Points = Sequence[tuple[float, float]]


def colour(number: int) -> int:
    """Returns the number of the colour of the `number`-th line or part, counted from 0."""
    return min(number, COLOURS - 1)


def line_chart(
    title: str, x_label: str, lines: Mapping[str, Points], mark: float | None = None, faint: Points = ()
) -> str:
    """Returns an `<svg>` element; points that are not finite are left out.

    Args:
        title: read out by screen readers.
        x_label: written below the axis.
        lines: name -> (x, y), in the order of x; coloured in the order of the names.
        mark: x of a vertical line, of what was chosen.
        faint: a line behind the others, of what they smooth.
    """
    shown, behind = {name: thinned(points) for name, points in lines.items()}, thinned(faint)
    every = [point for points in (*shown.values(), behind) for point in points]
    if not every:
        return f"<p>{both('No finite values.')}</p>"
    xs, ys = ticks([x for x, _ in every]), ticks([y for _, y in every])
    x_of = _Scale(xs[0], xs[-1], LEFT, WIDTH - RIGHT)
    y_of = _Scale(ys[0], ys[-1], HEIGHT - BOTTOM, TOP)
    grid = [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{_short(y)}</text>'
        for y in ys
    ]
    grid += [f'<text x="{x_of(x):.1f}" y="{HEIGHT - BOTTOM + 15}" text-anchor="middle">{_short(x)}</text>' for x in xs]
    if mark is not None:
        grid.append(
            f'<line class="mark" x1="{x_of(mark):.1f}" x2="{x_of(mark):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = f'<text x="{middle}" y="{HEIGHT - 5}" text-anchor="middle">{both(x_label, tag="tspan")}</text>'
    drawn = [f'<polyline class="faint" points="{_path(behind, x_of, y_of)}"/>'] if behind else []
    for number, points in enumerate(shown.values()):
        if points:
            drawn.append(f'<polyline class="curve c{colour(number)}" points="{_path(points, x_of, y_of)}"/>')
            drawn.append(_end(points, x_of, y_of, number))
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{''.join(grid)}{label}{''.join(drawn)}</svg>"
    )


def thinned(points: Points) -> Points:
    """Returns the finite points, of many every n-th and the last."""
    finite = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    shown = finite[:: math.ceil(len(finite) / MOST_POINTS) or 1]
    return shown if not finite or shown[-1] == finite[-1] else [*shown, finite[-1]]


def smoothed(points: Points) -> Points:
    """Returns the running means of a twentieth of the points, each over those up to it and as many after it."""
    half = len(points) // 40
    sums = [0.0, *accumulate(y for _, y in points)]
    ends = [(max(0, n - half), min(len(points), n + half + 1)) for n in range(len(points))]
    return [
        (x, (sums[stop] - sums[start]) / (stop - start)) for (x, _), (start, stop) in zip(points, ends, strict=True)
    ]


def bar(title: str, parts: Sequence[float]) -> str:
    """Returns an `<svg>` element: parts of a whole in one bar, coloured in their order; nothing of nothing."""
    whole, start, pieces = sum(parts), 0.0, []
    if not whole:
        return ""
    for number, part in enumerate(parts):
        width = 100 * part / whole
        pieces.append(f'<rect class="c{colour(number)}" x="{start:.3f}%" y="0" width="{width:.3f}%" height="14"/>')
        start += width
    return f'<svg class="bar" role="img" aria-label="{escape(title, quote=True)}">{"".join(pieces)}</svg>'


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


def _path(points: Points, x_of: _Scale, y_of: _Scale) -> str:
    return " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)


def _end(points: Points, x_of: _Scale, y_of: _Scale, number: int) -> str:
    """Returns a dot at the end of a line, which is all there is of a single point."""
    x, y = points[-1]
    return f'<circle class="c{colour(number)}" cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="2.5"/>'


def _short(value: float) -> str:
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"
