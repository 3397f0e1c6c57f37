"""The tables of docs/methods.md, from the files of results that the benchmarks of methods write.

A table whose results are missing is one line with the command that measures them, so that the page is true at any time.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from benchmarks._pairs import PairedDifference, paired_difference
from benchmarks.averaging import LAST, Measured
from benchmarks.methods import AS_VIT, CONTROL, ELSEWHERE, KINDS
from search_spaces.recipes import describe_plugin
from vitsearch.tables import load as load_table

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
TABLES = FOLDER / "tables"
OPTIONS = {
    "digits": "--images digits",
    "cifar10": "--images CIFAR-10 --data CIFAR10",
    "noisy-digits": "--images digits --label-noise 0.4",
}
"""How `benchmarks.methods` measures the results of a file."""
_HEAD = """\
| method | epochs | rate | validation, % | test, % | test, difference |
| --- | ---: | ---: | ---: | ---: | ---: |"""


def results_of(name: str) -> dict[str, Any] | None:
    """The content of a file of results; `None` if nothing was measured."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def arms_of(images: str, topology: str = AS_VIT) -> dict[str, dict[str, Any]]:
    """The results of the arms of `methods-IMAGES.json` on a topology, by name; empty if nothing was measured."""
    content = results_of(f"methods-{images}") or {"groups": {}}
    for group, found in content["groups"].items():
        if group.endswith(f", {topology}"):
            return {name: entry["result"] for name, entry in found["arms"].items()}
    return {}


def not_measured(command: str) -> str:
    """The line in place of a table."""
    return f"Not measured yet: `python -m {command}`."


def methods_table(name: str) -> str:
    """Markdown of the methods of one kind, best first, against their control.

    Args:
        name: `FILE:KIND`; the file `methods-FILE.json` in `results`, and a kind of `benchmarks.methods` or `elsewhere`,
            the curricula of other models, each below its own control.
    """
    file, _, kind = name.partition(":")
    lines = []
    for topology, names in _arms_of_kind(kind).items():
        control = "AdamW, cosine, nothing else" if topology == AS_VIT else f"`{topology}`, nothing else"
        lines += _rows(arms_of(file, topology), names, control)
    if not lines:
        wanted = "curricula" if kind == "elsewhere" else kind
        return not_measured(
            f"benchmarks.methods {OPTIONS[file]} --kind {wanted} --json benchmarks/results/methods-{file}.json"
        )
    return "\n".join([_HEAD, *lines])


def _arms_of_kind(kind: str) -> dict[str, list[str]]:
    """Names of the arms of a kind by topology."""
    if kind == "elsewhere":
        return {topology: [arm.name for arm in arms] for topology, arms in ELSEWHERE.items()}
    return {AS_VIT: [arm.name for arm in KINDS[kind]]}


def _rows(arms: Mapping[str, Mapping[str, Any]], names: Iterable[str], control: str) -> list[str]:
    results = {name: arms[name] for name in names if name in arms}
    if not results or CONTROL.name not in arms:
        return []
    plain = arms[CONTROL.name]
    differences = {name: paired_difference(result["test"], plain["test"]) for name, result in results.items()}
    best_first = sorted(results, key=lambda name: -differences[name].mean)
    return [
        _row(control, plain, ""),
        *(_row(name, results[name], marked(differences[name])) for name in best_first),
    ]


def _row(name: str, result: Mapping[str, Any], difference: str) -> str:
    rate, tried = result["rate"], [float(one) for one in result["tried"]]
    edge = " (edge)" if difference and rate in (min(tried), max(tried)) else ""
    accuracies = " | ".join(f"{100 * fmean(result[part]):.1f}" for part in ("validation", "test"))
    return f"| {name} | {result['epochs']} | {rate:g}{edge} | {accuracies} | {difference}".rstrip() + " |"


def marked(difference: PairedDifference) -> str:
    """Bold if the interval is above zero, italic if it is below."""
    text = difference.text(scale=100)
    if difference.low > 0:
        return f"**{text}**"
    return f"*{text}*" if difference.high < 0 else text


def missing_arms(images: str) -> str:
    """Markdown of the methods that `methods-IMAGES.json` lacks."""
    missing = []
    for kind in (*KINDS, "elsewhere"):
        lacking = [
            name
            for topology, names in _arms_of_kind(kind).items()
            for name in names
            if name not in arms_of(images, topology)
        ]
        if lacking:
            missing.append(f"- {'curricula of other models' if kind == 'elsewhere' else kind}: {', '.join(lacking)}")
    return "\n".join(missing) or "Nothing."


def methods_count(images: str) -> str:
    """One sentence: how many methods were measured on images, and how many are shown to differ from plain training."""
    names = list(dict.fromkeys(name for kind in KINDS for names in _arms_of_kind(kind).values() for name in names))
    arms = arms_of(images)
    differences = [
        paired_difference(arms[name]["test"], arms[CONTROL.name]["test"])
        for name in names
        if name in arms and name != CONTROL.name
    ]
    better, worse = sum(one.low > 0 for one in differences), sum(one.high < 0 for one in differences)
    return f"{len(differences)} methods are measured: {better} shown to be better, {worse} shown to be worse."


def noise_table(name: str) -> str:
    """Markdown of the epochs at which criteria stop a training with wrong labels.

    Args:
        name: The images; the file `noisy-labels-NAME.json` is in `results`.
    """
    content = results_of(f"noisy-labels-{name}")
    if content is None:
        return not_measured(f"benchmarks.noisy_labels --json benchmarks/results/noisy-labels-{name}.json")
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
    by_place = averages_of(images, int(epoch))
    if not by_place:
        data = "" if images == "digits" else " --data CIFAR10"
        return not_measured(f"benchmarks.averaging{data} --json benchmarks/results/averaging-{images}.json")
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


