"""What plug-ins of a training step are given, for tests that do not train."""

from typing import Any

from plugins.protocols import Now
from search_spaces.recipes import PluginChoice
from search_spaces.step_settings import StepSettings


def step_settings(**given: Any) -> StepSettings:
    """Settings of one step: those of a plain recipe, with the given ones replaced."""
    plain: dict[str, Any] = {
        "batch_size": 64,
        "image_size": 16,
        "learning_rate": 2e-3,
        "weight_decay": 0.05,
        "gradient_clip": None,
        "label_smoothing": 0.0,
        "dropout": 0.0,
        "drop_path": 0.0,
        "augmentation": PluginChoice(name="none"),
        "augmentation_strength": 1.0,
        "mixing": PluginChoice(name="none"),
        "mixing_strength": 1.0,
    }
    return StepSettings(**plain | given)


def now(progress: float = 0.0, *, num_epochs: int = 8) -> Now:
    """A moment of a training, with losses and accuracy after the first epoch."""
    epoch = int(progress * num_epochs) + 1
    known = {"train_loss": 1.0, "val_loss": 1.2, "val_accuracy": 0.5} if epoch > 1 else {}
    return Now(epoch=epoch, num_epochs=num_epochs, progress=progress, signals=known)
