"""Do scores travel? Every published table is left out in turn, and judged with rules fitted on the other tables.

`python -m benchmarks.travel --tables FOLDER --cache FOLDER` reads all tables `SPACE-DATASET.json` of the folder and
scores their topologies. Scores are kept in the cache, so an interrupted run can be continued; from known scores, the
result takes a few minutes. `--minutes` limits the scoring: topologies are scored in random order, alternately from each
space, and only those with all scores count.

`--few-step 50` also trains 50 topologies of each space for a few steps, and judges the loss apart, with its cost.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks._travel_scores import ScoreFile, Scoring, ScoringBatch, natural_batch, noise_batch, score_missing
from orchestrator.discovery.leaving_out import (
    BASELINES,
    DataFacts,
    Fit,
    FittedOn,
    TravelRule,
    TravelTable,
    learn_rule,
    learn_rule_with_facts,
    leave_out,
    select_rule,
)
from orchestrator.evaluation.joint import QUESTIONS, ScoredTable, judge_jointly
from orchestrator.evaluation.verdict import JointVerdict
from orchestrator.spec.proxy_choices import orient, parts_of
from orchestrator.spec.truth_table import read_truth_table
from plugins.registry import create, load, parse_topology
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice

IMAGES_PER_CLASS = {"cifar100": 500.0, "flowers": 20.0}
"""Training images per class by data set; Flowers-102 with its training and validation parts."""
SIZES = ("params", "flops", "depth", "weight-norm", "weight-statistics")
"""Scores that need no images."""
FEATURES = (
    "attention-entropy",
    "az-expressivity",
    "az-trainability",
    "block-importance",
    "dss",
    "effective-rank",
    "fisher",
    "grad-norm",
    "image-sensitivity",
    "jacobian-covariance",
    "l-swag",
    "meco",
    "nwot",
    "snip",
    "swap",
    "synflow",
    "token-diversity",
    "tvt",
    "zico",
)
"""Scores of one shared pass. `grasp`, `ntk-condition` and the curve scores take longer than all of these together."""
POOLED = ("az-nas", "libra", "size-residual")
"""Scores that are computed from others within a pool. `travelled-1` was selected on these very tables."""
FEW_STEP = PluginChoice(name="few-step-loss", settings={"steps": 20})
"""The score that trains; each step takes half of the images."""
TABLE_TASK = ImageTask(image_size=224, in_channels=3, num_classes=100)
"""The task of the published networks, whose parameters and multiply-accumulates are the baselines."""
RULES: dict[str, Fit] = {"selected": select_rule, "learned": learn_rule, "learned with facts": learn_rule_with_facts}
FITTED_ON: tuple[FittedOn, ...] = ("all tables", "same space", "other spaces")


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    deadline = time.monotonic() + 60 * options.minutes
    spaces, tables = read_tables(options.tables)
    order = scoring_order(spaces, options.topologies, seed=options.seed)
    choices = [PluginChoice(name=name) for name in options.proxies]
    file, images = _scored(options, order, choices, deadline=deadline)
    scored = [travel_table(table, choices, file, order) for table in tables]
    print(f"{images}; {len(choices)} scores; topologies per space: {_counts(scored)}")
    judged = judge(scored, options.resamples)
    print_verdicts(judged.verdicts)
    for space, verdicts in judged.by_space.items():
        print(f"\nonly tables of {space}")
        print_verdicts(verdicts)
    for name, rule in judged.rules.items():
        print(f"{name}: {rule_text(rule)}", flush=True)
    report: dict[str, Any] = {
        "images": images,
        "topologies": _counts(scored),
        "seconds": {choice.name: mean_seconds(choice, file, order) for choice in choices},
        "rules": {name: rule.weights for name, rule in judged.rules.items()},
        "verdicts": [verdict.model_dump(mode="json") for verdict in judged.verdicts],
        "by_space": {
            space: [verdict.model_dump(mode="json") for verdict in verdicts]
            for space, verdicts in judged.by_space.items()
        },
    }
    _write(report, options.json)
    if options.few_step:
        report["few_step"] = _few_step(options, spaces, tables, deadline=deadline)
        _write(report, options.json)


def _write(report: Mapping[str, Any], file: Path | None) -> None:
    if file is not None:
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _scored(
    options: argparse.Namespace, order: Sequence[str], choices: Sequence[PluginChoice], *, deadline: float
) -> tuple[ScoreFile, str]:
    """Score what the cache lacks; returns the scores, and what the images are."""
    batch = _batch(options)
    scoring = Scoring(batch=batch, num_classes=TABLE_TASK.num_classes, seed=options.seed)
    file = ScoreFile(options.cache, scoring, any_code=options.any_code)
    began = time.monotonic()
    for number, (topology, seconds) in enumerate(score_missing(order, choices, scoring, file, deadline=deadline), 1):
        print(
            f"scored {number}: {seconds:.1f} s, {time.monotonic() - began:.0f} s in total, {topology[:60]}", flush=True
        )
    return file, batch.description


def _few_step(
    options: argparse.Namespace, spaces: dict[str, list[str]], tables: Sequence[TravelTable], *, deadline: float
) -> dict[str, Any]:
    """Judge the loss after a few training steps against counting, and print the verdicts with the cost."""
    order = scoring_order(spaces, options.few_step, seed=options.seed)
    choices = [*(PluginChoice(name=name) for name in SIZES), FEW_STEP]
    file, images = _scored(options, order, choices, deadline=deadline)
    scored = [travel_table(table, choices, file, order) for table in tables]
    macs = few_step_macs(order, image_size=options.size, num_images=options.batch_size)
    seconds = mean_seconds(FEW_STEP, file, order)
    print(
        f"\nafter {FEW_STEP.settings['steps']} training steps on {images}; topologies per space: {_counts(scored)}; "
        f"per topology {macs:.3g} multiply-accumulates and {seconds:.1f} s"
    )
    verdicts = judge_all([one.table for one in scored], options.resamples)
    print_verdicts(verdicts)
    return {
        "images": images,
        "topologies": _counts(scored),
        "seconds": seconds,
        "training_macs": macs,
        "verdicts": [verdict.model_dump(mode="json") for verdict in verdicts],
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder with tables SPACE-DATASET.json")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the scores, made if it is missing")
    parser.add_argument("--images", type=Path, help="Parquet file with the columns image and label (noise)")
    parser.add_argument("--batch-size", type=int, default=16, help="number of images (16)")
    parser.add_argument("--size", type=int, default=112, help="height and width of the images, in pixels (112)")
    parser.add_argument("--proxies", nargs="+", default=[*SIZES, *FEATURES], metavar="NAME", help="scores")
    parser.add_argument("--topologies", type=int, help="number of topologies per space (all)")
    parser.add_argument("--minutes", type=float, default=85.0, help="time limit of the scoring; 0 only reads (85)")
    parser.add_argument(
        "--few-step", type=int, metavar="N", help="also train N topologies per space for a few steps (none)"
    )
    parser.add_argument("--any-code", action="store_true", help="also use scores of other versions of the code")
    parser.add_argument("--resamples", type=int, default=2000, help="bootstrap resamples (2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights, images and order (0)")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (2)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    options = parser.parse_args()
    options.proxies = list(dict.fromkeys([*BASELINES, *options.proxies]))
    return options


def _batch(options: argparse.Namespace) -> ScoringBatch:
    if options.images is None:
        return noise_batch(num_images=options.batch_size, image_size=options.size, seed=options.seed)
    return natural_batch(options.images, num_images=options.batch_size, image_size=options.size, seed=options.seed)


def read_tables(folder: Path) -> tuple[dict[str, list[str]], list[TravelTable]]:
    """The topologies of each space, and one table without scores per file and target, a key that ends in `_acc`.

    Raises:
        ValueError: The folder has no table, or the images per class of a data set are unknown.
    """
    paths = sorted(folder.glob("*-*.json"))
    if not paths:
        raise ValueError(f"{folder} must have tables SPACE-DATASET.json, but has none. Give another folder.")
    spaces: dict[str, list[str]] = {}
    tables = []
    for path in paths:
        space, _, data = path.stem.partition("-")
        if data not in IMAGES_PER_CLASS:
            raise ValueError(
                f"{path} must be about one of {list(IMAGES_PER_CLASS)}, but its name ends in {data!r}. Add the data "
                "set to IMAGES_PER_CLASS."
            )
        targets = [key for key in json.loads(path.read_text(encoding="utf-8"))[0] if key.endswith("_acc")]
        for target in targets:
            rows = read_truth_table(path, space=space, target=target).rows
            names = tuple(row.topology.id for row in rows)
            spaces.setdefault(space, []).extend(name for name in names if name not in spaces[space])
            distilled = "_kd_" in target
            tables.append(
                TravelTable(
                    table=ScoredTable(
                        title=f"{space}, {data}, {'distilled' if distilled else 'scratch'}",
                        topologies=names,
                        accuracies=[row.value for row in rows],
                        scores={},
                    ),
                    facts=DataFacts(images_per_class=IMAGES_PER_CLASS[data], is_distilled=distilled),
                )
            )
    return spaces, tables


def scoring_order(spaces: dict[str, list[str]], limit: int | None, *, seed: int) -> list[str]:
    """All topologies, alternately from each space and in random order, so that the first ones are a random sample."""
    shuffled = [random.Random(seed).sample(names, len(names))[:limit] for names in spaces.values()]
    return [name for row in itertools.zip_longest(*shuffled) for name in row if name is not None]


def travel_table(
    table: TravelTable, choices: Sequence[PluginChoice], file: ScoreFile, order: Sequence[str]
) -> TravelTable:
    """The table with the scores of the topologies that have all of them; baselines are those of the published networks.

    Raises:
        ValueError: Fewer than ten topologies have all scores.
    """
    wanted = set(order)
    rows: dict[str, dict[str, float]] = {}
    for name in table.table.topologies:
        found = {choice.name: file.find(name, choice) for choice in choices} if name in wanted else {}
        if found and all(score is not None for score in found.values()):
            costs = load("spaces", table.space).costs(parse_topology(name), TABLE_TASK)
            scores = {key: score[0] for key, score in found.items() if score is not None}
            rows[name] = {**scores, "params": float(costs.parameters), "flops": float(costs.macs)}
    if len(rows) < 10:
        raise ValueError(
            f"{table.table.title} needs at least 10 topologies with all scores, but has {len(rows)}. Raise --minutes."
        )
    accuracies = dict(zip(table.table.topologies, table.table.accuracies, strict=True))
    names = [choice.name for choice in choices]
    return replace(
        table,
        table=replace(
            table.table,
            topologies=tuple(rows),
            accuracies=[accuracies[name] for name in rows],
            scores={name: [orient(name, [row[name] for row in rows.values()])] for name in names},
            sizes=[row["params"] for row in rows.values()],
        ),
    )


class Judged(NamedTuple):
    """What is found about the scores and rules."""

    verdicts: list[JointVerdict]
    """On all scores and on the left-out predictions of all rules, over all tables together."""
    by_space: dict[str, list[JointVerdict]]
    """The same over the tables of each space."""
    rules: dict[str, TravelRule]
    """The rules fitted on all tables, and on those of each space."""


def judge(tables: Sequence[TravelTable], resamples: int) -> Judged:
    """Judge all scores and rules. A rule for a table is fitted on other tables."""
    predicted = {
        f"{name} on {fitted_on}": leave_out(tables, fit, fitted_on=fitted_on)
        for name, fit in RULES.items()
        for fitted_on in FITTED_ON
    }
    judged = []
    for at, one in enumerate(tables):
        scores = {**one.table.scores, **pooled_scores(one), **{name: [rows[at]] for name, rows in predicted.items()}}
        judged.append(replace(one.table, scores=scores))
    spaces = dict.fromkeys(one.space for one in tables)
    groups = {"all tables": list(tables)} | {space: [one for one in tables if one.space == space] for space in spaces}
    return Judged(
        verdicts=judge_all(judged, resamples),
        by_space={
            space: judge_all(
                [one for one, table in zip(judged, tables, strict=True) if table.space == space], resamples
            )
            for space in spaces
        },
        rules={f"{name} on {group}": fit(members) for group, members in groups.items() for name, fit in RULES.items()},
    )


def judge_all(tables: Sequence[ScoredTable], resamples: int) -> list[JointVerdict]:
    """Joint verdicts on all scores of the tables, for both questions."""
    return [
        verdict
        for question in QUESTIONS
        for verdict in judge_jointly(tables, baselines=BASELINES, resamples=resamples, question=question)
    ]


def pooled_scores(table: TravelTable) -> dict[str, list[list[float]]]:
    """The scores within the pool whose parts are known. They are judged, but no part of rules."""
    scores = {name: table.score(name).tolist() for name in table.table.scores}
    known = {name: create("proxies", name) for name in POOLED if set(parts_of(name)) <= scores.keys()}
    return {name: [orient(name, proxy.combine(scores))] for name, proxy in known.items()}


def few_step_macs(order: Sequence[str], *, image_size: int, num_images: int) -> float:
    """Mean multiply-accumulates per topology of the training of a few steps."""
    task = TABLE_TASK.model_copy(update={"image_size": image_size})
    proxy = create("proxies", FEW_STEP.name, FEW_STEP.settings)
    costs = [load("spaces", name.partition(":")[0]).costs(parse_topology(name), task) for name in order]
    return float(sum(proxy.training_macs(cost.macs, num_images) for cost in costs) / len(costs))


def mean_seconds(choice: PluginChoice, file: ScoreFile, order: Sequence[str]) -> float:
    """Mean seconds per topology; a shared pass counts for the first score that needs it."""
    found = [score[1] for name in order if (score := file.find(name, choice)) is not None]
    return sum(found) / len(found) if found else 0.0


def print_verdicts(verdicts: Sequence[JointVerdict]) -> None:
    """One line per score: mean difference from the strongest baseline, then tau on each table.

    A minus or plus after a tau means worse or better than the strongest baseline.
    """
    for question in dict.fromkeys(verdict.question for verdict in verdicts):
        rows = [verdict for verdict in verdicts if verdict.question == question]
        print(f"\npairs of {question}; tables: {'; '.join(table.table for table in rows[0].tables)}")
        for row in rows:
            gap = row.mean_difference
            cells = " ".join(
                f"{_number(table.tau.value)}{'-' if table.is_worse else '+' if table.is_better else ' '}"
                for table in row.tables
            )
            bounds = f"[{_number(gap.low)}, {_number(gap.high)}]"
            print(f"{row.proxy:34} {_number(gap.value)} {bounds} {'better' if row.is_better else '      '}  {cells}")


def rule_text(rule: TravelRule) -> str:
    """The weights of a rule, largest first."""
    weights = sorted(rule.weights.items(), key=lambda item: -max(map(abs, item[1])))
    return ", ".join(f"{name} {'/'.join(f'{value:.3f}' for value in values)}" for name, values in weights)


def _counts(tables: Sequence[TravelTable]) -> dict[str, int]:
    return {table.space: len(table.table.topologies) for table in tables}


def _number(value: float | None) -> str:
    return "  none" if value is None else f"{value:6.3f}"


if __name__ == "__main__":
    main()
