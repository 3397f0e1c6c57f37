"""Judges scored proxies against a ground truth for stage `correlate`, and makes its table, metrics and figures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from orchestrator.evaluation.combining import MIN_TO_LEARN, transfer
from orchestrator.evaluation.early_ranking import judge_early
from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.joint import QUESTIONS, Question, judge_jointly, with_unique_titles
from orchestrator.evaluation.verdict import EarlyJudgement, Interval, JointVerdict, Verdict
from orchestrator.reports.csv_text import csv_text
from orchestrator.reports.plots import agreement_over_epochs, correlation_summary, scatter_score_against_accuracy
from orchestrator.reports.tables_plot import summary_of_tables
from orchestrator.stages.context import StageContext
from orchestrator.stages.judged_truth import LEARNED, JudgedTruth, truth_summary
from orchestrator.stages.kind import StageOutcome
from orchestrator.stages.truth_scores import ScoredTruth
from orchestrator.stages.truths import TRAINED_TARGET
from orchestrator.stages.verdict_results import CorrelateResult, FurtherTruth, Transfer, VerdictSettings
from orchestrator.tracking.names import count_text
from search_spaces.recipes import PluginChoice

NO_VERDICT = "no verdict, since these trainings differ by no more than chance"
AnyVerdict = TypeVar("AnyVerdict", Verdict, JointVerdict)
_UNITS = {"fraction": "fraction", "table": "as in the table"}


class ProxyVerdicts:
    """The verdicts of one stage, with its table, metrics and figures.

    Args:
        context: The context of the stage.
        settings: Settings of the verdicts.
        choices: The proxies.
        scored: The ground truth, and the `further` ones.
        transfers: The ground truths on which the learned combination is tested.
    """

    def __init__(
        self,
        context: StageContext,
        settings: VerdictSettings,
        choices: Sequence[PluginChoice],
        scored: Sequence[ScoredTruth],
        transfers: Sequence[ScoredTruth],
    ) -> None:
        self._context = context
        self._settings = settings
        self._judged = [JudgedTruth(one, choices, settings, seed=context.seed) for one in scored]
        self._first = self._judged[0]
        self._scored, self._truth = self._first.scored, self._first.truth
        self.verdicts = self._first.verdicts
        self.transfers = [
            self._carry_over(JudgedTruth(other, choices, settings, seed=context.seed)) for other in transfers
        ]
        self.early = self._early()
        self.joint = [row for question in QUESTIONS for row in self._jointly(question)]

    def outcome(self) -> StageOutcome:
        """The stage's result, table, metrics and figures."""
        truth = self._truth
        result = CorrelateResult(
            truth=truth_summary(truth),
            num_topologies=len(truth.topologies),
            num_seeds=self._scored.num_seeds,
            baselines=self._settings.baselines,
            confidence=self._settings.confidence,
            resamples=self._settings.resamples,
            proxies=self._first.rows(),
            transfers=tuple(self.transfers),
            early=self.early,
            ceiling=self._first.ceiling,
            has_no_verdict=self._first.has_no_verdict,
            further=tuple(
                FurtherTruth(
                    truth=truth_summary(one.truth),
                    proxies=one.rows(),
                    ceiling=one.ceiling,
                    has_no_verdict=one.has_no_verdict,
                )
                for one in self._judged[1:]
            ),
            joint=tuple(self.joint),
        )
        texts = {"correlation.csv": _table(self._judged), "scores.csv": self._score_table(self._first)}
        texts |= {
            f"scores-{number}.csv": self._score_table(one) for number, one in enumerate(self._judged[1:], start=2)
        }
        return StageOutcome(
            result=result,
            summary=f"{len(truth.topologies)} topologies; {self._summary()}",
            metrics=self._metrics(),
            texts=texts,
            plots=tuple(self._plots()),
            events=tuple(event for one in reversed(self._judged) for event in _tracked_truth(self._context, one.truth)),
        )

    def _summary(self) -> str:
        if len(self._judged) > 1:
            known = {*self._settings.baselines, *self._first.training_macs}
            best = next((row for row in self.joint if row.proxy not in known), None)
            if best is not None and best.mean_difference.value is not None:
                gap = best.mean_difference
                ends = "" if gap.low is None or gap.high is None else f" [{gap.low:.2f}, {gap.high:.2f}]"
                return f"{len(self._judged)} tables; best mean difference {gap.value:.2f}{ends} ({best.proxy})"
        if self._first.has_no_verdict:
            return NO_VERDICT
        macs = self._first.training_macs
        free = [row for row in self.verdicts if row.proxy not in macs]
        parts = [f"best tau {_tau_text(free[0])}"] if free else []
        trained = next((row for row in self.verdicts if row.proxy in macs), None)
        if trained is not None:
            cost = count_text(macs[trained.proxy])
            parts.append(f"after a few training steps {_tau_text(trained)}, {cost} MACs per topology")
        return "; ".join(parts)

    def _jointly(self, question: Question) -> list[JointVerdict]:
        """The verdicts over all tables whose accuracies differ by more than chance; none with a single table."""
        tables = [one.as_table() for one in self._judged if not one.has_no_verdict]
        if len(tables) < 2:
            return []
        return judge_jointly(
            with_unique_titles(tables),
            baselines=self._settings.baselines,
            resamples=self._settings.resamples,
            confidence=self._settings.confidence,
            seed=self._context.seed,
            question=question,
        )

    def _carry_over(self, other: JudgedTruth) -> Transfer:
        """Judge the combination that was learned on the first truth on another one; shared topologies out of fold."""
        predictions = []
        can_learn = len(self._truth.topologies) >= MIN_TO_LEARN and self._scored.training_free(0)
        for index in range(self._scored.num_seeds if can_learn else 0):
            mine, others = self._scored.training_free(index), other.scored.training_free(index)
            predictions.append(
                transfer(
                    {name: values for name, values in mine.items() if name in others},
                    self._truth.accuracies,
                    {name: values for name, values in others.items() if name in mine},
                    topologies_fit=self._truth.topologies,
                    topologies_other=other.truth.topologies,
                    seed=self._context.seed,
                )
            )
        scores = {name: other.scored.scores[name] for name in self._settings.baselines}
        rows = other.judge({**({LEARNED: predictions} if predictions else {}), **scores})
        learned = set(self._truth.topologies)
        return Transfer(
            truth=truth_summary(other.truth),
            proxies=tuple(other.row(row) for row in rows),
            shared=tuple(topology for topology in other.truth.topologies if topology in learned),
        )

    def _early(self) -> EarlyJudgement | None:
        if not self._truth.curves:
            return None
        return judge_early(
            self._truth.curves,
            resamples=self._settings.resamples,
            confidence=self._settings.confidence,
            seed=self._context.seed,
        )

    def _metrics(self) -> dict[str, float]:
        statistics = ("tau", "spearman", "partial_tau", "top_recall", "regret")
        found: dict[str, float] = {"num_topologies": len(self._truth.topologies)}
        ceiling = self._first.ceiling
        if ceiling is not None and ceiling.tau.value is not None:
            found["tau_ceiling"] = ceiling.tau.value
        for joint in self.joint:
            if joint.question == "any size" and joint.mean_difference.value is not None:
                found[f"mean_difference.{joint.proxy}"] = joint.mean_difference.value
        for row in self.verdicts:
            for name in statistics:
                interval: Interval | None = getattr(row, name)
                if interval is not None and interval.value is not None:
                    found[f"{name}.{row.proxy}"] = interval.value
        found |= {f"training_macs.{name}": macs for name, macs in self._first.training_macs.items()}
        return found | {f"wall_time_s.{name}": seconds for name, seconds in self._scored.wall_time_s.items()}

    def _score_table(self, judged: JudgedTruth) -> str:
        """One row per topology: its accuracy and its scores with the first seed."""
        names, truth = list(judged.scores), judged.truth
        rows = zip(truth.topologies, truth.accuracies, *(judged.scores[name][0] for name in names), strict=True)
        return csv_text(["topology", truth.target, *names], rows)

    def _apart(self, rows: Sequence[AnyVerdict]) -> list[AnyVerdict]:
        """The rows of a figure: first those of training-free scores, then those of scores that train, named as such."""
        macs = self._first.training_macs
        found = [row for row in rows if row.proxy not in macs]
        for row in rows:
            if row.proxy in macs:
                is_baseline = row.proxy in self._settings.baselines
                found.append(row if is_baseline else row.model_copy(update={"proxy": f"{row.proxy} (trains)"}))
        return found

    def _plots(self) -> Iterable[Path]:
        folder, truth = self._context.folder, self._truth
        for row in self.verdicts:
            path = folder / f"{row.proxy}-against-accuracy.png"
            scatter_score_against_accuracy(
                row.proxy,
                self._first.scores[row.proxy][0],
                truth.accuracies,
                row.tau,
                path,
                target=_target(truth),
                unit=_UNITS[truth.unit],
            )
            yield path
        path = folder / "correlation-summary.png"
        correlation_summary(self._apart(self.verdicts), path, baseline=self._settings.baselines[0], subject=truth.title)
        yield path
        if self.joint:
            path = folder / "tables-summary.png"
            shown = self._apart([row for row in self.joint if row.question == "any size"])
            summary_of_tables(shown, path, baselines=self._settings.baselines)
            yield path
        if self.early is not None:
            path = folder / "agreement-over-epochs.png"
            agreement_over_epochs(self.early, path)
            yield path


