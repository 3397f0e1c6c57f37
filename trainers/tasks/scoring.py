"""Scores one topology with training-free proxies."""

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from plugins.protocols import Candidate, Proxy, ProxyScore
from plugins.registry import create, load, parse_topology
from search_spaces.base import Costs, ImageTask, Topology
from trainers.config import ScoreTask, TaskOutcome
from trainers.data.images import ImageData
from trainers.hardware.devices import full_precision, make_generator
from trainers.training.evaluation import Normalizer
from trainers.training.failures import Failure, describe_failure, free_memory


def scoring_batch(data: ImageData, *, split_seed: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The images that every topology of a study is scored on, normalised, and their labels: (B, C, H, W) and (B,).

    Args:
        data: Their training part is drawn from.
        split_seed: The same seed draws the same images.
        size: `B`, or all images where there are fewer.
        device: Where both go.
    """
    chosen = torch.randperm(len(data.train), generator=make_generator(split_seed, "score"))[:size]
    images = Normalizer(data.mean, data.std, device)(data.train.images[chosen].to(device))
    return images, data.train.labels[chosen].to(device)


def score_topology(task: ScoreTask, images: Tensor, image_task: ImageTask, labels: Tensor | None = None) -> TaskOutcome:
    """Every proxy of `task` on its topology; one that fails does not keep the others from theirs.

    Args:
        task: Topology, proxies and seed; the same seed and images give the same scores.
        images: One batch of normalised training images, shape (B, C, H, W), on the device and in the dtype to score in.
        image_task: Image size, channels and classes of the data.
        labels: Classes of the images, shape (B,), int64; drawn from the seed where there are none.

    Returns:
        See `score_outcome`.

    Raises:
        ValueError: The topology's text is wrong or does not fit the data, or a proxy is unknown or has wrong settings.
    """
    start = time.perf_counter()
    topology = parse_topology(task.topology)
    proxies = {choice.name: create("proxies", choice.name, choice.settings) for choice in task.proxies}
    candidate = make_candidate(
        topology, images, image_task, seed=task.seed, labels=labels, companions=tuple(proxies.values())
    )
    scores: dict[str, ProxyScore] = {}
    failures: dict[str, Failure] = {}
    seconds: dict[str, float] = {}
    for name, proxy in proxies.items():
        began = time.perf_counter()
        try:
            with full_precision():
                scores[name] = proxy.score(candidate)
        except Exception as error:  # a proxy may raise anything, and the others go on
            failures[name] = describe_failure(error)
        if name in failures:
            free_memory()
        seconds[name] = time.perf_counter() - began
    return score_outcome(
        topology.id,
        candidate.costs,
        scores,
        failures,
        seconds=seconds,
        wall_time_s=time.perf_counter() - start,
        need_all=task.need_all,
    )


def score_outcome(
    topology: str,
    costs: Costs,
    scores: Mapping[str, ProxyScore],
    failures: Mapping[str, Failure],
    *,
    seconds: Mapping[str, float],
    wall_time_s: float,
    need_all: bool,
) -> TaskOutcome:
    """The outcome of scoring one topology.

    Args:
        topology: Its id.
        costs: Its closed-form costs.
        scores: By proxy; one that is not finite is a failure.
        failures: Why the other proxies have no score.
        seconds: What each proxy took; a pass that serves several counts for the first of them.
        wall_time_s: What all of it took.
        need_all: Whether one failed proxy makes the outcome a failure; else only all of them do.

    Returns:
        Metrics: per proxy its value under its name and the spread over its repeats under `NAME.spread`; `parameters`,
        `macs` and `wall_time_s`. Details: `topology`, `seconds` by proxy, and `failures` (error, reason) by proxy where
        there are any.
    """
    bad = {
        name: Failure("not-finite", f"the score is {score.value}")
        for name, score in scores.items()
        if not math.isfinite(score.value)
    }
    failed = {**failures, **bad}
    metrics = {"parameters": float(costs.parameters), "macs": float(costs.macs)}
    for name, score in scores.items():
        metrics |= {name: score.value, f"{name}.spread": score.spread}
    metrics["wall_time_s"] = wall_time_s
    metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
    details: dict[str, Any] = {"topology": topology, "seconds": dict(seconds)}
    if not failed:
        return TaskOutcome(state="complete", metrics=metrics, details=details)
    details["failures"] = {name: {"error": one.error, "reason": one.reason} for name, one in failed.items()}
    if not need_all and len(failed) < len({*scores, *failures}):
        return TaskOutcome(state="complete", metrics=metrics, details=details)
    first = next(iter(failed.values()))
    reason = f"every score must be a finite number, but {', '.join(failed)} of {topology} is not."
    if failures:
        first = next(iter(failures.values()))
        reason = "; ".join(f"{name}: {one.reason}" for name, one in failed.items())
    if first.traceback:
        details["traceback"] = list(first.traceback)
    return TaskOutcome(state="failed", error=first.error, reason=reason, metrics=metrics, details=details)


def make_candidate(
    topology: Topology,
    images: Tensor,
    image_task: ImageTask,
    *,
    seed: int,
    labels: Tensor | None = None,
    companions: tuple[Proxy, ...] = (),
) -> Candidate:
    """One topology as proxies see it; models come from the `models` plug-in of the topology's space.

    Args:
        topology: What is scored.
        images: One batch, shape (B, C, H, W).
        image_task: Image size, channels and classes.
        seed: Where the proxies' random numbers start.
        labels: Classes of the images, shape (B,), int64; `None` draws them from the seed.
        companions: All proxies that score it.

    Raises:
        ValueError: The topology does not fit the data.
    """
    name = topology.id.partition(":")[0]
    space, build_model = load("spaces", name), load("models", name)
    problem = space.problem(topology, image_task)
    if problem:
        raise ValueError(f"{topology.id} cannot be scored: {problem}")
    costs: Costs = space.costs(topology, image_task)
    if labels is None:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(image_task.num_classes, (len(images),), generator=generator).to(images.device)

    def build(*, seed: int, normalization: bool = True) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        model: nn.Module = build_model(
            topology,
            image_task,
            normalization=normalization,
            generator=generator,
            device=images.device,
            dtype=images.dtype,
        )
        return model.eval()

    return Candidate(
        topology=topology,
        task=image_task,
        costs=costs,
        images=images,
        labels=labels,
        build=build,
        seed=seed,
        companions=companions,
    )
