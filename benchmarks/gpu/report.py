"""Turns the results of a run into a section of docs/performance.md."""

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.running import Finished, read_results

Row = Mapping[str, Any]
BEGIN, END = "<!-- made by python -m benchmarks.gpu report -->", "<!-- end -->"
NEVER_RUN = (
    "This section will give the figures of `make gpu`, but it has not been run on a GPU yet. The only figures of a GPU "
    "on this page are those of an earlier measurement of [packs](#packs)."
)
_CORES_PER_S = {"scoring-224": 0.37, "scoring-32": 10.1}
"""Topologies per second of two CPU cores, as in the section on screens."""
_GOALS = 500


def section(results: Sequence[Finished]) -> str:
    """Markdown of the results, without the heading."""
    if not results:
        return NEVER_RUN
    blocks = [_head(results), _goals({one.part: one.figures for one in results})]
    for one in results:
        if one.part in _PARTS:
            blocks += [f"### {one.title}", *_unfinished(one), *_PARTS[one.part](one.figures)]
    return "\n\n".join(block for block in blocks if block)


def write_section(page: Path, folder: Path) -> None:
    """Replace the section of a page by that of the results in a folder.

    Raises:
        ValueError: The page lacks the marks between which the section stands, or the results come from several runs, or
            from a CPU.
    """
    results = read_results(folder)
    if any(one.device == "cpu" for one in results):
        raise ValueError(
            f"{folder} must hold a run on a GPU, but holds a rehearsal on a CPU, whose figures mean nothing."
        )
    text = page.read_text(encoding="utf-8")
    found = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if len(found.findall(text)) != 1:
        raise ValueError(f"{page} must have one place between {BEGIN} and {END}.")
    new = f"{BEGIN}\n\n{section(results)}\n\n{END}"
    page.write_text(found.sub(lambda _: new, text), encoding="utf-8")


def summary(results: Sequence[Finished]) -> list[dict[str, Any]]:
    """One row per part for a table."""
    return [
        {
            "part": one.part,
            "state": one.state,
            "s": round(one.seconds, 1),
            "limit s": round(one.limit_s),
            "reason": textwrap.shorten(one.reason or "", 100),
        }
        for one in results
    ]


def _head(results: Sequence[Finished]) -> str:
    facts = next((one.figures for one in results if one.part == "machine"), {})
    parts = ", ".join(f"{one.part} {one.seconds:.0f}" for one in results)
    total = sum(one.seconds for one in results)
    where = (
        f"{facts.get('device', 'an unknown device')} with {facts.get('cores', '?')} CPU cores, torch "
        f"{facts.get('torch', '?')}, Python {facts.get('python', '?')}"
    )
    rates = [f"{_shown(facts[key])} TFLOP/s in {name}" for key, name in _RATES.items() if key in facts]
    peak = " and ".join(rates) or "an unknown rate"
    return f"{where}. Large matrix products reach {peak}. The run took {total:.0f} s ({parts})."


_RATES = {"float32_tflops": "float32", "bfloat16_tflops": "bfloat16"}


def _unfinished(one: Finished) -> list[str]:
    if one.state == "complete":
        return []
    return [f"This part is not complete ({one.state}: {one.reason}); what it measured until then:"]


