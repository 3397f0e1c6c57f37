"""Does a verdict on scores hold for trainings with another seed?

`python -m benchmarks.third_seed --data CIFAR10 --work FOLDER` trains As-ViT topologies of similar size on 2,000 images
of CIFAR-10 (parquet files), each with three seeds, and scores them without training. Each seed is held back in turn:
the other two give the verdict, as `vitsearch correlate` does for a study with `repeats: 2`, and the trainings with the
third one show whether its marks hold. For comparison, a verdict from each seed alone is shown as well. An interrupted
run continues with the same command.
"""

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks._arms import run_all, validation_accuracy
from benchmarks._travel_scores import ScoreFile, Scoring, ScoringBatch, score_missing
from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.rank_statistics import kendall_tau
from orchestrator.evaluation.verdict import Verdict
from orchestrator.spec.proxy_choices import ALL, expand_all, scored_choices
from orchestrator.stages.judged_truth import COMBINED, JudgedTruth
from orchestrator.stages.truth_scores import ScoredTruth
from orchestrator.stages.verdict_results import VerdictSettings
from plugins.registry import create_space
from search_spaces.base import ImageTask
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import Configuration, DataConfig, TrainTask
from trainers.data.images import ImageData, load_images
from trainers.tasks.scoring import scoring_batch

NUM_SEEDS = 3
NUM_IMAGES = 16
"""Number of images on which topologies are scored."""
BASELINES = ("params", "flops", "depth")
SETTINGS = VerdictSettings(baselines=BASELINES, resamples=1000, confidence=0.95, combine=True)
CPU = torch.device("cpu")


class Plan(NamedTuple):
    """What is trained."""

    data: DataConfig
    topologies: tuple[str, ...]
    recipe: Recipe
    epochs: int

    def described(self) -> dict[str, Any]:
        """The plan as plain data, without the place of the images."""
        return {
            "data": self.data.model_dump(mode="json") | {"source": Path(self.data.source).name},
            "topologies": list(self.topologies),
            "recipe": self.recipe.model_dump(mode="json", exclude_defaults=True),
            "epochs": self.epochs,
        }


