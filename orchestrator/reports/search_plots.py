"""The figures of a search: its history, its front, what mattered, and all points at once.

A figure in which there is nothing to see, such as one with a single point or with equal values, is not drawn. Each
function returns whether it drew.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.reports.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SOFT_INK,
    legend_below,
    name_points,
    new_figure,
    whole_numbers,
    write_title,
)
from plugins.metrics.deciding import DecidingMetric

_COSTS = {"parameters": "parameters", "macs": "multiply-accumulates", "latency_ms": "latency"}
_MAX_LABELS = 40
_MAX_AXES = 9
_INCHES_PER_HEAD = 0.9
"""Names below axes are slanted if they have less room."""
_FEW, _LOG_FROM = 3, 8
"""Up to this many numbers are all labelled; a scale is logarithmic from this ratio of its limits."""
_LABEL_OFFSETS = ((6, 4), (6, -11), (-6, 4), (-6, -11))
_LABEL_SIZE = (8.0, 11.0)
"""Width per character and height of a label in points of its figure."""


class SearchedTrial(NamedTuple):
    """A trial in the figures of its search."""

    number: int
    value: float | None
    """The metric that decides; `None` if the trial failed."""
    costs: Mapping[str, float]
    """What its model costs: `parameters`, `macs` or `latency_ms`."""
    point: Mapping[str, Any]
    """What was sampled, by name."""


def metric_against_cost(
    trials: Sequence[SearchedTrial], best: int, metric: DecidingMetric, path: Path, *, cost: str = "parameters"
) -> bool:
    """Draw the metric against a cost, with the Pareto front; points have their trial's number.

    Args:
        trials: The trials.
        best: Number of the best trial, which gets a star.
        metric: The metric that decides.
        path: The file to write.
        cost: Name of the cost in `SearchedTrial.costs`.
    """
    points = [
        (trial.number, trial.costs[cost], trial.value)
        for trial in trials
        if cost in trial.costs and trial.value is not None and math.isfinite(trial.value)
    ]
    if len({size for _, size, _ in points}) < 2:
        return False
    label, divisor = _cost_axis(cost, max(size for _, size, _ in points))
    shown = [(number, size / divisor, _shown(value, metric)) for number, size, value in points]
    front = _front(shown, larger_is_better=metric.direction == "maximize")
    with new_figure(path, width=7.0) as axes:
        plain = [point for point in shown if point[0] != best]
        marks = axes.scatter(*_columns(plain), s=34, color=BLUE, alpha=0.75, linewidth=0, zorder=3, label="trials")
        axes.plot(*_columns(front), color=GREEN, linewidth=1.6, drawstyle="steps-post", zorder=2, label="Pareto front")
        chosen = [point for point in shown if point[0] == best]
        star = axes.scatter(
            *_columns(chosen), s=190, marker="*", color=ORANGE, edgecolor="white", zorder=4, label=f"best: trial {best}"
        )
        texts = {
            number: f"trial {number}: {metric.text(value)}, {_cost_text(cost, size)}" for number, size, value in points
        }
        name_points(marks, [texts[number] for number, _, _ in plain])
        name_points(star, [texts[number] for number, _, _ in chosen])
        axes.margins(0.08)
        axes.set_xlabel(label)
        axes.set_ylabel(_axis(metric))
        on_front = {number for number, _, _ in front}
        _label(axes, sorted(shown, key=lambda point: (point[0] != best, point[0] not in on_front, point[0])))
        title = f"{metric.words[0].upper()}{metric.words[1:]} and {_COSTS.get(cost, cost)}"
        write_title(axes, title, _front_text(front, metric))
        legend_below(axes)
    return True


def search_history(
    trials: Sequence[SearchedTrial], metric: DecidingMetric, path: Path, *, base: frozenset[int] = frozenset()
) -> bool:
    """Draw each trial's metric in the order of the trials, and the best so far.

    Args:
        trials: The trials by number, those that failed as well.
        metric: The metric that decides.
        path: The file to write.
        base: Numbers of the trials with the base recipe.
    """
    found = [(trial.number, trial.value) for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    if len({value for _, value in found}) < 2:
        return False
    values = [(number, _shown(value, metric)) for number, value in found]
    so_far, best = [], None
    for number, value in found:
        best = value if best is None or metric.score(value) > metric.score(best) else best
        so_far.append((number, _shown(best, metric)))
    with new_figure(path, width=7.0) as axes:
        for label, colour, chosen in (
            ("base recipe", GREY, [pair for pair in values if pair[0] in base]),
            ("sampled recipe", BLUE, [pair for pair in values if pair[0] not in base]),
        ):
            if chosen:
                marks = axes.scatter(*_pairs(chosen), s=34, color=colour, linewidth=0, zorder=3, label=label)
                texts = {number: f"trial {number}: {metric.text(value)}" for number, value in found}
                name_points(marks, [texts[number] for number, _ in chosen])
        axes.plot(*_pairs(so_far), color=ORANGE, drawstyle="steps-post", zorder=2, label="best so far")
        failed = [trial.number for trial in trials if trial.value is None]
        if failed:
            bottom = axes.get_ylim()[0]
            axes.scatter(failed, [bottom] * len(failed), marker="x", color=SOFT_INK, zorder=3, label="failed")
        axes.set_xlabel("trial")
        whole_numbers(axes)
        axes.set_ylabel(_axis(metric))
        last = max(number for number, value in so_far if value == so_far[-1][1])
        first = min(number for number, value in so_far if value == so_far[-1][1])
        since = f", not beaten by the {last - first} trials after it" if last > first else ""
        text = metric.text(best) if best is not None else ""
        write_title(axes, "History of the search", f"best: {text} by trial {first}{since}")
        legend_below(axes)
    return True


def recipe_importance(shares: Mapping[str, float], num_trials: int, metric: DecidingMetric, path: Path) -> bool:
    """Draw how much each searched field mattered, largest first.

    Args:
        shares: Importances by name; they sum to 1.
        num_trials: Number of trials they are estimated from.
        metric: The metric that decides.
        path: The file to write.
    """
    if len(shares) < 2 or not any(shares.values()):
        return False
    names = sorted(shares, key=lambda name: shares[name])
    with new_figure(path, width=7.0, height=1.9 + 0.3 * len(names)) as axes:
        values = [100 * shares[name] for name in names]
        axes.barh(range(len(names)), values, color=BLUE, height=0.62, zorder=3)
        axes.set_yticks(range(len(names)), [_plain(name) for name in names])
        for place, value in enumerate(values):
            style = {"textcoords": "offset points", "va": "center", "fontsize": 9, "color": SOFT_INK}
            axes.annotate(f"{value:.0f} %", (value, place), xytext=(5, 0), **style)
        axes.set_xlim(0, max(values) * 1.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share of the importance (%), by PED-ANOVA")
        caution = "; a rough estimate" if num_trials < 10 * len(names) else ""
        write_title(axes, f"What mattered for validation {metric.words}", f"over {num_trials} trials{caution}")
    return True


def parallel_coordinates(trials: Sequence[SearchedTrial], best: int, metric: DecidingMetric, path: Path) -> bool:
    """Draw each trial as a line through everything that differs between trials, coloured by its metric.

    Args:
        trials: The trials.
        best: Number of the best trial, whose line is thick.
        metric: The metric that decides.
        path: The file to write.
    """
    usable = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    names = dict.fromkeys(name for trial in usable for name in trial.point)
    scales = {name: _Scale.of([trial.point[name] for trial in usable if name in trial.point]) for name in names}
    varied = [name for name, scale in scales.items() if scale is not None and all(name in one.point for one in usable)]
    varied = varied[:_MAX_AXES]
    if len(usable) < 3 or not varied or len({trial.value for trial in usable}) < 2:
        return False
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    values = {trial.number: _shown(trial.value or 0.0, metric) for trial in usable}
    result = _Scale.of(list(values.values()))
    assert result is not None
    norm = Normalize(min(values.values()), max(values.values()))
    colours = colormaps["viridis" if metric.direction == "maximize" else "viridis_r"]
    with new_figure(path, width=1.6 + 1.25 * (len(varied) + 1), height=4.6) as axes:
        for trial in sorted(usable, key=lambda one: (one.number == best, metric.score(one.value or 0.0))):
            heights = [scale.height(trial.point[name]) for name in varied if (scale := scales[name]) is not None]
            style = {"linewidth": 3.0, "zorder": 4} if trial.number == best else {"linewidth": 1.3, "alpha": 0.75}
            colour = ORANGE if trial.number == best else colours(norm(values[trial.number]))
            axes.plot([*heights, result.height(values[trial.number])], color=colour, **style)
        for place, scale in enumerate([*(scales[name] for name in varied), result]):
            assert scale is not None
            axes.axvline(place, color=GREY, linewidth=1.0, zorder=1)
            for height, text in scale.ticks():
                box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.6}
                place_of_text = {"textcoords": "offset points", "xytext": (4, 0), "va": "center"}
                axes.annotate(text, (place, height), bbox=box, fontsize=8, color=INK, zorder=6, **place_of_text)
        heads = [*(_plain(name).replace(" ", "\n", 1) for name in varied), _axis(metric).replace(" ", "\n", 1)]
        is_narrow = axes.figure.get_figwidth() < _INCHES_PER_HEAD * len(heads)
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if is_narrow else {}
        axes.set_xticks(range(len(heads)), [one.replace("\n", " ") for one in heads] if is_narrow else heads, **slanted)
        axes.set_yticks([])
        axes.set_xlim(-0.1, len(varied) + 0.55)
        axes.spines[["left", "bottom"]].set_visible(False)
        axes.grid(visible=False)
        detail = f"one line per trial, brighter is better; thick: trial {best}, the best"
        write_title(axes, "All trials", detail)
    return True


def averaging_gains(gains: Sequence[tuple[str, float]], metric: DecidingMetric, path: Path) -> bool:
    """Draw the gain of each average over the last checkpoint, best first; at most 20.

    Args:
        gains: Method with its settings, and its gain, by which it is better if positive.
        metric: The metric that decides.
        path: The file to write.
    """
    if len(gains) < 2 or len({gain for _, gain in gains}) < 2:
        return False
    factor = 100 if metric.is_fraction else 1
    best_first = sorted(gains, key=lambda pair: -pair[1])
    rows = best_first[:20][::-1]
    with new_figure(path, width=7.4, height=1.9 + 0.26 * len(rows)) as axes:
        axes.axvline(0, color=GREY, linewidth=1.2, zorder=1)
        for place, (name, gain) in enumerate(rows):
            colour = ORANGE if place == len(rows) - 1 else BLUE
            axes.plot([0, factor * gain], [place, place], color=colour, linewidth=1.6, alpha=0.6, zorder=2)
            name_points(
                axes.scatter([factor * gain], [place], s=40, color=colour, zorder=3), [f"{name}: {factor * gain:+.2f}"]
            )
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.1)
        unit = f"points of {metric.words}" if metric.is_fraction else metric.words
        axes.set_xlabel(f"gain over the last checkpoint ({unit}, validation)")
        more = f"; {len(gains) - len(rows)} worse ones are not shown" if len(gains) > len(rows) else ""
        write_title(
            axes, "Averages of checkpoints", f"best: {best_first[0][0]}, {factor * best_first[0][1]:+.2f}{more}"
        )
    return True


class _Scale(NamedTuple):
    """Places values of one kind between 0 and 1."""

    values: tuple[Any, ...]
    """Distinct values in order."""
    is_number: bool
    is_log: bool

    @classmethod
    def of(cls, values: Sequence[Any]) -> "_Scale | None":
        """The scale of these values; `None` if they are all equal."""
        distinct = list(dict.fromkeys(values))
        if len(distinct) < 2:
            return None
        if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in distinct):
            return cls(tuple(sorted(distinct, key=str)), False, False)
        numbers = sorted(distinct)
        return cls(tuple(numbers), True, numbers[0] > 0 and numbers[-1] >= _LOG_FROM * numbers[0])

    def height(self, value: Any) -> float:
        if not self.is_number:
            return self.values.index(value) / (len(self.values) - 1)
        limits = (self.values[0], self.values[-1], value)
        low, high, value = (math.log(one) if self.is_log else one for one in limits)
        return float((value - low) / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and texts of the labels."""
        if not self.is_number:
            return [(self.height(one), _short_option(one)) for one in self.values]
        if len(self.values) <= _FEW:
            return [(self.height(one), f"{one:.3g}") for one in self.values]
        low, high = self.values[0], self.values[-1]
        middle = math.sqrt(low * high) if self.is_log else (low + high) / 2
        return [(self.height(one), f"{one:.3g}") for one in (low, middle, high)]


