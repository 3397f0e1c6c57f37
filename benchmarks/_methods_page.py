"""The tables of docs/methods.md, from the files of results that the benchmarks of methods write."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks._pairs import PairedDifference, paired_difference
from benchmarks.averaging import LAST, Measured
from benchmarks.methods import AS_VIT, CONTROL, ELSEWHERE, KINDS
from search_spaces.recipes import describe_plugin

RESULTS = Path(__file__).with_name("results")
_HEAD = """\
| method | epochs | rate | validation, % | test, % | test, difference |
| --- | ---: | ---: | ---: | ---: | ---: |"""


def methods_table(name: str) -> str:
    """Markdown of the methods of one kind, best first, against their control.

    Args:
        name: `FILE:KIND`; the file `methods-FILE.json` in `results`, and a kind of `benchmarks.methods` or `elsewhere`,
            the curricula of other models, each below its own control.
    """
    file, _, kind = name.partition(":")
    groups = json.loads((RESULTS / f"methods-{file}.json").read_text(encoding="utf-8"))["groups"]
    by_topology = {group.rpartition(", ")[2]: content for group, content in groups.items()}
    if kind == "elsewhere":
        wanted = {topology: [arm.name for arm in arms] for topology, arms in ELSEWHERE.items()}
    else:
        wanted = {AS_VIT: [arm.name for arm in KINDS[kind]]}
    lines = [_HEAD]
    for topology, names in wanted.items():
        if topology in by_topology:
            control = "AdamW, cosine, nothing else" if topology == AS_VIT else f"`{topology}`, nothing else"
            lines += _rows(by_topology[topology], names, control)
    if len(lines) == 1:
        raise ValueError(f"a kind of methods must have results, but {kind} has none in methods-{file}.json.")
    return "\n".join(lines)


def _rows(group: Mapping[str, Any], names: list[str], control: str) -> list[str]:
    results = {name: entry["result"] for name, entry in group["arms"].items() if name in {CONTROL.name, *names}}
    plain = results.pop(CONTROL.name)
    differences = {name: paired_difference(result["test"], plain["test"]) for name, result in results.items()}
    best_first = sorted(results, key=lambda name: -differences[name].mean)
    return [
        _row(control, plain, ""),
        *(_row(name, results[name], _marked(differences[name])) for name in best_first),
    ]


def _row(name: str, result: Mapping[str, Any], difference: str) -> str:
    rate, tried = result["rate"], [float(one) for one in result["tried"]]
    edge = " (edge)" if difference and rate in (min(tried), max(tried)) else ""
    accuracies = " | ".join(f"{100 * fmean(result[part]):.1f}" for part in ("validation", "test"))
    return f"| {name} | {result['epochs']} | {rate:g}{edge} | {accuracies} | {difference}".rstrip() + " |"


def _marked(difference: PairedDifference) -> str:
    """Bold if the interval is above zero, italic if it is below."""
    text = difference.text(scale=100)
    if difference.low > 0:
        return f"**{text}**"
    return f"*{text}*" if difference.high < 0 else text


def noise_table(name: str) -> str:
    """Markdown of the epochs at which criteria stop a training with wrong labels.

    Args:
        name: The images; the file `noisy-labels-NAME.json` is in `results`.
    """
    content = json.loads((RESULTS / f"noisy-labels-{name}.json").read_text(encoding="utf-8"))
    lines = [
        "| the training ends at | epoch, mean (range) | test, % | against the end, points |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in content["rows"]:
        end, epoch, accuracy, difference = row.values()
        shown = f"`{end}`" if "(" in end and "oracle" not in end else end
        lines.append(f"| {shown} | {epoch} | {accuracy} | {difference}".rstrip() + " |")
    return "\n".join(lines)


def averages_table(name: str) -> str:
    """Markdown of what averages gain over the last checkpoint, by schedule and rate.

    Args:
        name: `IMAGES:EPOCH`; the file `averaging-IMAGES.json` is in `results`. The trainings end after this epoch.
    """
    images, _, epoch = name.partition(":")
    content = json.loads((RESULTS / f"averaging-{images}.json").read_text(encoding="utf-8"))
    by_place: dict[tuple[str, float], dict[str, dict[int, Measured]]] = {}
    for one in (Measured(**fields) for fields in content["measured"]):
        if one.stop_at == int(epoch):
            by_method = by_place.setdefault((one.schedule, one.factor), {})
            by_method.setdefault(one.method, {})[one.seed] = one
    places, last = sorted(by_place), describe_plugin(LAST)
    lines = [
        "| average | " + " | ".join(f"{schedule}, x {factor:g}" for schedule, factor in places) + " | passes |",
        "| --- |" + " ---: |" * (len(places) + 1),
    ]
    for method in by_place[places[0]]:
        cells = [_gain(by_place[place].get(method), by_place[place][last]) for place in places]
        passes = max(one.passes for place in places for one in by_place[place].get(method, {}).values())
        lines.append(f"| `{method}` | " + " | ".join(cells) + f" | {passes} |")
    return "\n".join(lines)


def _gain(averages: Mapping[int, Measured] | None, last: Mapping[int, Measured]) -> str:
    """The gain in points; of the last checkpoints themselves, their accuracy."""
    if averages is None:
        return ""
    if averages is last:
        return f"{100 * fmean(one.accuracy for one in last.values()):.1f} %"
    seeds = sorted(averages.keys() & last.keys())
    return _marked(paired_difference(*([group[seed].accuracy for seed in seeds] for group in (averages, last))))
