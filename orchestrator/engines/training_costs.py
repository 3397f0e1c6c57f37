"""What an execution knows of the time of trainings: one model, for the time left and for pool `auto`."""

from collections.abc import Hashable, Sequence
from statistics import fmean

from orchestrator.engines.cost_model import (
    MOST_FITTED,
    CostModel,
    ObservedCost,
    TrainingShape,
    fit_epoch_s,
    usual_epoch_s,
)
from trainers.config import Configuration


class TrainingCosts:
    """Learns from the newest trainings of an execution. The model is fitted when it is asked for."""

    def __init__(self) -> None:
        self._newest: dict[Hashable, ObservedCost] = {}
        self._model: CostModel | None = None
        self._is_fitted = True

    def learn(self, training: Hashable, observed: ObservedCost) -> None:
        """Learn the time of an epoch of a training, in seconds. It replaces what was known of the training.

        Args:
            training: Identifies the training.
            observed: Its shape and time.
        """
        self._newest.pop(training, None)
        self._newest[training] = observed
        if len(self._newest) > MOST_FITTED:
            del self._newest[next(iter(self._newest))]
        self._is_fitted = False

    @property
    def model(self) -> CostModel | None:
        """Predicts the seconds of an epoch; `None` if no training is known."""
        if not self._is_fitted:
            self._model, self._is_fitted = fit_epoch_s(list(self._newest.values())), True
        return self._model

    def epoch_s(self, shape: TrainingShape) -> float:
        """Estimated seconds of an epoch: learned, or from a closed form if no training is known."""
        model = self.model
        return usual_epoch_s(shape) if model is None else model.predict(shape)

    def training_s(self, configurations: Sequence[Configuration]) -> float:
        """Estimated seconds of a training alone on its cores: the mean of `configurations`, which must not be empty."""
        from trainers.data.images import load_images  # imports torch

        data = load_images(configurations[0].data)
        num_images = float(len(data.train))
        return fmean(
            one.epochs * self.epoch_s(TrainingShape.of(one, data.task, num_images=num_images)) for one in configurations
        )
