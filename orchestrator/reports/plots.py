"""The figures of a study as PNG or SVG files. Only Matplotlib's object interface is used: no window, no global state.

Functions import matplotlib lazily, because the import takes half a second and most commands draw nothing.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.reports.drawing import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SOFT_INK,
    legend_below,
    name_points,
    new_figure,
    plain_log,
    whole_numbers,
    write_title,
)
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.protocols import CurvePoint

if TYPE_CHECKING:
    from orchestrator.evaluation.verdict import EarlyJudgement, Verdict


_STOP = {"color": INK, "edgecolor": "white", "linewidth": 0.8}
"""The mark on a learning curve at which a criterion ends it."""


class TauInterval(Protocol):
    """Kendall's tau with its interval, such as `orchestrator.evaluation.verdict.Interval`."""

    @property
    def value(self) -> float | None: ...

    @property
    def low(self) -> float | None: ...

    @property
    def high(self) -> float | None: ...


def scatter_score_against_accuracy(
    proxy: str,
    scores: Sequence[float],
    accuracy: Sequence[float],
    tau: TauInterval,
    path: Path,
    *,
    target: str = "validation accuracy after training",
    unit: str = "fraction",
) -> None:
    """Draw accuracy against one proxy's score, one point per topology; the title counts scores that are not finite.

    Args:
        proxy: The proxy's name.
        scores: One score per topology.
        accuracy: Accuracies of the same topologies.
        tau: Tau between scores and accuracies, oriented so that 1 is a perfect ranking.
        path: The file to write.
        target: Description of `accuracy`, such as `c100_kd_acc (published)`.
        unit: Unit of `accuracy`; `fraction` is drawn in percent, other units are labelled as given, such as `%`.
    """
    factor, unit = (100, "%") if unit == "fraction" else (1, unit)
    pairs = [(score, factor * truth) for score, truth in zip(scores, accuracy, strict=True) if math.isfinite(score)]
    crowd = len(pairs) > 60
    with new_figure(path) as axes:
        style = {"s": 30, "alpha": 0.7} if crowd else {"s": 46, "alpha": 0.8}
        axes.scatter(*_columns(pairs), color=BLUE, edgecolor="white", linewidth=0.8, zorder=3, **style)
        positive = [score for score, _ in pairs if score > 0]
        if len(positive) == len(pairs) > 1 and max(positive) > 50 * min(positive):
            axes.set_xscale("log")
        axes.set_xlabel(f"{proxy} (training-free score)")
        axes.set_ylabel(f"{target} ({unit})")
        left_out = f", {len(scores) - len(pairs)} without a finite score" if len(pairs) < len(scores) else ""
        write_title(axes, f"Does {proxy} predict accuracy?", f"{_tau_text(tau)} over {len(pairs)} topologies{left_out}")


def correlation_summary(
    verdicts: "Sequence[Verdict]", path: Path, *, baseline: str = "params", subject: str = "accuracy"
) -> None:
    """Draw every proxy's tau with its interval, best first, and the baseline's interval as a band.

    A green star marks a proxy that beats the baseline. The paired difference decides this, not whether the intervals
    overlap. An open diamond is the tau given the parameter count.

    Args:
        verdicts: One per proxy, in drawing order.
        path: The file to write.
        baseline: The proxy whose interval is drawn as a band.
        subject: The predicted quantity for the title, such as `c100_kd_acc of pit`.
    """
    against = next((row.tau for row in verdicts if row.proxy == baseline), None)
    with new_figure(path, width=7.6, height=1.9 + 0.25 * max(len(verdicts), 2)) as axes:
        if against is not None and against.value is not None:
            if against.low is not None and against.high is not None:
                axes.axvspan(against.low, against.high, color=ORANGE, alpha=0.1, linewidth=0, zorder=0)
            axes.axvline(against.value, color=ORANGE, linewidth=1.2, zorder=1)
        axes.axvline(0, color=GREY, linewidth=1.0, zorder=1)
        for place, row in enumerate(verdicts):
            _interval_line(axes, place, row, baseline)
        axes.set_yticks(range(len(verdicts)), [row.proxy for row in verdicts])
        axes.set_ylim(max(len(verdicts), 1) - 0.4, -0.6)
        axes.set_xlim(right=1.03)
        axes.set_xlabel("Kendall's tau-b with accuracy (1: a perfect ranking)")
        axes.grid(axis="y", visible=False)
        winners = sum(row.beats(baseline) for row in verdicts)
        detail = f"{winners} of the {len(verdicts) - 1} others beat {baseline}" if against is not None else ""
        write_title(axes, f"Which scores predict {subject}?", detail)
        _summary_legend(axes, verdicts, baseline)


