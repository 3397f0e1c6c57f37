"""The tables of docs/methods.md, from the files that `python -m benchmarks.methods --json` writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks._pairs import PairedDifference, paired_difference
from benchmarks.methods import AS_VIT, CONTROL, ELSEWHERE, KINDS

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
