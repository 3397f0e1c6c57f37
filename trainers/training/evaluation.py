"""Forward passes without training: logits and metrics on a part of the data, and losses of single examples."""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plugins.metrics.names import RECORDED_METRICS
from plugins.protocols import Metric
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from trainers.data.images import ImageSplit
from trainers.data.mapping import batches
from trainers.hardware.devices import autocast, summable
from trainers.training.ranks import ALONE, Ranks

_PIXELS_PER_BATCH = 1 << 19
"""Limits the activations of one evaluation batch: 512 images of 32 x 32 pixels."""


class Normalizer:
    """Converts uint8 pixels to model input with zero mean and unit variance per channel of the training part."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device).view(1, -1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32, device=device).view(1, -1, 1, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised float32 images of uint8 images (B, C, H, W)."""
        return self.scale(images).sub_(self.mean).div_(self.std)

    def scale(self, images: Tensor) -> Tensor:
        """Pixels from 0..255 to 0..1, float32."""
        return images.float().div_(255)

    def normalize(self, images: Tensor) -> Tensor:
        """Pixels on a scale of 0 to 1, normalised."""
        return (images - self.mean) / self.std


class Evaluation(NamedTuple):
    """Metrics of a model on a part of the data."""

    loss: float
    """Mean cross-entropy without label smoothing."""
    accuracy: float
    """Fraction between 0 and 1."""
    metrics: Mapping[str, float] = {}
    """All metrics, including these two, by the names of their plug-ins."""


def evaluate(
    model: nn.Module,
    split: ImageSplit,
    normalizer: Normalizer,
    *,
    metric: PluginChoice | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Metrics of a model. Leaves it in evaluation mode.

    Args:
        model: The model.
        split: Images and labels, on the model's device or the CPU.
        normalizer: Converts the images.
        metric: A further metric to measure.
        ranks: The processes that compute the logits, each for its part of the images.
    """
    logits = _all_logits(model, split.images, normalizer, ranks)
    return judge(logits, split.labels.to(logits.device), metric=metric)


def judge(logits: Tensor, labels: Tensor, *, metric: PluginChoice | None = None) -> Evaluation:
    """Metrics of logits (N, classes) for labels (N,), and a further one."""
    logits, labels = summable(logits), summable(labels)
    metrics = {name: _metric(name).measure(logits, labels) for name in RECORDED_METRICS}
    if metric is not None and metric.name not in metrics:
        plugin: Metric = create("metrics", metric.name, metric.settings)
        metrics[metric.name] = float(plugin.measure(logits, labels))
    return Evaluation(metrics["loss"], metrics["accuracy"], metrics)


@lru_cache(maxsize=64)
def _metric(name: str) -> Metric:
    metric: Metric = create("metrics", name)
    return metric


def example_losses(model: nn.Module, split: ImageSplit, normalizer: Normalizer, *, ranks: Ranks = ALONE) -> Tensor:
    """Cross-entropy of each example, shape (N,), float32, on the CPU. Leaves the model in evaluation mode."""
    logits = _all_logits(model, split.images, normalizer, ranks)
    return losses_of(logits, split.labels.to(logits.device))


def _all_logits(model: nn.Module, images: Tensor, normalizer: Normalizer, ranks: Ranks) -> Tensor:
    """Logits (N, classes) of all images."""
    logits: Tensor = ranks.spread(lambda part: torch.cat(list(logits_of(model, part, normalizer))), images)
    return logits


def losses_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each example, shape (N,), on the CPU, from logits (N, classes)."""
    return F.cross_entropy(logits, labels, reduction="none").cpu()


def class_probabilities(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Probabilities (N, classes) from logits; every prediction, table and exported model computes them here.

    Args:
        logits: Of any float type, (N, classes).
        temperature: Divides the logits; above 1, probabilities are less extreme. The most probable class is the same.
    """
    return (logits / temperature).softmax(1)


def logits_of(model: nn.Module, images: Tensor, normalizer: Normalizer) -> Iterator[Tensor]:
    """Logits (B, classes), float32, of uint8 images (N, C, H, W), batch by batch, on the normalizer's device.

    Leaves the model in evaluation mode. The batch size depends only on the image size.
    """
    device = normalizer.mean.device
    batch_size = max(1, _PIXELS_PER_BATCH // images.shape[-1] ** 2)
    model.eval()
    for batch in batches(images, batch_size):
        with torch.inference_mode(), autocast(device):
            logits: Tensor = model(normalizer(batch.to(device)))
        yield logits.float()