def _interval_line(axes: Any, place: int, row: "Verdict", baseline: str) -> None:
    """Draw one proxy of the summary: its interval, its tau, and its tau given the parameter count."""
    if row.tau.value is None:
        style = {"textcoords": "offset points", "va": "center", "fontsize": 8, "color": SOFT_INK}
        axes.annotate("no tau", (0, place), xytext=(6, 0), **style)
        return
    wins = row.beats(baseline)
    colour = GREEN if wins else ORANGE if row.proxy == baseline else BLUE
    if row.tau.low is not None and row.tau.high is not None:
        axes.plot([row.tau.low, row.tau.high], [place, place], color=colour, linewidth=2.2, alpha=0.55, zorder=2)
    marker, size = ("*", 130) if wins else ("o", 34)
    axes.scatter([row.tau.value], [place], s=size, marker=marker, color=colour, edgecolor="white", zorder=4)
    if row.partial_tau is not None and row.partial_tau.value is not None:
        axes.scatter(
            [row.partial_tau.value],
            [place],
            s=22,
            marker="D",
            facecolor="white",
            edgecolor=GREY,
            linewidth=1,
            zorder=3,
        )


def _summary_legend(axes: Any, verdicts: "Sequence[Verdict]", baseline: str) -> None:
    """Add a legend of the marks that are drawn, below the axes."""
    from matplotlib.lines import Line2D

    def mark(label: str, marker: str, size: float, colour: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, markersize=size, color=colour, label=label, **style)

    marks = []
    if any(row.proxy == baseline for row in verdicts):
        marks.append(mark(f"{baseline} (band: its interval)", "o", 6, ORANGE))
    if any(row.beats(baseline) for row in verdicts):
        marks.append(mark(f"beats {baseline} (paired)", "*", 10, GREEN))
    if any(row.proxy != baseline and not row.beats(baseline) for row in verdicts):
        marks.append(mark("not shown to beat it", "o", 6, BLUE))
    if any(row.partial_tau is not None and row.partial_tau.value is not None for row in verdicts):
        marks.append(mark("tau given params", "D", 5, GREY, markerfacecolor="white"))
    if marks:
        legend_below(axes, ncols=len(marks), handles=marks, handletextpad=0.3, columnspacing=1.4)


def agreement_over_epochs(judgement: "EarlyJudgement", path: Path, *, threshold: float = 0.8) -> None:
    """Draw how well the ranking of trials at each epoch agrees with the final ranking, with the recommended rungs.

    Args:
        judgement: Tau by epoch.
        path: The file to write.
        threshold: The smallest tau of a reliable ranking, drawn as a line.
    """
    points = [(row.epoch, row.tau) for row in judgement.epochs]
    known = [(epoch, tau.value) for epoch, tau in points if tau.value is not None]
    band = [(epoch, tau.low, tau.high) for epoch, tau in points if tau.low is not None and tau.high is not None]
    with new_figure(path, width=7.0) as axes:
        if band:
            epochs, lows, highs = zip(*band, strict=True)
            axes.fill_between(epochs, lows, highs, color=BLUE, alpha=0.15, linewidth=0, label="interval")
        axes.plot(*_columns(known), color=BLUE, marker="o" if len(known) < 30 else None, markersize=4, label="tau")
        axes.axhline(threshold, color=GREY, linewidth=1.2, linestyle="--", label=f"reliable from {threshold:g}")
        for number, epoch in enumerate(judgement.rungs):
            axes.axvline(epoch, color=ORANGE, linewidth=1.4, label="rung" if number == 0 else None)
        axes.set_xlabel("epoch")
        whole_numbers(axes)
        axes.set_ylabel("Kendall's tau-b with the final ranking")
        axes.set_ylim(min([0.0, *(low for _, low, _ in band), *(value for _, value in known)]) - 0.03, 1.03)
        rungs = ", ".join(map(str, judgement.rungs))
        advice = (
            f"compare trials after {rungs} of {len(points)} epochs" if rungs else "no epoch before the last is reliable"
        )
        write_title(axes, "How early can a trial be judged?", advice)
        legend_below(axes)


