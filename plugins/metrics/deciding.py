"""The metric by which a study decides: how its values are named, compared and shown."""

import math
from typing import TYPE_CHECKING, Literal, Self

from pydantic import BaseModel, ConfigDict

from plugins.metrics.names import metric_key
from plugins.registry import create, load
from search_spaces.recipes import PluginChoice

if TYPE_CHECKING:
    from plugins.protocols import Metric

_WORDS = {"macro-f1": "macro F1"}


class DecidingMetric(BaseModel):
    """A metric plug-in, chosen to compare models."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    choice: PluginChoice
    direction: Literal["maximize", "minimize"]
    is_fraction: bool

    @classmethod
    def of(cls, choice: PluginChoice) -> Self:
        """The metric of a choice.

        Raises:
            plugins.registry.UnknownPluginError: No metric has this name.
        """
        plugin = load("metrics", choice.name)
        return cls(choice=choice, direction=plugin.direction, is_fraction=plugin.is_fraction)

    @property
    def key(self) -> str:
        """Key of its validation values in results and in MLflow, such as `val_macro_f1`."""
        return metric_key(self.choice.name)

    @property
    def words(self) -> str:
        """Its name in a sentence, such as `balanced accuracy`."""
        return _WORDS.get(self.choice.name, self.choice.name.replace("-", " "))

    def create(self) -> "Metric":
        """The plug-in with its settings."""
        metric: Metric = create("metrics", self.choice.name, self.choice.settings)
        return metric

    def score(self, value: float) -> float:
        """A value as a number that is larger for a better model; the worst of all if it is not finite."""
        if not math.isfinite(value):
            return -math.inf
        return value if self.direction == "maximize" else -value

    def text(self, value: float) -> str:
        """A value for people: `94.2 %` or `0.2231`."""
        return f"{100 * value:.1f} %" if self.is_fraction else f"{value:.4f}"

    def difference(self, value: float, before: float) -> str:
        """How much better a value is than another one, for people: `+1.20 points` or `+0.0123`."""
        gain = self.score(value) - self.score(before)
        return f"{100 * gain:+.2f} points" if self.is_fraction else f"{gain:+.4f}"

    def amount(self, size: float) -> str:
        """An amount of the metric for people: `1.20 points of accuracy` or `0.0123 of loss`."""
        return f"{100 * size:.2f} points of {self.words}" if self.is_fraction else f"{size:.4f} of {self.words}"


ACCURACY_CHOICE = PluginChoice(name="accuracy")
"""The metric of a study that names none."""
ACCURACY = DecidingMetric(choice=ACCURACY_CHOICE, direction="maximize", is_fraction=True)
"""The metric of results of version 0.1.0."""
