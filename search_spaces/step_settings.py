"""Everything that one optimizer step depends on, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from search_spaces.recipes import PluginChoice


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """The settings of one optimizer step. The recipe gives the initial values; methods adjust them."""

    batch_size: int
    """Images of the step."""
    image_size: int
    """Height and width that the model sees, pixels; at most that of the data."""
    learning_rate: float
    """After warm-up and schedule."""
    weight_decay: float
    gradient_clip: float | None
    """Largest gradient norm; `None` for no limit."""
    label_smoothing: float
    """Share of the target that is spread evenly over all classes."""
    dropout: float
    drop_path: float
    """Rate of stochastic depth in the last block; it rises evenly to it from 0 in the first."""
    augmentation: PluginChoice
    augmentation_strength: float
    """1 for the plug-in's own strength, 0 for none."""
    mixing: PluginChoice
    mixing_strength: float
    """Share of the batches that are mixed."""
    class_weights: tuple[float, ...] | None = None
    """Weight of an image in the loss, by its class; `None` weighs all alike."""
    model_options: Mapping[str, int] = field(default_factory=dict)
    """Keyword arguments of the model's `forward`, such as `stride_factor`."""
