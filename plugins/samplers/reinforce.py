"""REINFORCE, the search of As-ViT for its seed topology."""

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
"""Maximum number of values per dimension. With more, a policy would hardly visit any value twice."""


@dataclass(frozen=True, kw_only=True)
class Reinforce:
    """Policy gradient: an independent categorical distribution per dimension, trained on changes of the scores.

    If the policy draws a known point again, it learns from the known scores again, without a new trial. If it draws
    known points only, new trials are drawn at a higher temperature, and the policy does not learn from them. A screen
    scores the argmax of each dimension as its last trial.
    """

    card: ClassVar[PluginCard] = PluginCard(
        source=(
            "Williams 1992; reward, baseline and settings of Chen et al. 2022, As-ViT, arXiv:2202.11921. Differences: "
            "a failed trial counts as the worst scores so far, as in the paper but not in its code; a point is scored "
            "only once"
        ),
        cost="about a millisecond per suggestion, even at 10,000 trials",
        needs=("choices and whole numbers without conditions",),
    )
    learning_rate: Annotated[float, Field(gt=0)] = 0.08
    """Learning rate of Adam for the logits of the policy."""
    window: Annotated[int, Field(ge=2)] = 20
    """Number of newest steps that define the range of a score, the unit of its changes."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of the reward baseline, a moving average of the rewards."""

    def problem(self, dimensions: Sequence[Dimension]) -> str | None:
        """Each dimension must have a fixed list of options."""
        for dimension in dimensions:
            if isinstance(dimension, Real):
                found = f"{dimension.name} is a range of real numbers"
            elif dimension.when is not None:
                found = f"{dimension.name} exists only if {dimension.when}"
            elif num_values(dimension) > MAX_OPTIONS:
                found = f"{dimension.name} has {num_values(dimension):,} values (at most {MAX_OPTIONS:,} are supported)"
            else:
                continue
            return f"reinforce needs choices and whole numbers without conditions, but {found}. Use another sampler."
        return None

    def build(self, seed: int, *, study_seed: int) -> "BaseSampler":
        from plugins.samplers.policy_sampler import PolicySampler

        return PolicySampler(self._policy_settings(), seed=seed, study_seed=study_seed)

    def final_choice(self, study: "Study", *, study_seed: int, num_trials: int) -> Point | None:
        """The most probable value of each dimension after the first `num_trials` trials; `None` if none finished."""
        from plugins.samplers.history import finished_trials
        from plugins.samplers.policy_sampler import trained_policy

        finished = finished_trials(study, num_trials=num_trials)
        policy = trained_policy(self._policy_settings(), study, finished, study_seed=study_seed)
        return None if policy is None else policy.values(policy.best())

    def _policy_settings(self) -> "PolicySettings":
        from plugins.samplers.policy import PolicySettings

        return PolicySettings(learning_rate=self.learning_rate, momentum=self.momentum, window=self.window)
