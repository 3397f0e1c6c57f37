"""Verdicts on training-free scores and on early rankings, as plain data without NumPy."""

from pydantic import BaseModel, ConfigDict


class Interval(BaseModel):
    """A statistic with a percentile bootstrap interval; `None` if it is undefined."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    value: float | None
    low: float | None
    high: float | None


UNDEFINED = Interval(value=None, low=None, high=None)


class Verdict(BaseModel):
    """How well one proxy ranked the topologies. A statistic is the mean over the proxy's seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    proxy: str
    num_topologies: int
    """Those with a score from every seed."""
    num_seeds: int
    tau: Interval
    """Kendall's tau-b between accuracy and the score, oriented so that 1 is a perfect ranking."""
    spearman: Interval
    """Spearman's rho, oriented in the same way."""
    top_recall: Interval
    """Share of the true top decile (at least one topology) that is found in the score's top decile."""
    regret: Interval
    """Accuracy lost by trusting the score's first choice, in the unit of the accuracy."""
    partial_tau: Interval | None
    """Kendall's tau given the parameter count; `None` for `params` itself, or if it is undefined."""
    minus: dict[str, Interval]
    """Paired difference of tau from each baseline, without itself, over the topologies that both scored."""
    seed_spread: float | None
    """Standard deviation (ddof 1) of tau over the proxy's seeds; `None` for one seed or an exact score."""
    note: str | None
    """Why a value is missing, or what to be careful about."""

    def beats(self, baseline: str) -> bool:
        """Whether the interval of the difference from the baseline lies above zero; False for the baseline itself."""
        low = self.minus.get(baseline, UNDEFINED).low
        return low is not None and low > 0

    @property
    def beats_all(self) -> bool:
        """Whether it beats every baseline, itself left out; False if there is none."""
        return bool(self.minus) and all(self.beats(baseline) for baseline in self.minus)


class EpochAgreement(BaseModel):
    """How much of the final ranking is there after an epoch."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epoch: int
    """Starting at 1."""
    tau: Interval
    """Kendall's tau-b between the accuracies after this epoch and after the last one."""


class EarlyJudgement(BaseModel):
    """When trials like these can be compared."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: list[EpochAgreement]
    first_reliable_epoch: int | None
    """From here on tau stays at the threshold or above; `None` if that is only so at the last epoch."""
    rungs: list[int]
    """Epochs at which to compare trials, a factor of 3 apart; none at the last epoch, where nothing is left to save."""
    advice: str