class Check(NamedTuple):
    """The verdict from some trainings, and what the others say about it."""

    judged_by: str
    reliability: str
    has_no_verdict: bool
    tau_of_seeds: float
    """Tau between the accuracies that gave the verdict and those with the seeds held back."""
    marks: dict[str, float]
    """For each score that is shown to beat `params`, its tau with the seeds held back minus that of `params`."""

    @property
    def num_refuted(self) -> int:
        """Marked scores that do not beat `params` with the seeds held back, not even by chance."""
        return sum(difference <= 0 for difference in self.marks.values())


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    plan = make_plan(
        options.data, num_topologies=options.topologies, num_training=options.training, epochs=options.epochs
    )
    data = load_images(plan.data)
    accuracies = train_missing(plan, data, options.work)
    scores = score_all(plan, data, options.work)
    checks = check_all(plan, accuracies, scores, data.task, num_images=len(data.validation))
    print(
        f"{len(plan.topologies)} topologies, {NUM_SEEDS} seeds, {plan.epochs} epochs of {len(data.train):,} images, "
        f"{len(data.validation):,} validation images, {len(scores)} scores"
    )
    for check in checks:
        print(check_text(check))
    if options.json:
        report = {
            "plan": plan.described(),
            "accuracies": accuracies,
            "checks": [check._asdict() for check in checks],
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CIFAR-10 as parquet files")
    parser.add_argument("--work", type=Path, required=True, help="folder of the results, made if it is missing")
    parser.add_argument("--topologies", type=int, default=24, help="number of topologies, at least 8 (24)")
    parser.add_argument("--training", type=int, default=2000, help="training images; as many for validation (2000)")
    parser.add_argument("--epochs", type=int, default=8, help="number of epochs (8)")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (2)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args()


def make_plan(source: str, *, num_topologies: int, num_training: int, epochs: int) -> Plan:
    """Topologies of one block per stage and a width of 8, whose parameters differ by about a factor of two."""
    space, rng = create_space("as-vit", {"width": 8, "depths": (1, 1, 1, 1)}), random.Random(0)
    found: dict[str, None] = {}
    while len(found) < num_topologies:
        found.setdefault(space.sample(rng).id)
    data = DataConfig(source=source, image_size=32, max_images=2 * num_training, validation=0.5)
    recipe = Recipe.model_validate({"batch_size": 64, "augmentation": "flip-crop"})
    return Plan(data, tuple(found), recipe, epochs)


def train_missing(plan: Plan, data: ImageData, work: Path) -> dict[str, list[float]]:
    """Validation accuracy of each topology and seed; a training that diverged has that of a guess.

    Results of an earlier run of the same plan are kept.
    """
    work.mkdir(parents=True, exist_ok=True)
    file, described = work / "accuracies.json", plan.described()
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known: dict[str, list[float]] = earlier.get("accuracies", {}) if earlier.get("plan") == described else {}
    for topology in plan.topologies:
        if topology in known:
            continue
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as place:
            tasks = [
                TrainTask(
                    configuration=Configuration(
                        data=plan.data, topology=topology, recipe=plan.recipe, epochs=plan.epochs, seed=seed
                    ),
                    folder=Path(place) / str(seed),
                )
                for seed in range(NUM_SEEDS)
            ]
            outcomes = run_all(tasks, data, CPU)
            known[topology] = [validation_accuracy(outcome, data) for outcome in outcomes]
        part = file.with_suffix(".part")
        part.write_text(json.dumps({"plan": described, "accuracies": known}, indent=2) + "\n", encoding="utf-8")
        part.replace(file)
        diverged = sum(outcome.state == "failed" for outcome in outcomes)
        if diverged:
            print(f"{topology}: {diverged} of {NUM_SEEDS} trainings diverged and count as a guess", flush=True)
        shown = " ".join(f"{100 * value:.1f}" for value in known[topology])
        print(f"{topology}: {shown} % in {time.perf_counter() - began:.0f} s", flush=True)
    return {topology: known[topology] for topology in plan.topologies}


def score_all(plan: Plan, data: ImageData, work: Path) -> dict[str, list[float]]:
    """Every installed training-free score of each topology, on training images; nan if it failed."""
    images, labels = scoring_batch(data, split_seed=plan.data.split_seed, size=NUM_IMAGES, device=CPU)
    batch = ScoringBatch(images, labels, f"{NUM_IMAGES} training images")
    scoring = Scoring(batch=batch, num_classes=data.task.num_classes, seed=0)
    file, choices = ScoreFile(work, scoring), scored_choices(_choices())
    for topology, seconds in score_missing(plan.topologies, choices, scoring, file, deadline=float("inf")):
        print(f"{topology}: scored in {seconds:.1f} s", flush=True)
    found = {
        choice.name: [score for topology in plan.topologies if (score := file.find(topology, choice)) is not None]
        for choice in choices
    }
    return {name: [value for value, _ in row] for name, row in found.items()}


def _choices() -> tuple[PluginChoice, ...]:
    return expand_all((*(PluginChoice(name=name) for name in BASELINES), PluginChoice(name=ALL)))


def check_all(
    plan: Plan,
    accuracies: Mapping[str, Sequence[float]],
    scores: Mapping[str, list[float]],
    task: ImageTask,
    *,
    num_images: int,
) -> list[Check]:
    """The verdicts from each two seeds, checked by the third one, then those from each seed, checked by the others."""
    pairs = [tuple(seed for seed in range(NUM_SEEDS) if seed != held_back) for held_back in range(NUM_SEEDS)]
    found = []
    for seeds in (*pairs, *((seed,) for seed in range(NUM_SEEDS))):
        others = tuple(seed for seed in range(NUM_SEEDS) if seed not in seeds)
        judged, rest = (_judged(plan, accuracies, scores, task, chosen, num_images) for chosen in (seeds, others))
        held_back = {row.proxy: row.tau.value or 0.0 for row in rest.judge(judged.scores)}
        ceiling = judged.ceiling
        share = None if ceiling is None else ceiling.reliability
        found.append(
            Check(
                judged_by=f"seed{'s' if len(seeds) > 1 else ''} {' and '.join(map(str, seeds))}",
                reliability="-" if share is None else f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]",
                has_no_verdict=judged.has_no_verdict,
                tau_of_seeds=_tau(judged.truth.accuracies, rest.truth.accuracies),
                marks={row.proxy: held_back[row.proxy] - held_back["params"] for row in judged.verdicts if _wins(row)},
            )
        )
    return found


def _judged(
    plan: Plan,
    accuracies: Mapping[str, Sequence[float]],
    scores: Mapping[str, list[float]],
    task: ImageTask,
    seeds: Sequence[int],
    num_images: int,
) -> JudgedTruth:
    """What `correlate` finds for a study whose topologies were trained with these seeds."""
    by_topology = [tuple(accuracies[topology][seed] for seed in seeds) for topology in plan.topologies]
    truth = GroundTruth(
        kind="trials",
        name="third-seed",
        source="third-seed",
        target="val_accuracy",
        unit="fraction",
        topologies=plan.topologies,
        accuracies=tuple(sum(values) / len(values) for values in by_topology),
        data=plan.data,
        task=task,
        digest="",
        seeds=tuple(by_topology),
        num_images=num_images,
    )
    choices = _choices()
    scored = ScoredTruth(
        truth=truth,
        choices=scored_choices(choices),
        scores={name: [row] for name, row in scores.items()},
        reasons={},
        wall_time_s={},
        training_macs={},
    )
    return JudgedTruth(scored, choices, SETTINGS, seed=0)


def _tau(one: Sequence[float], other: Sequence[float]) -> float:
    return float(kendall_tau(np.ones((1, len(one)), dtype=np.uint16), np.asarray(one), np.asarray(other))[0])


def _wins(row: Verdict) -> bool:
    """Whether a single score is marked as better than counting parameters."""
    return not row.proxy.startswith(COMBINED) and "params" in row.beaten


def check_text(check: Check) -> str:
    """The check as a line."""
    start = f"{check.judged_by}: reliability {check.reliability}, tau with the rest {check.tau_of_seeds:.2f}"
    if check.has_no_verdict:
        return f"{start}: no verdict"
    if not check.marks:
        return f"{start}: no mark"
    shown = ", ".join(f"{name} {difference:+.2f}" for name, difference in check.marks.items())
    return (
        f"{start}: {len(check.marks)} marks, of which {check.num_refuted} refuted; minus params with the rest: {shown}"
    )


if __name__ == "__main__":
    main()
