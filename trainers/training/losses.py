"""Losses and metrics of a training: checks that they are finite, their means, and the final metrics."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from plugins.metrics.deciding import DecidingMetric
from plugins.metrics.names import metric_key
from plugins.protocols import StatefulLoss
from plugins.registry import create
from search_spaces.base import ImageTask
from search_spaces.recipes import Recipe
from trainers.config import EpochReport
from trainers.models.building import topology_costs
from trainers.training.best_epoch import best_report
from trainers.training.loss_needs import mixing_problem

STEPS_PER_FINITE_CHECK = 16
"""Number of steps between checks of the loss. Reading a loss waits for the GPU, so not every step is checked."""


class NotFiniteError(Exception):
    """A loss is NaN or infinite. The message names the step or epoch."""


_ADVICE = "Lower the learning rate, or use a gradient clip and a longer warm-up."


def initial_loss_state(recipe: Recipe, num_images: int, num_classes: int, device: torch.device) -> dict[str, Tensor]:
    """The state of a recipe's loss before the first step, on a device; empty if it keeps none.

    Raises:
        ValueError: The recipe mixes images, but its loss keeps a state of each image.
    """
    plugin = create("losses", recipe.loss.name, recipe.loss.settings)
    if not isinstance(plugin, StatefulLoss):
        return {}
    problem = mixing_problem(recipe.loss, recipe.mixing)
    if problem is not None:
        raise ValueError(f"recipe.mixing {problem}")
    return {name: value.to(device) for name, value in plugin.initial_state(num_images, num_classes).items()}


def check_losses(losses: Sequence[float], numbers: Sequence[int], epoch: int) -> None:
    """Check losses of an epoch.

    Args:
        losses: The losses.
        numbers: Numbers of their steps.
        epoch: Number of the epoch.

    Raises:
        NotFiniteError: A loss is NaN or infinite; the first one is named.
    """
    for step, value in zip(numbers, losses, strict=True):
        if not math.isfinite(value):
            raise NotFiniteError(f"the training loss is {value} at step {step} of epoch {epoch}. {_ADVICE}")


def check_validation(loss: float, metrics: Mapping[str, float], epoch: int) -> None:
    """Raise NotFiniteError if the validation loss or a metric is NaN or infinite."""
    if not math.isfinite(loss):
        raise NotFiniteError(f"the validation loss is {loss} after epoch {epoch}. {_ADVICE}")
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise NotFiniteError(
                f"the metric {name} must be finite on the validation part, but is {value} after epoch {epoch}. Choose "
                "another metric."
            )


def mean_loss(losses: Sequence[Tensor], sizes: Sequence[int]) -> float:
    """Mean loss per image, from the mean loss and the number of images of each step."""
    weights = torch.tensor(sizes, dtype=torch.float64)
    return float(torch.stack(list(losses)).cpu().double() @ weights / weights.sum())


def further_metrics(measured: Mapping[str, float]) -> dict[str, float]:
    """Validation metrics for a report, by their keys, without loss and accuracy, which have separate fields."""
    return {metric_key(name): value for name, value in measured.items() if name not in ("loss", "accuracy")}


def final_metrics(
    history: Sequence[EpochReport], topology: str, task: ImageTask, metric: DecidingMetric
) -> dict[str, float]:
    """The metrics of a training, from the reports of its epochs (at least one), the best of them by `metric`."""
    last, best = history[-1], best_report(history, metric)
    wall_time_s = sum(report.wall_time_s for report in history)
    costs = topology_costs(topology, task)
    return {
        "val_accuracy": last.val_accuracy,
        "val_loss": last.val_loss,
        **last.metrics,
        "train_loss": last.train_loss,
        "val_accuracy_best": max(report.val_accuracy for report in history),
        "val_loss_best": min(report.val_loss for report in history),
        f"{metric.key}_best": best.value(metric),
        "best_epoch": float(best.epoch),
        "epochs": float(len(history)),
        "wall_time_s": wall_time_s,
        "throughput_images_per_s": sum(report.num_images for report in history) / wall_time_s,
        "training_macs": sum(report.training_macs for report in history),
        "parameters": float(costs.parameters),
        "macs": float(costs.macs),
    }
