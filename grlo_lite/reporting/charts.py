"""Line charts as SVG text, without a library: they take their colours from the page's CSS, so they follow its theme."""

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 190, 46, 22, 8


Points = Sequence[tuple[float, float]]


def line_chart(title: str, unit: str, series: Mapping[str, Points]) -> str:
    """One or several series over training steps, each as (step, value), with a legend where there are several.

    Points that are not finite are left out. Empty where no point is left.
    """
    kept = {name: [(x, y) for x, y in points if isfinite(y)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    xs = [x for points in kept.values() for x, _ in points]
    ticks = _ticks(min(y for points in kept.values() for _, y in points), max(y for p in kept.values() for _, y in p))
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> str:
        across = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - 8)
        down = TOP + (ticks[-1] - y) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)
        return f"{across:.1f},{down:.1f}"

    drawn = []
    for tick in ticks:
        height = float(place(first, tick).split(",")[1])
        drawn.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{height}" y2="{height}"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{height + 3.5}" text-anchor="end">{tick:g}</text>')
    for x, anchor in ((first, "start"), (last, "end")):
        across = place(x, ticks[0]).split(",")[0]
        drawn.append(f'<text x="{across}" y="{HEIGHT - 6}" text-anchor="{anchor}">step {x:g}</text>')
    for number, points in enumerate(kept.values()):
        line = " ".join(place(x, y) for x, y in points)
        if len(points) == 1:
            x, y = line.split(",")
            drawn.append(f'<circle class="series-{number}" cx="{x}" cy="{y}" r="2.5"/>')
        drawn.append(f'<polyline class="series-{number}" points="{line}"/>')
    names = "".join(f'<span class="series-{n}">{escape(name)}</span>' for n, name in enumerate(kept))
    legend = f'<span class="legend">{names}</span>' if len(kept) > 1 else ""
    said = escape(f"{title}: " + "; ".join(f"{n} from {p[0][1]:.3g} to {p[-1][1]:.3g}" for n, p in kept.items()))
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b> <small>{escape(unit)}</small>{legend}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{said}">{"".join(drawn)}</svg></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers, the first at or below `low` and the last at or above `high`."""
    spread = (high - low) or abs(high) or 1.0
    magnitude = 10 ** floor(log10(spread / 4))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if spread / (m * magnitude) <= 5)
    start, end = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(start, max(end, start + 1) + 1)]
