"""Do scores rank topologies alike with other weights, other images and another resolution?

`python -m benchmarks.score_stability --tables FOLDER --images train.parquet --cache FOLDER` scores topologies of every
space once, and then with one thing changed: the seed of the weights, the images, or their size. It prints Kendall's tau
between the first scores and the others. A score that disagrees with itself depends on chance.
Scores are kept in the cache of `benchmarks.travel`, so that an interrupted run can be continued.
"""

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks._travel_scores import ScoreFile, Scoring, ScoringBatch, natural_batch, noise_batch, score_missing
from benchmarks.travel import FEATURES, TABLE_TASK, mean_seconds, read_tables, scoring_order
from orchestrator.evaluation.rank_statistics import kendall_tau
from search_spaces.recipes import PluginChoice

SCORES = ("weight-norm", "weight-statistics", *FEATURES)
MIN_TOPOLOGIES = 4
"""Topologies with both scores that a tau needs."""


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    deadline = time.monotonic() + 60 * options.minutes
    spaces, _ = read_tables(options.tables)
    if options.spaces:
        spaces = {name: spaces[name] for name in options.spaces}
    order = scoring_order(spaces, options.topologies, seed=0)
    choices = [PluginChoice(name=name) for name in options.proxies]
    files: dict[str, ScoreFile] = {}
    for name, scoring in scorings(options).items():
        files[name] = ScoreFile(options.cache, scoring, any_code=options.any_code)
        for topology, seconds in score_missing(order, choices, scoring, files[name], deadline=deadline):
            print(f"{name}: {seconds:.1f} s, {topology[:60]}", flush=True)
    agreements = {
        space: agreement([one for one in order if one in set(topologies)], choices, files)
        for space, topologies in spaces.items()
    }
    report = {
        "images": {name: scoring.batch.description for name, scoring in scorings(options).items()},
        "seconds": {name: sum(mean_seconds(choice, file, order) for choice in choices) for name, file in files.items()},
        "agreement": agreements,
    }
    print_agreement(agreements)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def scorings(options: argparse.Namespace) -> dict[str, Scoring]:
    """What is scored first, then with one thing changed."""

    def batch(*, seed: int = 0, size: int = options.size) -> ScoringBatch:
        if options.images is None:
            return noise_batch(num_images=options.batch_size, image_size=size, seed=seed)
        return natural_batch(options.images, num_images=options.batch_size, image_size=size, seed=seed)

    def scoring(images: ScoringBatch, *, seed: int = 0) -> Scoring:
        return Scoring(batch=images, num_classes=TABLE_TASK.num_classes, seed=seed)

    first = batch()
    found = {"first": scoring(first), "other weights": scoring(first, seed=1), "other images": scoring(batch(seed=1))}
    return found | {f"{size} px": scoring(batch(size=size)) for size in options.other_sizes}


def agreement(
    topologies: Sequence[str], choices: Sequence[PluginChoice], files: Mapping[str, ScoreFile]
) -> dict[str, dict[str, tuple[float, int]]]:
    """For each score and changed thing, tau between the first scores and the others, and the number of topologies.

    Args:
        topologies: The topologies; those without both scores are left out.
        choices: The scores.
        files: The scores by what is changed; `first` comes first.
    """
    first, *others = files
    found: dict[str, dict[str, tuple[float, int]]] = {}
    for choice in choices:
        rows = {name: [_value(file, topology, choice) for topology in topologies] for name, file in files.items()}
        for name in others:
            pairs = [pair for pair in zip(rows[first], rows[name], strict=True) if all(map(math.isfinite, pair))]
            if len(pairs) >= MIN_TOPOLOGIES:
                one, other = np.array(pairs).T
                tau = float(kendall_tau(np.ones((1, len(pairs)), dtype=np.uint16), one, other)[0])
                found.setdefault(choice.name, {})[name] = (tau, len(pairs))
    return found


def _value(file: ScoreFile, topology: str, choice: PluginChoice) -> float:
    found = file.find(topology, choice)
    return math.nan if found is None else found[0]


def print_agreement(report: Mapping[str, Mapping[str, Mapping[str, tuple[float, int]]]]) -> None:
    """One line per score and space, the least stable first."""
    for space, scores in report.items():
        print(f"\n{space}: tau between the first scores and those with another ...")
        for name, found in sorted(scores.items(), key=lambda item: min(tau for tau, _ in item[1].values())):
            cells = ", ".join(f"{what} {tau:.2f} ({count})" for what, (tau, count) in found.items())
            print(f"{name:22} {cells}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, required=True, help="folder with tables SPACE-DATASET.json")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the scores, made if it is missing")
    parser.add_argument("--images", type=Path, help="Parquet file with the columns image and label (noise)")
    parser.add_argument("--spaces", nargs="+", metavar="NAME", help="search spaces (all of the folder)")
    parser.add_argument("--batch-size", type=int, default=16, help="number of images (16)")
    parser.add_argument("--size", type=int, default=112, help="height and width of the first images, in pixels (112)")
    parser.add_argument("--other-sizes", type=int, nargs="*", default=[224], metavar="N", help="other sizes (224)")
    parser.add_argument("--topologies", type=int, default=20, help="number of topologies per space (20)")
    parser.add_argument("--proxies", nargs="+", default=list(SCORES), metavar="NAME", help="scores")
    parser.add_argument("--minutes", type=float, default=85.0, help="time limit of the scoring; 0 only reads (85)")
    parser.add_argument("--any-code", action="store_true", help="also use scores of other versions of the code")
    parser.add_argument("--threads", type=int, default=2, help="number of CPU threads (2)")
    parser.add_argument("--json", type=Path, help="write all numbers to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