def _short_option(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 16 else f"{text[:6]}…{text[-8:]}"


def _front(points: Sequence[tuple[int, float, float]], *, larger_is_better: bool) -> list[tuple[int, float, float]]:
    """The points that no smaller one equals or beats, by size."""
    sign = 1 if larger_is_better else -1
    front: list[tuple[int, float, float]] = []
    for point in sorted(points, key=lambda one: (one[1], -sign * one[2])):
        if not front or sign * point[2] > sign * front[-1][2]:
            front.append(point)
    return front


def _cost_axis(cost: str, largest: float) -> tuple[str, float]:
    """Label of the axis of a cost, and the divisor of its values."""
    if cost == "latency_ms":
        return "latency (ms)", 1.0
    for size, word in ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands")):
        if largest >= size:
            return f"{_COSTS.get(cost, cost)} ({word})", size
    return _COSTS.get(cost, cost), 1.0


def _cost_text(cost: str, value: float) -> str:
    if cost == "latency_ms":
        return f"{value:.3g} ms"
    return f"{value:,.0f} {_COSTS.get(cost, cost)}"


def _front_text(front: Sequence[tuple[int, float, float]], metric: DecidingMetric) -> str:
    if len(front) == 1:
        return f"trial {front[0][0]} is both the cheapest and the best"
    numbers = ", ".join(str(number) for number, _, _ in front[:8]) + (", …" if len(front) > 8 else "")
    return f"no cheaper model has a better validation {metric.words} than the trials {numbers}"


def _label(axes: Any, points: Sequence[tuple[int, float, float]]) -> None:
    """Write trial numbers beside points, the most important first, unless they would cover another number."""
    axes.autoscale_view()
    scale = axes.figure.dpi / 72
    taken: list[tuple[float, float, float, float]] = []
    for number, x, y in points[:_MAX_LABELS]:
        left, bottom = axes.transData.transform((x, y)) / scale
        width, height = _LABEL_SIZE[0] * len(str(number)), _LABEL_SIZE[1]
        for right, up in _LABEL_OFFSETS:
            start = left + right - (width if right < 0 else 0)
            box = (start, bottom + up, start + width, bottom + up + height)
            if not any(_overlap(box, other) for other in taken):
                taken.append(box)
                style = {"textcoords": "offset points", "fontsize": 8, "color": SOFT_INK, "zorder": 5}
                align = "right" if right < 0 else "left"
                axes.annotate(str(number), (x, y), xytext=(right, up), ha=align, **style)
                break


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _shown(value: float, metric: DecidingMetric) -> float:
    return 100 * value if metric.is_fraction else value


def _axis(metric: DecidingMetric) -> str:
    return f"validation {metric.words}{' (%)' if metric.is_fraction else ''}"


def _plain(name: str) -> str:
    return name.removeprefix("recipe.").replace("_", " ").replace(".", " ")


def _columns(points: Sequence[tuple[int, float, float]]) -> tuple[list[float], list[float]]:
    return [x for _, x, _ in points], [y for _, _, y in points]


def _pairs(points: Sequence[tuple[int, float]]) -> tuple[list[float], list[float]]:
    return [float(x) for x, _ in points], [y for _, y in points]
