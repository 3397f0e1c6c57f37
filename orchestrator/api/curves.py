"""Learning curves as an SVG picture."""

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from plugins.metrics.deciding import DecidingMetric

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 12, 12, 48
_NUM_COLOURS = 8

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""Points (epoch, value) by name."""


def curve_picture(curves: Curves, metric: DecidingMetric) -> str:
    """Curves as a picture, with colours from the style sheet and a title on each curve.

    Args:
        curves: At least one point each; none gives an empty picture.
        metric: What the values are.
    """
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" class="curves" role="img" '
        f'aria-label="Validation {escape(metric.words)} by epoch">'
    )
    values = [value for points in curves.values() for _, value in points]
    if not values:
        return f"{head}</svg>"
    last = max(epoch for points in curves.values() for epoch, _ in points)
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or 0.01
    low, high = low - margin, high + margin

    def x(epoch: float) -> float:
        return _LEFT + (epoch - 1) / max(last - 1, 1) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [head]
    for value in _round_values(low, high):
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{escape(metric.text(value))}</text>'
        )
    for epoch in _epochs(last):
        anchor = "end" if epoch == last and last > 1 else "middle"
        parts.append(f'<text x="{x(epoch):.1f}" y="{_HEIGHT - 28}" text-anchor="{anchor}">{epoch}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH) / 2:.0f}" y="{_HEIGHT - 6}" text-anchor="middle">epoch</text>')
    for index, (name, points) in enumerate(curves.items()):
        place = " ".join(f"{x(epoch):.1f},{y(value):.1f}" for epoch, value in points)
        title = f"{name}: {metric.text(points[-1][1])} after epoch {points[-1][0]}"
        colour = f"c{index % _NUM_COLOURS}"
        if len(points) == 1:
            at, value = points[0]
            mark = f'<circle class="dot {colour}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="4">'
            parts.append(f"{mark}<title>{escape(title)}</title></circle>")
        else:
            parts.append(f'<polyline class="line {colour}" points="{place}"><title>{escape(title)}</title></polyline>')
    return "".join([*parts, "</svg>"])


def _round_values(low: float, high: float) -> list[float]:
    """Round values between two bounds: three to seven."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if (high - low) / step <= 7)
    return [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _epochs(last: int) -> list[int]:
    """Epochs to label: round ones, at most ten, and the last one."""
    steps = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    step = next(step for step in steps if last / step <= 10)
    shown = [1, *range(step, last, step)] if step > 1 else list(range(1, last))
    return [*(epoch for epoch in shown if last - epoch >= step / 2), last]