def _goals(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """The goals and what was measured; those that were not measured are named as such."""
    rows = []
    per_s = figures.get("scoring-224", {}).get("screen against literal", {}).get("ours per s")
    minutes = None if per_s is None else f"{_GOALS / per_s / 60:.1f} min, without growth"
    rows.append({"goal": "500 topologies, 5 repeats, 224 px, and growth: 5 min", "measured": minutes})
    for part, cores in _CORES_PER_S.items():
        own = figures.get(part, {}).get("screen against literal", {}).get("ours per s")
        px = part.rpartition("-")[2]
        rows.append(
            {
                "goal": f"screening at {px} px: 20 times the two CPU cores ({cores}/s)",
                "measured": None if own is None else f"{own / cores:.1f} times",
            }
        )
    packs = [row for rows_ in figures.get("packing", {}).values() if isinstance(rows_, list) for row in rows_]
    packed = [row["times as fast"] for row in packs if row["way"] == "packed"]
    rows.append(
        {
            "goal": "packed trials: 8 times one after the other",
            "measured": " and ".join(f"{value:.1f} times" for value in packed) or None,
        }
    )
    plain = [f"{row['times as fast']} at {row['parameters']}" for row in figures.get("training", {}).get("plain", [])]
    rows.append({"goal": "training: 1.0 of the plain loop", "measured": "; ".join(plain) or None})
    return "\n".join(_table([{**row, "measured": row["measured"] or "not measured"} for row in rows]))


def _tests(figures: Mapping[str, Any]) -> Iterator[str]:
    counts = ", ".join(f"{figures[name]} {name}" for name in ("passed", "failed", "skipped") if name in figures)
    yield f"{counts or 'No result'}."
    if figures.get("failures"):
        yield "\n".join(_table(figures["failures"]))


def _scoring(figures: Mapping[str, Any]) -> Iterator[str]:
    against = figures.get("screen against literal")
    if against:
        yield (
            f"Length distortion and NTK condition number, 5 repeats each: {_shown(against['ours per s'])} topologies "
            f"per s, {against['faster']:.0f} times as many as with the literal references "
            f"({_shown(against['literal per s'])})."
        )
    for name in ("length-distortion", "ntk-condition", "screen"):
        if figures.get(name):
            yield "\n".join(_table(figures[name]))


def _packing(figures: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{figures.get('trials', 'Several')} trials of {figures.get('epochs', 'several')} epochs, batch size "
        f"{figures.get('batch_size', 'unknown')}, for each topology."
    )
    for topology, rows in figures.items():
        if isinstance(rows, list):
            yield f"`{topology}`:"
            yield "\n".join(_table(rows))


def _training(figures: Mapping[str, Any]) -> Iterator[str]:
    if "images" in figures:
        yield (
            f"{figures['repeats']} runs of {figures['epochs']} epochs of {figures['images']} images of 32 px, batch "
            f"size {figures['batch_size']}, {figures['precision']}; medians and quartiles. The peak is "
            f"{_shown(figures['peak_tflops'])} TFLOP/s, the rate of large matrix products in the same run."
        )
    for name in ("plain", "compile"):
        if figures.get(name):
            yield "\n".join(_table(figures[name]))


def _proxies(figures: Mapping[str, Any]) -> Iterator[str]:
    for space, found in figures.items():
        if isinstance(found, dict):
            yield (
                f"{space}: all together {_shown(found['together']['ms'])} ms per topology, one by one "
                f"{_shown(found['sum of alone ms'])} ms."
            )
            yield "\n".join(_table(found["alone"]))


def _sharing(figures: Mapping[str, Any]) -> Iterator[str]:
    if figures.get("rows"):
        yield "\n".join(_table(figures["rows"]))


def _study(figures: Mapping[str, Any]) -> Iterator[str]:
    if figures.get("stages"):
        yield "\n".join(_table(figures["stages"]))
    if "champion" in figures:
        yield f"Test accuracy on {figures['images']}: {figures['champion']['test_accuracy']:.1%}."


_PARTS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "tests": _tests,
    "scoring-224": _scoring,
    "scoring-32": _scoring,
    "packing": _packing,
    "training": _training,
    "compile": _training,
    "proxies": _proxies,
    "sharing": _sharing,
    "study": _study,
}


def _table(rows: Sequence[Row]) -> Iterator[str]:
    columns = list(rows[0])
    yield f"| {' | '.join(columns)} |"
    numeric = [isinstance(rows[0][column], int | float) for column in columns]
    yield f"| {' | '.join('---:' if right else '---' for right in numeric)} |"
    for row in rows:
        yield f"| {' | '.join(_shown(row.get(column, '')).replace('|', chr(92) + '|') for column in columns)} |"


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return " ".join(str(value).split())
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
