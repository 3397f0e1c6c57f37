"""Verdicts on training-free scores and early rankings, as plain data without NumPy."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Interval(BaseModel):
    """A statistic with its interval; `None` if it is undefined. A value without interval has too few points for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Interval(value=None, low=None, high=None)


class SameSize(BaseModel):
    """How well a score ranks topologies of like size, between which counting is nearly blind."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tau: Interval
    """Kendall's tau-b over the pairs of like size only."""
    num_pairs: int


class Ceiling(BaseModel):
    """The tau that a perfect score could reach, since accuracies after training are random themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    source: Literal["seeds", "images"]
    """`seeds`: from several trainings of each topology; `images`: from the number of images that measured the
    accuracies. This does not contain the effect of the training seed, which lowers the ceiling; but it takes each
    accuracy as measured on its own images, although all were measured on the same ones, so that it understates how well
    these very trainings can be ranked."""
    reliability: Interval
    """Share of the differences between the accuracies that is not noise."""
    tau: Interval
    """Expected tau between the accuracies and the true ranking."""
    num_seeds: int
    """Trainings of each topology; the least, if they differ."""

    @property
    def may_be_chance(self) -> bool:
        """Whether noise alone would explain the differences between the accuracies."""
        return not (self.reliability.low or 0) > 0


class Verdict(BaseModel):
    """How well a proxy ranked the topologies. Statistics are means over the seeds of the proxy."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    proxy: str
    num_topologies: int
    """Number of topologies with a score for every seed."""
    num_seeds: int
    tau: Interval
    """Kendall's tau-b between accuracy and score, oriented so that 1 is a perfect ranking."""
    spearman: Interval
    """Spearman's rho, with the same orientation."""
    top_recall: Interval
    """Fraction of the true top decile (at least one topology) in the top decile of the score."""
    regret: Interval
    """Accuracy lost by trusting the score's first choice, in the unit of the accuracy. It depends on one choice and one
    best topology: measured, a 95 % interval contains the true value in 79 to 93 % of cases only."""
    partial_tau: Interval | None
    """Kendall's tau given the parameter count; `None` for `params` itself or if `params` was not scored."""
    minus: dict[str, Interval]
    """Paired difference of tau to each other baseline, on the topologies that both scored."""
    same_size: dict[str, SameSize] = Field(default_factory=dict)
    """By measure of size (`params`, `flops`): the verdict over pairs of like size."""
    seed_spread: float | None
    """Standard deviation (ddof 1) of tau over the seeds of the proxy; `None` for one seed or an exact score."""
    above_zero: bool = False
    """Whether tau is shown to be above 0, at one error level for all scores and differences together."""
    below_zero: bool = False
    """Whether tau is shown to be below 0, at one error level for all scores together."""
    beaten: tuple[str, ...] = ()
    """Baselines to which the difference is shown to be above 0, at the same level; empty without `above_zero`."""
    is_suspicious: bool = False
    """Whether the ranking is too good for a score that has not seen the accuracies; `note` then says so."""
    note: str | None
    """Reason for a missing value, or a caveat."""

    def beats(self, baseline: str) -> bool:
        """Whether the proxy is shown to rank better than a baseline; False for the baseline itself."""
        return baseline in self.beaten

    @property
    def beats_all(self) -> bool:
        """Whether the proxy beats all other baselines; False if there are none."""
        return bool(self.minus) and all(self.beats(baseline) for baseline in self.minus)


class TableVerdict(BaseModel):
    """A score on one of several tables, compared with the strongest baseline there."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: str
    num_topologies: int
    baseline: str
    """The baseline with the highest tau on this table."""
    tau: Interval
    difference: Interval
    """Tau minus that of the baseline; for the baseline itself, 0."""
    is_better: bool
    """Whether the interval of the difference lies above zero, by the interval on this table alone."""
    is_worse: bool
    """Whether it lies below zero."""


class JointVerdict(BaseModel):
    """A score on several tables together."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    proxy: str
    question: Literal["any size", "like size"]
    """`any size`: all pairs of topologies; `like size`: the pairs of like size only."""
    tables: tuple[TableVerdict, ...]
    """Tables on which the score could be compared, in their order."""
    num_missing: int
    """Tables on which it could not, which are left out of the means."""
    mean_tau: Interval
    mean_difference: Interval
    """Mean difference from the strongest baseline of each table; the interval resamples topologies, not tables."""
    worst: str | None
    """The table with the lowest difference."""
    is_better: bool
    """Whether mean tau and mean difference are shown to be above zero, at one error level for all scores together."""
    num_beaten: int
    """Tables on which the score beats the strongest baseline, by the interval on each table alone."""
    num_lost: int
    """Tables on which it is worse than the strongest baseline, by the same interval."""


class EpochAgreement(BaseModel):
    """Agreement of the ranking after an epoch with the final ranking."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epoch: int
    """Starting at 1."""
    tau: Interval
    """Kendall's tau-b between the accuracies after this epoch and after the last one."""


class EarlyJudgement(BaseModel):
    """The epochs at which trials like the recorded ones can be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: list[EpochAgreement]
    first_reliable_epoch: int | None
    """First epoch from which tau stays at the threshold or above; `None` if this holds for the last epoch only."""
    rungs: list[int]
    """Epochs at which to compare trials, a factor of 3 apart, not including the last epoch."""
    advice: str
