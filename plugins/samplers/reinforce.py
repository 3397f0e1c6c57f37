"""REINFORCE, as As-ViT searches its seed topology."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from plugins.protocols import PluginCard
from search_spaces.dimensions import Dimension, Point, Real, num_values

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

    from plugins.samplers.policy import PolicySettings

MAX_OPTIONS = 1000
"""A dimension with more values is refused: a policy would visit hardly any of them twice."""


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """Policy gradient: an independent categorical for each dimension, trained on how scores change from step to step.

    A point that the policy draws again is learned from again, by its known scores; it is no new trial. Once the policy
    draws nothing new, trials are drawn around what it settled on, and teach it nothing. Its last word is the argmax of
    each dimension, which a screen scores as its last trial.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Williams 1992; reward, baseline and settings of Chen et al. 2022, As-ViT, arXiv:2202.11921. Differences: "
            "a failed trial counts as the worst scores so far, as the paper says and its code never does; a point is "
            "scored once only"
        ),
        cost="about a millisecond a suggestion, at 10,000 trials too",
        needs=("choices and whole numbers without conditions",),
    )
    learning_rate: Annotated[float, Field(gt=0)] = 0.08
    """Of Adam on the policy's logits."""
    window: Annotated[int, Field(ge=2)] = 20
    """Newest steps whose range of a score is the unit of its change."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of the moving average of the rewards that a reward is compared with."""

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:
        """A policy needs a list of options for each dimension, always the same."""
        for dimension in dimensions:
            if isinstance(dimension, Real):
                found = f"{dimension.name} is a range of real numbers"
            elif dimension.when is not None:
                found = f"{dimension.name} is there only while {dimension.when}"
            elif num_values(dimension) > MAX_OPTIONS:
                found = f"{dimension.name} has {num_values(dimension):,} values (at most {MAX_OPTIONS:,} are taken)"
            else:
                continue
            return f"reinforce needs choices and whole numbers without conditions, but {found}. Use another sampler."
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":
        from plugins.samplers.policy_sampler import PolicySampler

        return PolicySampler(self._policy_settings(), seed=seed, study_seed=study_seed)

    def final_choice(self, study: "Study", *, study_seed: int, num_trials: int) -> Point | None:
        """The most probable value of each dimension after the first `num_trials` trials; `None` where none finished."""
        from plugins.samplers.history import finished_trials
        from plugins.samplers.policy_sampler import trained_policy

        finished = finished_trials(study, num_trials=num_trials)
        policy = trained_policy(self._policy_settings(), study, finished, study_seed=study_seed)
        return None if policy is None else policy.values(policy.best())

    def _policy_settings(self) -> "PolicySettings":
        from plugins.samplers.policy import PolicySettings

        return PolicySettings(learning_rate=self.learning_rate, momentum=self.momentum, window=self.window)
