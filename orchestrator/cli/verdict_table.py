"""The verdict on training-free scores, as a table and sentences for people."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from orchestrator.cli.joint_table import AFTER_TRAINING, joint_verdict
from orchestrator.tracking.names import count_text

_FEW_TOPOLOGIES = 20
_TOO_FEW_TOPOLOGIES = 10
"""With fewer, intervals are so wide that one line says all that is known."""
_COMBINED = "combined."
_UNBOUNDED = 10_000
_NO_TAU: Mapping[str, Any] = {"value": None}
Row = Mapping[str, Any]


def correlation(result: Mapping[str, Any]) -> RenderableType:
    """A table of the proxies' tau, best first, then remarks on winners, combinations, transfers and rungs.

    Scores that train for a few steps have a table of their own, with their cost. With several ground truths, the joint
    verdict takes its place.
    """
    if result.get("further"):
        return joint_verdict(result)
    rows, baselines = result["proxies"], result["baselines"]
    truth, seeds = result["truth"], result["num_seeds"]
    if all(row["tau"]["value"] is None for row in rows):
        notes = "; ".join(note for _, note in _shared_notes(rows))
        return _remark(f"No verdict on {len(rows)} scores, from {result['num_topologies']} topologies: {notes}.")
    ceiling = result.get("ceiling")
    free = [row for row in rows if row.get("training_macs") is None]
    trained = [row for row in rows if row.get("training_macs") is not None]
    if result.get("has_no_verdict"):
        return _remark(_no_verdict(result))
    parts: list[RenderableType] = [
        _remark(
            f"{truth['target']} of {truth['name']}: {result['num_topologies']} topologies, "
            f"{seeds} {'seed' if seeds == 1 else 'seeds'}, {100 * result['confidence']:g} % intervals"
        ),
        *(_remark(line) for line in _limits(truth, ceiling)),
    ]
    for group, words in ((free, None), (trained, AFTER_TRAINING)):
        if group:
            parts += [_remark(words)] if words else []
            parts.append(_Verdicts(group, baselines, in_points=truth["unit"] == "fraction"))
    if result["num_topologies"] < _TOO_FEW_TOPOLOGIES:
        winners = _winners(rows, baselines[0])
        shown = f"{', '.join(winners)} {'is' if len(winners) == 1 else 'are'}" if winners else "no single score is"
        parts.append(
            _remark(
                f"{result['num_topologies']} topologies are too few for a verdict: {shown} shown to predict better "
                f"than {baselines[0]}. Train {_FEW_TOPOLOGIES} or more."
            )
        )
        return Group(*parts)
    parts += [
        *(_remark(f"{who}: {note}") for who, note in _shared_notes(rows)),
        *([_remark(_who_wins(free, baselines[0], result["confidence"], is_free=bool(trained)))] if free else []),
        *(_remark(line) for line in _reversed(rows, baselines)),
        *(_remark(_combination(row)) for row in rows if row["is_combination"]),
        *(_remark(_transfer(other)) for other in result["transfers"]),
    ]
    if result["num_topologies"] < _FEW_TOPOLOGIES:
        parts.append(
            _remark("The intervals are wide because there are few topologies; train more candidates for a verdict.")
        )
    if result["early"]:
        parts.append(_remark(result["early"]["advice"]))
    return Group(*parts)


def _no_verdict(result: Mapping[str, Any]) -> str:
    """The one line if the accuracies do not differ by more than chance."""
    return (
        f"These trainings differ by no more than chance: no verdict on {len(result['proxies'])} scores from "
        f"{result['num_topologies']} topologies. Train longer, use more validation images, or train each topology with "
        "several seeds (`repeats`)."
    )


def _limits(truth: Mapping[str, Any], ceiling: Mapping[str, Any] | None) -> list[str]:
    """What the accuracies can show: the epoch at which they were compared, and the tau of a perfect score."""
    found = []
    epoch, left_out = truth.get("epoch"), truth.get("num_left_out", 0)
    why = "without an accuracy at this epoch" if truth.get("kind") == "table" else "that ended earlier"
    behind = f"{left_out} topologies {why} are left out" if left_out else ""
    if epoch is not None:
        extra = f"; {behind}" if behind else ""
        found.append(
            f"Trainings ended at different epochs and are compared at epoch {epoch} of {truth['num_epochs']}{extra}."
        )
    elif behind:
        found.append(f"{behind}.")
    return found if ceiling is None else [*found, ceiling_text(ceiling)]


def ceiling_text(ceiling: Mapping[str, Any]) -> str:
    """The tau of a perfect score, and how it is known."""
    tau = tau_text(ceiling["tau"])
    if ceiling["source"] == "images":
        return (
            f"A perfect score would reach a tau of at least about {tau} for these very trainings (from the number of "
            "images). Other training seeds may change the ranking: `repeats` measures that."
        )
    how = (
        f"{ceiling['num_seeds']} trainings of each topology"
        if ceiling["num_seeds"] > 1
        else "the topologies that were trained several times"
    )
    return f"A perfect score would reach a tau of about {tau} (from {how})."


def tau_text(interval: Mapping[str, Any]) -> str:
    """A value with its interval: `0.820 [0.76, 0.86]`."""
    if interval["value"] is None:
        return "-"
    bounds = "" if interval["low"] is None else f" [{interval['low']:.2f}, {interval['high']:.2f}]"
    return f"{interval['value']:.3f}{bounds}"


class _Verdicts:
    """A table that omits its least important columns if the terminal is too narrow."""

    def __init__(self, rows: Sequence[Row], baselines: Sequence[str], *, in_points: bool) -> None:
        factor = 100 if in_points else 1
        first, train = baselines[0], any(row.get("training_macs") is not None for row in rows)
        self._rows = rows
        self._columns: dict[str, Callable[[Row], str]] = {
            "proxy": lambda row: row["proxy"],
            "tau-b": lambda row: tau_text(row["tau"]),
            **({"training MACs": lambda row: count_text(row["training_macs"])} if train else {}),
            f"minus {first}": lambda row: tau_text(row["minus"][first]) if first in row["minus"] else "(baseline)",
            "beats": lambda row: (
                "all" if row["beats_all"] and row["proxy"] not in baselines else ", ".join(row["beats"])
            ),
            "same size": lambda row: tau_text(row.get("same_size", {}).get("params", {}).get("tau", _NO_TAU)),
            "given params": lambda row: tau_text(row["partial_tau"]) if row["partial_tau"] else "-",
            "recall": lambda row: _number(row["top_recall"]["value"]),
            "regret (points)" if in_points else "regret": lambda row: _number(row["regret"]["value"], factor),
            "seed spread": lambda row: _number(row["seed_spread"]),
            "n": lambda row: str(row["num_topologies"]),
            "time (s)": lambda row: _number(row.get("wall_time_s")),
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names, unbounded = list(self._columns), options.update(max_width=_UNBOUNDED)
        count = len(names)
        while count > 2 and Measurement.get(console, unbounded, self._table(names[:count])).maximum > options.max_width:
            count -= 1
        yield self._table(names[:count])
        if count < len(names):
            yield _remark(f"(widen the terminal or use --format json to see: {', '.join(names[count:])})")

    def _table(self, names: Sequence[str]) -> Table:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in names:
            table.add_column(name, no_wrap=True)
        for row in self._rows:
            table.add_row(*(self._columns[name](row) for name in names))
        return table


def _shared_notes(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each note once, with the scores for which it holds."""
    by_note: dict[str, list[str]] = {}
    for row in rows:
        for note in filter(None, (row["note"] or "").split("; ")):
            by_note.setdefault(note, []).append(row["proxy"])
    return [
        ("all scores" if len(names) == len(rows) > 1 else ", ".join(names), note) for note, names in by_note.items()
    ]


