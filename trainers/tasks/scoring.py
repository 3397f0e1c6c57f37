"""Scores one topology with training-free proxies."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plugins.protocols import Candidate, Proxy, ProxyScore, TrainingProxy
from plugins.registry import create, load, parse_topology
from search_spaces.base import Costs, ImageTask, Topology
from trainers.config import ScoreTask, TaskOutcome
from trainers.data.images import ImageData
from trainers.data.mapping import gather
from trainers.hardware.devices import full_precision, make_generator
from trainers.tasks.isolated_scores import IsolatedScores, check_repeated, must_be_repeatable
from trainers.training.evaluation import Normalizer
from trainers.training.failures import Failure, describe_failure, free_memory


def scoring_batch(data: ImageData, *, split_seed: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draw the normalised images (B, C, H, W) and labels (B,) on which all topologies of a study are scored.

    Args:
        data: Data whose training part is sampled.
        split_seed: Seed of the sample.
        size: Number of images `B`; all images if there are fewer.
        device: Device of the result.
    """
    chosen = torch.randperm(len(data.train), generator=make_generator(split_seed, "score"))[:size]
    images = Normalizer(data.mean, data.std, device)(gather(data.train.images, chosen).to(device))
    return images, data.train.labels[chosen].to(device)


def score_topology(task: ScoreTask, images: Tensor, image_task: ImageTask, labels: Tensor | None = None) -> TaskOutcome:
    """Score the topology of `task` with all its proxies. If a proxy fails, the others still run.

    Args:
        task: Topology, proxies and seed. The same seed and images give the same scores.
        images: One batch of normalised training images, shape (B, C, H, W). Their device and dtype are used.
        image_task: Image size, channels and classes of the data.
        labels: Classes of the images, shape (B,), int64; drawn from the seed if omitted.

    Returns:
        See `score_outcome`.

    Raises:
        ValueError: The topology is malformed or does not fit the data, or a proxy is unknown or has invalid settings.
    """
    start = time.perf_counter()
    topology = parse_topology(task.topology)
    proxies = {choice.name: create("proxies", choice.name, choice.settings) for choice in task.proxies}

    def isolated_scores(*companions: Proxy) -> IsolatedScores:
        return IsolatedScores(
            make_candidate(topology, images, image_task, seed=task.seed, labels=labels, companions=companions)
        )

    isolated = isolated_scores(*proxies.values())
    scores: dict[str, ProxyScore] = {}
    failures: dict[str, Failure] = {}
    seconds: dict[str, float] = {}
    for name, proxy in proxies.items():
        began = time.perf_counter()
        try:
            with full_precision():
                scores[name] = isolated.score(proxy)
        except Exception as error:  # a proxy may raise any exception; the others still run
            failures[name] = describe_failure(error)
        if name in failures:
            free_memory()
        seconds[name] = time.perf_counter() - began
    for name in [name for name in scores if task.verify and must_be_repeatable(proxies[name])]:
        try:
            with full_precision():
                check_repeated(scores[name], isolated_scores(proxies[name]).score(proxies[name]))
        except Exception as error:  # as above
            failures[name] = describe_failure(error)
            del scores[name]
    return score_outcome(
        topology.id,
        isolated.candidate.costs,
        scores,
        failures,
        seconds=seconds,
        wall_time_s=time.perf_counter() - start,
        need_all=task.need_all,
        training_macs=training_macs(task, isolated.candidate.costs, num_images=len(images)),
    )


def training_macs(task: ScoreTask, costs: Costs, *, num_images: int) -> dict[str, int]:
    """Multiply-accumulates of each proxy of a task that trains, by name; training-free proxies are absent."""
    proxies = {choice.name: create("proxies", choice.name, choice.settings) for choice in task.proxies}
    return {
        name: proxy.training_macs(costs.macs, num_images)
        for name, proxy in proxies.items()
        if isinstance(proxy, TrainingProxy)
    }


def score_outcome(
    topology: str,
    costs: Costs,
    scores: Mapping[str, ProxyScore],
    failures: Mapping[str, Failure],
    *,
    seconds: Mapping[str, float],
    wall_time_s: float,
    need_all: bool,
    training_macs: Mapping[str, int],
) -> TaskOutcome:
    """The outcome of scoring one topology.

    Args:
        topology: Id of the topology.
        costs: Closed-form costs of the topology.
        scores: Scores by proxy. A score that is not finite is a failure.
        failures: Failures of the other proxies.
        seconds: Duration by proxy. A pass shared by several proxies counts towards the first.
        wall_time_s: Total duration, in seconds.
        need_all: Whether the outcome is a failure if one proxy fails, and not only if all fail.
        training_macs: Multiply-accumulates of proxies that train, see `training_macs`.

    Returns:
        Metrics: the value of each proxy under its name and its spread over the repeats under `NAME.spread`; the
        multiply-accumulates of a proxy that trains under `NAME.training_macs`; `parameters`, `macs` and `wall_time_s`.
        Details: `topology`, `seconds` by proxy, and `failures` (error, reason) by proxy, if any failed.
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
        if name in training_macs:
            metrics[f"{name}.training_macs"] = float(training_macs[name])
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
    """The input of proxies for one topology. The `models` plug-in of the topology's space builds its models.

    Args:
        topology: The topology to score.
        images: One batch, shape (B, C, H, W).
        image_task: Image size, channels and classes.
        seed: Seed of the proxies.
        labels: Classes of the images, shape (B,), int64; `None` draws them from the seed.
        companions: All proxies that score the topology.

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

    def build_stack(*, seeds: Sequence[int]) -> nn.Module:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        model: nn.Module = build_model.stack(
            topology, image_task, generators=generators, device=images.device, dtype=images.dtype
        )
        return model.eval()

    return Candidate(
        topology=topology,
        task=image_task,
        costs=costs,
        images=images,
        labels=labels,
        build=build,
        build_stack=build_stack if hasattr(build_model, "stack") else None,
        seed=seed,
        companions=companions,
    )
