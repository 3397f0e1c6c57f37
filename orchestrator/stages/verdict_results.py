"""Settings and typed result of the stage `correlate`."""

from typing import Literal, NamedTuple

from pydantic import Field

from orchestrator.evaluation.verdict import Ceiling, EarlyJudgement, Interval, JointVerdict, SameSize, Verdict
from orchestrator.stages.kind import StageResult


class VerdictSettings(NamedTuple):
    """Settings for judging proxies."""

    baselines: tuple[str, ...]
    resamples: int
    confidence: float
    combine: bool
    """Whether to judge combinations of the scores as well."""


class TruthSummary(StageResult):
    """The ground truth that scores were compared with."""

    kind: Literal["trials", "table"]
    name: str
    source: str
    target: str
    unit: Literal["fraction", "table"]
    num_topologies: int
    digest: str
    num_seeds: int = 1
    """Trainings of each topology, whose mean is its accuracy; the least, if they differ."""
    epoch: int | None = None
    """The epoch at which trainings that ended at different epochs were compared; `None` for their results."""
    num_epochs: int | None = None
    """Epochs of a whole training; `None` for a table."""
    num_left_out: int = 0
    """Trained topologies that did not reach this epoch."""


class VerdictRow(StageResult):
    """An `orchestrator.evaluation.verdict.Verdict` with the baselines that it beats."""

    proxy: str
    num_topologies: int
    num_seeds: int
    tau: Interval
    spearman: Interval
    top_recall: Interval
    regret: Interval
    partial_tau: Interval | None
    minus: dict[str, Interval]
    same_size: dict[str, SameSize] = Field(default_factory=dict)
    """By measure of size: the verdict over pairs of like size; empty in results of version 0.1.0."""
    seed_spread: float | None
    note: str | None
    is_combination: bool
    above_zero: bool | None = None
    """Whether tau is shown to be above 0 over all scores together; `None` in results of version 0.1.0."""
    below_zero: bool | None = None
    """Whether tau is shown to be below 0 over all scores together; `None` in results of version 0.1.0."""
    is_suspicious: bool = False
    """Whether the ranking is too good for a score that has not seen the accuracies."""
    beats: tuple[str, ...]
    beats_all: bool
    training_macs: float | None = None
    """Mean multiply-accumulates per topology and seed of a score that trains for a few steps; `None` for a
    training-free score."""
    wall_time_s: float | None = None
    """Mean seconds per topology and seed; a pass that several scores share counts for the first of them. `None` for a
    combination, and in results of older versions."""

    @property
    def verdict(self) -> Verdict:
        """The verdict of this row. Marks that version 0.1.0 did not record are not set."""
        known = {name: getattr(self, name) for name in Verdict.model_fields if name != "beaten"}
        marks = {name: bool(known[name]) for name in ("above_zero", "below_zero")}
        return Verdict.model_validate({**known, **marks, "beaten": self.beats})


class Transfer(StageResult):
    """The combination learned on the first truth, judged on another."""

    truth: TruthSummary
    proxies: tuple[VerdictRow, ...]
    shared: tuple[str, ...] = ()
    """Topologies on which the combination was also learned, with the other target; they are predicted out of fold."""


class FurtherTruth(StageResult):
    """The verdicts on the same scores by further accuracies, best tau first."""

    truth: TruthSummary
    proxies: tuple[VerdictRow, ...]
    ceiling: Ceiling | None = None
    """The tau that a perfect score could reach; `None` if unknown."""
    has_no_verdict: bool = False
    """Whether the accuracies differ by no more than chance."""


class CorrelateResult(StageResult):
    """The verdicts on all proxies, best tau first."""

    truth: TruthSummary
    num_topologies: int
    num_seeds: int
    baselines: tuple[str, ...]
    confidence: float
    resamples: int
    proxies: tuple[VerdictRow, ...]
    transfers: tuple[Transfer, ...]
    early: EarlyJudgement | None
    ceiling: Ceiling | None = None
    """The tau that a perfect score could reach; `None` if unknown, and in results of version 0.1.0."""
    has_no_verdict: bool = False
    """Whether the accuracies differ by no more than chance, so that no score is marked."""
    further: tuple[FurtherTruth, ...] = ()
    """The verdicts by the stage's `further` accuracies."""
    joint: tuple[JointVerdict, ...] = ()
    """The verdicts over all accuracies together, for all pairs of topologies and for those of like size, each with the
    highest mean difference first; empty with a single one."""
