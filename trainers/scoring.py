"""Scores one topology with training-free proxies."""

import math
import time

import torch
from torch import Tensor, nn

from plugins.protocols import Candidate, ProxyScore
from plugins.registry import create, load, parse_topology
from search_spaces.base import Costs, ImageTask, Topology
from trainers.config import ScoreTask, TaskOutcome


def score_topology(task: ScoreTask, images: Tensor, image_task: ImageTask) -> TaskOutcome:
    """Every proxy of `task` on its topology.

    Args:
        task: Topology, proxies and seed; the same seed and images give the same scores.
        images: One batch of normalised training images, shape (B, C, H, W), on the device and in the dtype to score in.
        image_task: Image size, channels and classes of the data.

    Returns:
        Metrics: per proxy its value under its name and the spread over its repeats under `NAME.spread`; `parameters`,
        `macs` and `wall_time_s`. Failed as `not-finite` if any value is not finite; such values are left out.

    Raises:
        ValueError: The topology's text is wrong or does not fit the data, or a proxy is unknown or has wrong settings.
    """
    start = time.perf_counter()
    topology = parse_topology(task.topology)
    candidate = make_candidate(topology, images, image_task, seed=task.seed)
    scores: dict[str, ProxyScore] = {}
    for choice in task.proxies:
        scores[choice.name] = create("proxies", choice.name, choice.settings).score(candidate)
    metrics = {"parameters": float(candidate.costs.parameters), "macs": float(candidate.costs.macs)}
    for name, score in scores.items():
        metrics |= {name: score.value, f"{name}.spread": score.spread}
    metrics["wall_time_s"] = time.perf_counter() - start
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    details = {"topology": topology.id}
    bad = [name for name, score in scores.items() if not math.isfinite(score.value)]
    if bad:
        reason = f"every score must be a finite number, but {', '.join(bad)} of {topology.id} is not."
        return TaskOutcome(state="failed", error="not-finite", reason=reason, metrics=finite, details=details)
    return TaskOutcome(state="complete", metrics=finite, details=details)


def make_candidate(topology: Topology, images: Tensor, image_task: ImageTask, *, seed: int) -> Candidate:
    """One topology as proxies see it; models come from the `models` plug-in of the topology's space.

    Raises:
        ValueError: The topology does not fit the data.
    """
    name = topology.id.partition(":")[0]
    space, build_model = load("spaces", name), load("models", name)
    problem = space.problem(topology, image_task)
    if problem:
        raise ValueError(f"{topology.id} cannot be scored: {problem}")
    costs: Costs = space.costs(topology, image_task)

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

    return Candidate(topology=topology, task=image_task, costs=costs, images=images, build=build, seed=seed)
