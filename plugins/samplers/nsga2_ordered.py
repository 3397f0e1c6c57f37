"""Optuna's NSGA-II with parents in one order, so that a study rebuilt from rows suggests what the first one did."""

from optuna import Study
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial


class OrderedNsga2(NSGAIISampler):
    """Optuna returns a generation's parents by rank when it chooses them, and by number when it remembers them."""

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        """The parents of a generation, by trial number."""
        return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)
