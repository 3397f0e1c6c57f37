"""Verdicts on training-free scores and early rankings, as plain data without NumPy."""

from pydantic import BaseModel, ConfigDict


class Interval(BaseModel):
    """A statistic with a percentile bootstrap interval; `None` if it is undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Interval(value=None, low=None, high=None)


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
    """Accuracy lost by trusting the score's first choice, in the unit of the accuracy."""
    partial_tau: Interval | None
    """Kendall's tau given the parameter count; `None` for `params` itself or if `params` was not scored."""
    minus: dict[str, Interval]
    """Paired difference of tau to each other baseline, on the topologies that both scored."""
    seed_spread: float | None
    """Standard deviation (ddof 1) of tau over the seeds of the proxy; `None` for one seed or an exact score."""
    note: str | None
    """Reason for a missing value, or a caveat."""

    def beats(self, baseline: str) -> bool:
        """Whether the interval of the difference to the baseline lies above zero; False for the baseline itself."""
        low = self.minus.get(baseline, UNDEFINED).low
        return low is not None and low > 0

    @property
    def beats_all(self) -> bool:
        """Whether the proxy beats all other baselines; False if there are none."""
        return bool(self.minus) and all(self.beats(baseline) for baseline in self.minus)


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