def averages_of(images: str, epoch: int) -> dict[tuple[str, float], dict[str, dict[int, Measured]]]:
    """Averages of trainings that end after an epoch, by schedule and factor of the rate, then method, then seed."""
    content = results_of(f"averaging-{images}") or {"measured": []}
    by_place: dict[tuple[str, float], dict[str, dict[int, Measured]]] = {}
    for one in (Measured(**fields) for fields in content["measured"]):
        if one.stop_at == epoch:
            by_method = by_place.setdefault((one.schedule, one.factor), {})
            by_method.setdefault(one.method, {})[one.seed] = one
    return by_place


def _gain(averages: Mapping[int, Measured] | None, last: Mapping[int, Measured]) -> str:
    """The gain in points; of the last checkpoints themselves, their accuracy."""
    if averages is None:
        return ""
    if averages is last:
        return f"{100 * fmean(one.accuracy for one in last.values()):.1f} %"
    difference = average_difference(averages, last)
    return "" if difference is None else marked(difference)


def average_difference(averages: Mapping[int, Measured], others: Mapping[int, Measured]) -> PairedDifference | None:
    """The difference between two averages of the same trainings; `None` if they share fewer than two seeds."""
    seeds = sorted(averages.keys() & others.keys())
    if len(seeds) < 2:
        return None
    return paired_difference(*([group[seed].accuracy for seed in seeds] for group in (averages, others)))


def stopping_table(name: str) -> str:
    """Markdown of what stopping criteria save and lose on the curves of a table of trainings.

    Args:
        name: Name of the table; the file `stopping-NAME.json` is in `results`.
    """
    content = results_of(f"stopping-{name}")
    if content is None:
        return not_measured(
            f"benchmarks.stopping_rules --average lawa-3 --json benchmarks/results/stopping-{name}.json"
        )
    (first, *others) = content["rows"][0]
    lines = [f"| {first} | {' | '.join(others)} |", "| --- |" + " ---: |" * len(others)]
    lines += [f"| `{row[first]}` | {' | '.join(row[one] for one in others)} |" for row in content["rows"]]
    return "\n".join([f"{content['num_curves']} curves.", "", *lines])


def variance_table(name: str) -> str:
    """Markdown of what the validation accuracies of a table of trainings consist of.

    Args:
        name: Name of the table, whose card is in `benchmarks/tables`.
    """
    file = TABLES / f"{name}.card.yaml"
    if not file.is_file():
        return not_measured(f"benchmarks.tables make benchmarks/tables/{name}.yaml --data CIFAR10 --work FOLDER")
    card = yaml.safe_load(file.read_text(encoding="utf-8"))
    found = card["noise"]["val_accuracy"]
    count = f"{card['num_trainings']} of {card['num_planned']} trainings"
    if isinstance(found, str):
        return f"{count}: {found}"
    lines = ["| source | standard deviation, points [95 %] | share of the variance, % |", "| --- | ---: | ---: |"]
    for source, part in found.items():
        if source != "mean":
            deviation, low, high = (100 * part[key] for key in ("standard_deviation", "low", "high"))
            lines.append(f"| {source} | {deviation:.2f} [{low:.2f}, {high:.2f}] | {100 * part['share']:.0f} |")
    return "\n".join([f"{count}, mean validation accuracy {100 * found['mean']:.1f} %.", "", *lines])


def recipes_table(name: str) -> str:
    """Markdown of what the recipes of a table of trainings gain over its first one, paired over topologies.

    Args:
        name: Name of the table in `benchmarks/tables`. Trainings with seed 0 count.
    """
    table = load_table(TABLES / f"{name}.parquet")
    last = table.find(epoch="last", seed=0)
    ended = last[last["state"] == "complete"]
    accuracies = ended.pivot_table("val_accuracy", "topology", "recipe", observed=True).dropna()
    if len(accuracies) < 2 or len(accuracies.columns) < len(table.recipes):
        return "Fewer than two topologies have all recipes."
    first, *others = table.recipes
    differences = {one: paired_difference(accuracies[one], accuracies[first]) for one in others}
    lines = ["| recipe | differs by | validation, % | difference |", "| --- | --- | ---: | ---: |"]
    for one in sorted(others, key=lambda other: -differences[other].mean):
        lines.append(
            f"| `{one}` | {_change(table.recipes[first], table.recipes[one])} | "
            f"{100 * accuracies[one].mean():.1f} | {marked(differences[one])} |"
        )
    mean = f"`{first}` has {100 * accuracies[first].mean():.1f} %."
    return "\n".join([f"{len(accuracies)} topologies have all recipes; {mean}", "", *lines])


def _change(recipe: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What another recipe sets or leaves out."""
    added = [f"`{field}: {value}`" for field, value in other.items() if recipe.get(field) != value]
    left_out = [f"without `{field}: {value}`" for field, value in recipe.items() if field not in other]
    return ", ".join(added + left_out)


BLOCKS: dict[str, Callable[[str], str]] = {
    "methods": methods_table,
    "missing": missing_arms,
    "count": methods_count,
    "noise": noise_table,
    "averages": averages_table,
    "stopping-rules": stopping_table,
    "variance": variance_table,
    "recipes": recipes_table,
}
"""Tables by the first word of a block of the page; the rest is the argument."""
