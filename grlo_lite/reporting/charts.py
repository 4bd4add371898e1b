"""Line charts and forest plots as SVG text, without a library: they take their colours from the page's CSS, so they
follow its theme.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 190, 46, 22, 8


COLOURS = 6  # of the page's CSS; more series begin again


MOST_POINTS = 600  # of a line; of more, what is lowest and highest in each stretch is drawn


SMOOTHED_FROM = 20  # points; a line of fewer is drawn as it is


Points = Sequence[tuple[float, float]]
Band = Sequence[tuple[float, float, float]]


def line_chart(title: str, unit: str, series: Mapping[str, Points], bands: Mapping[str, Band] | None = None) -> str:
    """One or several series over training steps, each as (step, value), with a legend that tells the first value
    and the last.

    `bands` are (step, lowest, highest) behind a series of the same name. A long series without one is drawn thin, and
    over it the mean of the steps around each. Points that are not finite are left out. Empty where no point is left.
    """
    kept = {name: [(x, y) for x, y in points if isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    areas = {name: band for name, band in (bands or {}).items() if name in kept}
    ys = [y for points in kept.values() for _, y in points] + [
        y for band in areas.values() for _, *lh in band for y in lh
    ]
    frame = _Frame([x for points in kept.values() for x, _ in points], ys)
    drawn = frame.drawn()
    for number, name in enumerate(kept):
        if name in areas:
            around = [(x, high) for x, _, high in areas[name]] + [(x, low) for x, low, _ in reversed(areas[name])]
            drawn.append(f'<polygon class="series-{number % COLOURS}" points="{frame.line(around)}"/>')
    for number, (name, points) in enumerate(kept.items()):
        drawn += _drawn(frame, points, f"series-{number % COLOURS}", smooth=name not in areas)
    said = escape(f"{title}: " + "; ".join(f"{n} from {p[0][1]:.3g} to {p[-1][1]:.3g}" for n, p in kept.items()))
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> <small>{escape(unit)}</small>{_legend(kept)}'
        f'</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(drawn)}</svg>'
        "</figure>"
    )


def smoothed(points: Points) -> Points:
    """Each point with the mean of the steps around it, a tenth of all of them together."""
    reach = max(1, len(points) // 20)
    values = [y for _, y in points]
    around = [values[max(0, n - reach) : n + reach + 1] for n in range(len(values))]
    return [(x, sum(near) / len(near)) for (x, _), near in zip(points, around, strict=True)]


def thinned(points: Points) -> Points:
    """The points, or of more than MOST_POINTS the lowest and the highest of each of as many stretches as there is room
    for, with the first and the last.
    """
    if len(points) <= MOST_POINTS:
        return points
    size = ceil(len(points) / (MOST_POINTS // 2 - 1))
    kept = {points[0], points[-1]}
    for start in range(0, len(points), size):
        stretch = points[start : start + size]
        kept |= {min(stretch, key=lambda point: point[1]), max(stretch, key=lambda point: point[1])}
    return sorted(kept)


class _Frame:
    """A chart's axes, and where a point stands between them."""

    def __init__(self, xs: list[float], ys: list[float]):
        self.ticks = _ticks(min(ys), max(ys))
        self.first, self.last = min(xs), max(max(xs), min(xs) + 1)

    def place(self, x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - self.first) / (self.last - self.first) * (WIDTH - LEFT - 8)
        down = TOP + (self.ticks[-1] - y) / (self.ticks[-1] - self.ticks[0]) * (HEIGHT - TOP - BOTTOM)
        return across, down

    def line(self, points: Points) -> str:
        return " ".join(f"{across:.1f},{down:.1f}" for across, down in (self.place(x, y) for x, y in points))

    def drawn(self) -> list[str]:
        shown = []
        for tick in self.ticks:
            height = f"{self.place(self.first, tick)[1]:.1f}"
            shown.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{height}" y2="{height}"/>')
            shown.append(f'<text x="{LEFT - 6}" y="{float(height) + 3.5}" text-anchor="end">{tick:g}</text>')
        for x, anchor in ((self.first, "start"), (self.last, "end")):
            across = f"{self.place(x, self.ticks[0])[0]:.1f}"
            shown.append(f'<text x="{across}" y="{HEIGHT - 6}" text-anchor="{anchor}">step {x:g}</text>')
        return shown


def _drawn(frame: _Frame, points: Points, colour: str, smooth: bool) -> list[str]:
    if len(points) == 1:
        x, y = frame.line(points).split(",")
        return [f'<circle class="{colour}" cx="{x}" cy="{y}" r="2.5"/>']
    line = frame.line(thinned(points))
    if not smooth or len(points) < SMOOTHED_FROM:
        return [f'<polyline class="{colour}" points="{line}"/>']
    mean = frame.line(thinned(smoothed(points)))
    return [f'<polyline class="{colour} raw" points="{line}"/>', f'<polyline class="{colour} mean" points="{mean}"/>']


def _legend(series: Mapping[str, Points]) -> str:
    """Each series by its name, with its first and last value."""
    named = []
    for number, (name, points) in enumerate(series.items()):
        values = f"{points[0][1]:.3g} → {points[-1][1]:.3g}" if len(points) > 1 else f"{points[0][1]:.3g}"
        named.append(f'<span class="series-{number % COLOURS}"><i></i>{escape(name)} <var>{values}</var></span>')
    return f'<span class="legend">{"".join(named)}</span>'


@dataclass(frozen=True)
class Whisker:
    """A row of a forest plot: a difference with its interval, and what is written before and behind it."""

    name: str
    detail: str
    rates: str
    difference: float
    low: float
    high: float
    said: str
    whole: bool = False  # an average of others


def forest(title: str, unit: str, rows: Sequence[Whisker]) -> str:
    """Differences with their intervals about a line at zero; empty where there is none."""
    rows = [row for row in rows if all(map(isfinite, (row.difference, row.low, row.high)))]
    if not rows:
        return ""
    ticks = _ticks(min(0.0, *(row.low for row in rows)), max(0.0, *(row.high for row in rows)))

    def at(value: float) -> str:
        return f"{3 + 94 * (value - ticks[0]) / (ticks[-1] - ticks[0]):.2f}%"

    drawn = [
        f'<div class="row{" whole" if row.whole else ""}"><span class="task">{escape(row.name)} '
        f'<small>{escape(row.detail)}</small></span><span class="rates">{escape(row.rates)}</span>'
        f'<svg role="img" aria-label="{escape(row.said)}"><line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="26"/>'
        f'<line class="interval" x1="{at(row.low)}" x2="{at(row.high)}" y1="13" y2="13"/>'
        f'<circle cx="{at(row.difference)}" cy="13" r="{5 if row.whole else 4}"/></svg>'
        f'<span class="gain">{escape(row.said)}</span></div>'
        for row in rows
    ]
    axis = "".join(
        f'<text x="{at(tick)}" y="13" text-anchor="middle">{f"{tick:+g}" if tick else "0"}</text>' for tick in ticks
    )
    axis = f'<div class="row axis"><span></span><span></span><svg aria-hidden="true">{axis}</svg><span></span></div>'
    return (
        f'<figure class="forest"><figcaption><b>{escape(title)}</b> <small>{escape(unit)}</small></figcaption>'
        f"{''.join(drawn)}{axis}</figure>"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, the first at or below `low` and the last at or above `high`."""
    spread = (high - low) or abs(high) or 1.0
    magnitude = 10 ** floor(log10(spread / 4))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if spread / (m * magnitude) <= 5)
    start, end = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(start, max(end, start + 1) + 1)]
