"""The settings of one optimizer step, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from search_spaces.recipes import PluginChoice


@dataclass(frozen=True, kw_only=True, slots=True)
class StepSettings:
    """Everything that an optimizer step depends on. The recipe provides the initial values; methods adjust them."""

    batch_size: int
    """Number of images in the step."""
    image_size: int
    """Height and width of the model's input, in pixels; at most that of the data."""
    learning_rate: float
    """Learning rate of the step, with warm-up and schedule applied."""
    weight_decay: float
    gradient_clip: float | None
    """Largest gradient norm; `None` for no limit."""
    label_smoothing: float
    """Share of the target that is spread evenly over all classes."""
    dropout: float
    drop_path: float
    """Stochastic depth rate of the last block; the rate rises linearly from 0 in the first block."""
    augmentation: PluginChoice
    augmentation_strength: float
    """1 applies the augmentation as configured; 0 disables it."""
    mixing: PluginChoice
    mixing_strength: float
    """Share of batches that are mixed."""
    class_weights: tuple[float, ...] | None = None
    """Weight of an image in the loss, by class; `None` weights all images equally."""
    model_options: Mapping[str, int] = field(default_factory=dict)
    """Keyword arguments of the model's `forward`, such as `stride_factor`."""
    level: int = 0
    """0 for the network itself, 1 for the smaller one of a method (`plugins.protocols.TrainsSmaller`)."""
    grown: float = 1.0
    """Factor of the outputs of blocks that the smaller network lacks."""