def _target(truth: GroundTruth) -> str:
    """What the scores are compared with, in words."""
    if truth.kind == "table":
        return f"{truth.target}, published"
    what = "validation accuracy" if truth.target == TRAINED_TARGET else truth.target
    return f"{what} after training"


def _tracked_truth(context: StageContext, truth: GroundTruth) -> list[str]:
    """Events that record in MLflow the ground truth of the scores."""
    tree, stage = context.run_tree, context.stage
    if truth.kind == "trials":
        return tree.compared_with_study(stage, title=truth.title, digest=truth.digest, study=truth.source)
    return tree.compared_with_table(
        stage,
        title=truth.title,
        digest=truth.digest,
        name=truth.name,
        source=truth.source,
        num_topologies=len(truth.topologies),
    )


def _tau_text(verdict: Verdict) -> str:
    tau = verdict.tau
    if tau.value is None:
        return f"undefined ({verdict.note})"
    interval = "" if tau.low is None or tau.high is None else f" [{tau.low:.2f}, {tau.high:.2f}]"
    return f"{tau.value:.2f}{interval} ({verdict.proxy})"


def _table(judged: Sequence[JudgedTruth]) -> str:
    """All statistics of the proxies, one row per proxy and ground truth."""
    statistics = ("tau", "spearman", "top_recall", "regret", "partial_tau")
    verdicts = [(one, row) for one in judged for row in one.verdicts]
    baselines = list(dict.fromkeys(name for _, row in verdicts for name in row.minus))
    sizes = list(dict.fromkeys(name for _, row in verdicts for name in row.same_size))
    names = [*statistics, *(f"minus_{name}" for name in baselines), *(f"tau_same_{name}" for name in sizes)]
    header = ["proxy", "num_topologies", "num_seeds"]
    header += [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    rows = []
    for one, row in verdicts:
        intervals = [getattr(row, name) for name in statistics] + [row.minus.get(name) for name in baselines]
        intervals += [row.same_size[name].tau if name in row.same_size else None for name in sizes]
        cells = [cell for each in intervals for cell in ((each.value, each.low, each.high) if each else (None,) * 3)]
        marks = [row.seed_spread, row.above_zero, row.beats_all, row.note]
        ends = [one.truth.title, one.training_macs.get(row.proxy)]
        rows.append([row.proxy, row.num_topologies, row.num_seeds, *cells, *marks, *ends])
    return csv_text([*header, "seed_spread", "above_zero", "beats_all", "note", "truth", "training_macs"], rows)