def _remark(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))


def _winners(rows: Sequence[Row], baseline: str) -> list[str]:
    """The single scores that beat the baseline."""
    return [
        row["proxy"]
        for row in rows
        if baseline in row["minus"] and not row["is_combination"] and baseline in row["beats"]
    ]


def _who_wins(rows: Sequence[Row], baseline: str, confidence: float, *, is_free: bool) -> str:
    """Names the scores that beat the baseline, and states the chance of a wrong mark."""
    winners = _winners(rows, baseline)
    if not winners:
        return f"No {'training-free' if is_free else 'single'} score was shown to predict better than {baseline}."
    return (
        f"Shown to predict better than {baseline}: {', '.join(winners)}. The chance that any mark is wrong is at most "
        f"about {100 * (1 - confidence) / 2:g} %, over all scores together."
    )


def _reversed(rows: Sequence[Row], baselines: Sequence[str]) -> list[str]:
    """Names the scores that prefer worse topologies, unless counting does so as well on these accuracies."""
    below = [row["proxy"] for row in rows if row.get("below_zero") and not row["is_combination"]]
    if not below or set(below) & set(baselines):
        return []
    return [
        f"Shown to prefer worse topologies (tau below zero): {', '.join(below)}. If such a score is new, check its "
        "`direction`."
    ]


def _combination(row: Row) -> str:
    name = row["proxy"].removeprefix(_COMBINED)
    what = "Learned combination (judged out of fold)" if name == "learned" else f"Combined by {name}, without learning"
    return f"{what}: {_beats(row)}."


def _transfer(other: Mapping[str, Any]) -> str:
    where = f"{other['truth']['target']} of {other['truth']['name']}"
    row = next((row for row in other["proxies"] if row["is_combination"]), None)
    if row is None:
        return f"Learned combination on {where}: not available, because there are too few topologies to learn from."
    shared, total = len(other.get("shared", ())), other["truth"]["num_topologies"]
    too = f"{shared} of its {total} topologies are in the first table too: predicted by models that did not see them"
    apart = f" ({too})" if shared else ""
    return f"Learned combination on {where}{apart}: {_beats(row)}."


def _beats(row: Row) -> str:
    """The verdict in words; a score that was not shown to be better "does not beat" the baseline."""
    if row["tau"]["value"] is None:
        return f"no tau ({row['note']})"
    lost = [name for name in row["minus"] if name not in row["beats"] and row["minus"][name]["value"] is not None]
    first, difference = next(iter(row["minus"].items()))
    beaten = f"beats {' and '.join(row['beats'])}" if row["beats"] else ""
    unbeaten = f"does not beat {' or '.join(lost)}" if lost else ""
    verdict = ", ".join(part for part in (beaten, unbeaten) if part)
    return f"tau {tau_text(row['tau'])}, minus {first} {tau_text(difference)}: {verdict}"


def _number(value: float | None, factor: float = 1) -> str:
    return "-" if value is None else f"{factor * value:.3g}"