def learning_curves(
    curves: Mapping[str, Sequence[CurvePoint]],
    path: Path,
    *,
    metric: DecidingMetric = ACCURACY,
    stops: Mapping[str, int] | None = None,
) -> None:
    """Draw a validation metric and both losses over epochs, one colour per trial.

    Args:
        curves: Learning curves by name, best first; there are eight distinct colours.
        path: The file to write.
        metric: The metric, which all points have. For `loss`, the accuracy is drawn.
        stops: Epoch at which a stopping criterion ends a curve, by name; marked on it.
    """
    metric = ACCURACY if metric.key == "val_loss" else metric
    factor, name_of_metric = (100 if metric.is_fraction else 1), f"validation {metric.words}"

    def value_of(point: CurvePoint) -> float:
        return point.val_accuracy if metric.key == ACCURACY.key else point.metrics[metric.key]

    with new_figure(path, columns=2, width=10.0) as (left, right):
        for index, (name, curve) in enumerate(curves.items()):
            style = {"color": CYCLE[index % len(CYCLE)], "linewidth": 1.8, "marker": "o" if len(curve) == 1 else None}
            epochs = [point.epoch for point in curve]
            (line,) = left.plot(epochs, [factor * value_of(point) for point in curve], label=name, **style)
            (losses,) = right.plot(epochs, [point.val_loss for point in curve], **style)
            name_points(line, [name])
            name_points(losses, [name])
            for point in curve:
                if point.epoch == (stops or {}).get(name):
                    mark = left.scatter([point.epoch], [factor * value_of(point)], marker="X", s=60, zorder=4, **_STOP)
                    name_points(mark, [f"{name}: stopped after epoch {point.epoch}"])
            right.plot(epochs, [point.train_loss for point in curve], **{**style, "linewidth": 1.0}, linestyle=":")
        values = [value_of(point) for curve in curves.values() for point in curve]
        reached = f"best epoch: {metric.text(max(values, key=metric.score))}" if values else "no epoch was finished"
        reached += "; crosses: where the criterion stops" if stops else ""
        write_title(left, name_of_metric[0].upper() + name_of_metric[1:], reached)
        write_title(right, "Loss", "solid: validation, dotted: training")
        left.set_ylabel(name_of_metric + (" (%)" if metric.is_fraction else ""))
        right.set_ylabel("cross-entropy (nats)")
        if any(point.val_loss > 0 for curve in curves.values() for point in curve):
            right.set_yscale("log")
            plain_log(right.yaxis)
        for axes in (left, right):
            axes.set_xlabel("epoch")
            whole_numbers(axes)
        if curves:
            left.legend(loc="lower right", ncols=2 if len(curves) > 4 else 1, frameon=False)


