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
    """Learns from the newest trainings."""

    def __init__(self) -> None:
        self._all = _Observations()
        self._here = _Observations()
        """Those of this execution."""

    def learn(self, training: Hashable, observed: ObservedCost, *, is_earlier: bool = False) -> None:
        """Learn the time of an epoch of a training, in seconds. It replaces what was known of the training.

        Args:
            training: Identifies the training.
            observed: Its shape and time.
            is_earlier: It ended in an earlier execution.
        """
        self._all.add(training, observed)
        if not is_earlier:
            self._here.add(training, observed)

    def epoch_s(self, shape: TrainingShape) -> float:
        """Estimated seconds of an epoch: learned, or from a closed form if no training is known."""
        return self._all.epoch_s(shape)

    def training_s(self, configurations: Sequence[Configuration]) -> float:
        """Estimated seconds of a training alone on its cores: the mean of `configurations`, which must not be empty.

        Only trainings of this execution count: nothing tells how many cores earlier ones used.
        """
        from trainers.data.images import load_images  # imports torch

        data = load_images(configurations[0].data)
        num_images = float(len(data.train))
        return fmean(
            one.epochs * self._here.epoch_s(TrainingShape.of(one, data.task, num_images=num_images))
            for one in configurations
        )


class _Observations:
    """The newest trainings, with a model that is fitted when it is asked for."""

    def __init__(self) -> None:
        self._newest: dict[Hashable, ObservedCost] = {}
        self._model: CostModel | None = None
        self._is_fitted = True

    def add(self, training: Hashable, observed: ObservedCost) -> None:
        self._newest.pop(training, None)
        self._newest[training] = observed
        if len(self._newest) > MOST_FITTED:
            del self._newest[next(iter(self._newest))]
        self._is_fitted = False

    def epoch_s(self, shape: TrainingShape) -> float:
        if not self._is_fitted:
            self._model, self._is_fitted = fit_epoch_s(list(self._newest.values())), True
        return usual_epoch_s(shape) if self._model is None else self._model.predict(shape)
