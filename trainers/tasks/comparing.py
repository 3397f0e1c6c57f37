"""Predictions of several trained models on the same validation images, to compare them image by image."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trainers.config import Configuration
from trainers.data.images import ImageData
from trainers.models.building import build_model
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, logits_of


def evenly_spaced(count: int, limit: int) -> Tensor:
    """Up to `limit` indices below `count`, evenly spaced, int64."""
    if count <= limit:
        return torch.arange(count)
    return torch.arange(limit) * count // limit


def validation_logits(
    models: Sequence[tuple[Configuration, Path]], data: ImageData, indices: Tensor, device: torch.device
) -> list[Tensor]:
    """Logits (N, classes) of each model, on the CPU, for the validation images at `indices` (N,).

    Args:
        models: The configuration and the checkpoint of each model.
        data: Their data.
        indices: Positions in the validation part.
        device: Device of the computation.

    Raises:
        CheckpointError: A checkpoint is missing or damaged.
    """
    normalizer = Normalizer(data.mean, data.std, device)
    images = data.validation.images[indices]
    found = []
    for configuration, checkpoint in models:
        model = build_model(configuration.topology, data.task, seed=configuration.seed, device=device)
        model.load_state_dict(load_weights(checkpoint))
        found.append(torch.cat([logits.cpu() for logits in logits_of(model, images, normalizer)]))
    return found