def growth(family: Sequence[Mapping[str, Any]], proxies: Sequence[str], path: Path) -> None:
    """Draw size, depth and width over the growth steps, and each proxy's score of each step.

    Args:
        family: One mapping per step: `step`, `parameters`, `width`, `depths` and `scores` by proxy.
        proxies: Names of the proxies in `scores`.
        path: The file to write.
    """
    in_millions = any(row["parameters"] >= 1e6 for row in family)
    unit = "millions" if in_millions else "thousands"
    parameters = [row["parameters"] / (1e6 if in_millions else 1e3) for row in family]
    with new_figure(path, columns=2, width=10.0) as (left, right):
        steps = [row["step"] for row in family]
        left.plot(steps, [sum(row["depths"]) for row in family], color=BLUE, marker="o", label="depth (blocks)")
        left.set_xlabel("growth step")
        left.set_ylabel("depth (blocks)", color=BLUE)
        whole_numbers(left)
        other = left.twinx()
        other.plot(steps, [row["width"] for row in family], color=ORANGE, marker="s", label="width (channels)")
        other.set_ylabel("width (channels)", color=ORANGE)
        other.spines["top"].set_visible(False)
        ended = (
            f"{parameters[0]:.3g} to {parameters[-1]:.3g} {unit.removesuffix('s')} parameters"
            if family
            else "no step was taken"
        )
        write_title(left, "Growth", ended)
        for index, proxy in enumerate(proxies):
            first = next((row["scores"][proxy] for row in family if row["scores"][proxy]), math.nan)
            relative = [row["scores"][proxy] / first for row in family]
            right.plot(parameters, relative, color=CYCLE[index % len(CYCLE)], marker="o", label=proxy)
        right.axhline(1.0, color=GREY, linewidth=1.0, linestyle="--", zorder=1)
        right.set_xlabel(f"parameters ({unit})")
        right.set_ylabel("score, as a multiple of the first step's")
        write_title(right, "Scores of the chosen step", "training-free, smaller network of the same shape")
        if proxies and family:
            right.legend(frameon=False)


def stopping_front(
    points: Sequence[tuple[float, float]],
    chosen: int,
    path: Path,
    *,
    metric: DecidingMetric = ACCURACY,
    names: Sequence[str] = (),
) -> None:
    """Draw epochs saved and the loss of a metric for each stopping criterion, the Pareto front and the chosen one.

    Args:
        points: For each criterion, epochs saved as a fraction, and what is lost of the metric.
        chosen: Index of the chosen criterion.
        path: The file to write.
        metric: The metric.
        names: Names of the criteria, for the titles of their points.
    """
    percent = [(100 * saved, lost * (100 if metric.is_fraction else 1)) for saved, lost in points]
    front: list[tuple[float, float]] = []
    for saved, lost in sorted(percent, key=lambda point: (-point[0], point[1])):
        if not front or lost < front[-1][1]:
            front.append((saved, lost))
    with new_figure(path) as axes:
        marks = axes.scatter(
            *_columns(percent), s=30, color=GREY, alpha=0.7, linewidth=0, label="other criteria", zorder=2
        )
        if names:
            name_points(marks, [f"{name}: {_saving(*pair)}" for name, pair in zip(names, percent, strict=True)])
        axes.plot(*_columns(front), color=BLUE, marker="o", markersize=5, label="Pareto front", zorder=3)
        saved, lost = percent[chosen]
        star = axes.scatter(
            [saved], [lost], s=190, marker="*", color=ORANGE, edgecolor="white", label="chosen", zorder=4
        )
        name_points(star, [f"chosen: {names[chosen] + ': ' if names else ''}{_saving(saved, lost)}"])
        axes.set_xlabel("epochs saved (% of the budget, mean over the recorded curves)")
        axes.set_ylabel(f"{metric.words} lost" + (" (percentage points)" if metric.is_fraction else ""))
        axes.margins(0.08)
        write_title(
            axes,
            "Stopping early",
            f"chosen: saves {saved:.1f} % of the epochs for {metric.amount(points[chosen][1])}",
        )
        axes.legend(loc="upper left", frameon=False)


def _saving(saved: float, lost: float) -> str:
    return f"{saved:.0f} % of the epochs saved, {lost:.3g} lost"


def _tau_text(tau: TauInterval) -> str:
    if tau.value is None:
        return "Kendall's tau is undefined"
    interval = "" if tau.low is None or tau.high is None else f" (interval {tau.low:.2f} to {tau.high:.2f})"
    return f"Kendall's tau {tau.value:.2f}{interval}"


def _columns(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [first for first, _ in pairs], [second for _, second in pairs]
