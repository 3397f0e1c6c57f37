"""Judges scored proxies against a ground truth for stage `correlate`, and makes its table, metrics and figures."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orchestrator.evaluation.combining import MIN_TO_LEARN, nested_predictions, rank_aggregates, transfer
from orchestrator.evaluation.early_ranking import judge_early
from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.judging import judge_proxies
from orchestrator.evaluation.verdict import EarlyJudgement, Interval, Verdict
from orchestrator.reports.csv_text import csv_text
from orchestrator.reports.plots import agreement_over_epochs, correlation_summary, scatter_score_against_accuracy
from orchestrator.spec.proxy_choices import is_pool_proxy, proxy_directions
from orchestrator.stages.context import StageContext
from orchestrator.stages.kind import StageOutcome
from orchestrator.stages.truth_scores import ScoredTruth, Seeds
from orchestrator.stages.truths import TRAINED_TARGET
from orchestrator.stages.verdict_results import CorrelateResult, Transfer, TruthSummary, VerdictRow, VerdictSettings
from search_spaces.recipes import PluginChoice

COMBINED = "combined."
"""Prefix of the names of combinations; no plug-in uses it."""
LEARNED = f"{COMBINED}learned"
NO_VERDICT = "no verdict, since these trainings differ by no more than chance"
_UNITS = {"fraction": "fraction", "table": "as in the table"}


class ProxyVerdicts:
    """The verdicts of one stage, with its table, metrics and figures."""

    def __init__(
        self,
        context: StageContext,
        settings: VerdictSettings,
        choices: Sequence[PluginChoice],
        scored: Sequence[ScoredTruth],
    ) -> None:
        self._context = context
        self._settings = settings
        self._scored = scored[0]
        self._truth = scored[0].truth
        pools = {choice.name: self._scored.of_pool(choice) for choice in choices if is_pool_proxy(choice.name)}
        own: dict[str, Seeds] = {
            choice.name: pools.get(choice.name) or self._scored.scores[choice.name] for choice in choices
        }
        combined = self._combinations() if settings.combine else {}
        self._scores = {**own, **combined}
        self._directions = proxy_directions(own) | dict.fromkeys(combined, "maximize")
        self.ceiling = self._truth.ceiling(settings.confidence)
        self.verdicts = [self._with_failures(row) for row in self._judge(self._scores, self._truth)]
        self.transfers = [self._carry_over(other) for other in scored[1:]]
        self.early = self._early()

    def outcome(self) -> StageOutcome:
        """The stage's result, table, metrics and figures."""
        verdicts, truth = self.verdicts, self._truth
        result = CorrelateResult(
            truth=_described(truth),
            num_topologies=len(truth.topologies),
            num_seeds=self._scored.num_seeds,
            baselines=self._settings.baselines,
            confidence=self._settings.confidence,
            resamples=self._settings.resamples,
            proxies=tuple(_verdict_row(verdict) for verdict in verdicts),
            transfers=tuple(self.transfers),
            early=self.early,
            ceiling=self.ceiling,
        )
        return StageOutcome(
            result=result,
            summary=f"{len(truth.topologies)} topologies; {self._summary()}",
            metrics=self._metrics(),
            texts={"correlation.csv": _table(verdicts), "scores.csv": self._score_table()},
            plots=tuple(self._plots()),
            events=tuple(_tracked_truth(self._context, truth)),
        )

    def _summary(self) -> str:
        if self.ceiling is not None and self.ceiling.may_be_chance:
            return NO_VERDICT
        limit = self.ceiling.tau.value if self.ceiling is not None else None
        beside = "" if limit is None else f" of at most {limit:.2f}"
        return f"best tau {_tau_text(self.verdicts[0])}{beside}"

    def _judge(self, scores: Mapping[str, Seeds], truth: GroundTruth) -> list[Verdict]:
        verdicts = judge_proxies(
            scores,
            truth.accuracies,
            directions={name: self._directions.get(name, "maximize") for name in scores},
            baselines=self._settings.baselines,
            resamples=self._settings.resamples,
            confidence=self._settings.confidence,
            seed=self._context.seed,
        )
        ceiling = truth.ceiling(self._settings.confidence)
        if ceiling is None or not ceiling.may_be_chance:
            return verdicts
        return [row.model_copy(update={"above_zero": False, "beaten": ()}) for row in verdicts]

    def _combinations(self) -> dict[str, Seeds]:
        """Scores of rank aggregates and of the learned combination, which predicts each topology out of fold."""
        found: dict[str, Seeds] = {}
        for index in range(self._scored.num_seeds):
            oriented = self._scored.oriented(index)
            for name, values in rank_aggregates(oriented).items():
                found.setdefault(f"{COMBINED}{name}", []).append(values)
            if len(self._truth.topologies) >= MIN_TO_LEARN:
                predicted = nested_predictions(oriented, self._truth.accuracies, seed=self._context.seed)
                found.setdefault(LEARNED, []).append(predicted)
        return found

    def _carry_over(self, other: ScoredTruth) -> Transfer:
        """Judge the combination that was learned on the first truth on another one; shared topologies out of fold."""
        predictions = []
        for index in range(self._scored.num_seeds if len(self._truth.topologies) >= MIN_TO_LEARN else 0):
            predictions.append(
                transfer(
                    self._scored.oriented(index),
                    self._truth.accuracies,
                    other.oriented(index),
                    topologies_fit=self._truth.topologies,
                    topologies_other=other.truth.topologies,
                    seed=self._context.seed,
                )
            )
        scores = {name: other.scores[name] for name in self._settings.baselines}
        rows = self._judge({**({LEARNED: predictions} if predictions else {}), **scores}, other.truth)
        learned = set(self._truth.topologies)
        return Transfer(
            truth=_described(other.truth),
            proxies=tuple(_verdict_row(row) for row in rows),
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

    def _with_failures(self, verdict: Verdict) -> Verdict:
        """Add the reasons for missing scores to the verdict's note."""
        reasons = self._scored.reasons.get(verdict.proxy, {})
        shown = [f"{count} failed: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
        more = [f"and {len(shown) - 2} other reasons"] if len(shown) > 2 else []
        note = "; ".join([*([verdict.note] if verdict.note else []), *shown[:2], *more])
        return verdict.model_copy(update={"note": note or None})

    def _metrics(self) -> dict[str, float]:
        statistics = ("tau", "spearman", "partial_tau", "top_recall", "regret")
        found: dict[str, float] = {"num_topologies": len(self._truth.topologies)}
        if self.ceiling is not None and self.ceiling.tau.value is not None:
            found["tau_ceiling"] = self.ceiling.tau.value
        for row in self.verdicts:
            for name in statistics:
                interval: Interval | None = getattr(row, name)
                if interval is not None and interval.value is not None:
                    found[f"{name}.{row.proxy}"] = interval.value
        return found | {f"wall_time_s.{name}": seconds for name, seconds in self._scored.wall_time_s.items()}

    def _score_table(self) -> str:
        """One row per topology: its accuracy and its scores with the first seed."""
        names = list(self._scores)
        rows = zip(
            self._truth.topologies, self._truth.accuracies, *(self._scores[name][0] for name in names), strict=True
        )
        return csv_text(["topology", self._truth.target, *names], rows)

    def _plots(self) -> Iterable[Path]:
        folder, truth = self._context.folder, self._truth
        for row in self.verdicts:
            path = folder / f"{row.proxy}-against-accuracy.png"
            scatter_score_against_accuracy(
                row.proxy,
                self._scores[row.proxy][0],
                truth.accuracies,
                row.tau,
                path,
                target=_target(truth),
                unit=_UNITS[truth.unit],
            )
            yield path
        path = folder / "correlation-summary.png"
        correlation_summary(self.verdicts, path, baseline=self._settings.baselines[0], subject=truth.title)
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


def _described(truth: GroundTruth) -> TruthSummary:
    return TruthSummary(
        kind=truth.kind,
        name=truth.name,
        source=truth.source,
        target=truth.target,
        unit=truth.unit,
        num_topologies=len(truth.topologies),
        digest=truth.digest,
        num_seeds=min(map(len, truth.seeds), default=1),
        epoch=truth.epoch,
        num_epochs=truth.num_epochs,
        num_left_out=truth.num_left_out,
    )


def _verdict_row(verdict: Verdict) -> VerdictRow:
    """A verdict with the list of baselines that the proxy beats."""
    return VerdictRow.model_validate(
        {
            **verdict.model_dump(exclude={"beaten"}),
            "is_combination": verdict.proxy.startswith(COMBINED),
            "beats": verdict.beaten,
            "beats_all": verdict.beats_all,
        }
    )


def _tau_text(verdict: Verdict) -> str:
    tau = verdict.tau
    if tau.value is None:
        return f"undefined ({verdict.note})"
    interval = "" if tau.low is None or tau.high is None else f" [{tau.low:.2f}, {tau.high:.2f}]"
    return f"{tau.value:.2f}{interval} ({verdict.proxy})"


def _table(verdicts: Sequence[Verdict]) -> str:
    """All statistics of the proxies, one row per proxy."""
    statistics = ("tau", "spearman", "top_recall", "regret", "partial_tau")
    baselines = list(dict.fromkeys(name for row in verdicts for name in row.minus))
    names = [*statistics, *(f"minus_{name}" for name in baselines)]
    header = ["proxy", "num_topologies", "num_seeds"]
    header += [f"{name}{end}" for name in names for end in ("", "_low", "_high")]
    rows = []
    for row in verdicts:
        intervals = [getattr(row, name) for name in statistics] + [row.minus.get(name) for name in baselines]
        cells = [cell for one in intervals for cell in ((one.value, one.low, one.high) if one else (None,) * 3)]
        rows.append([row.proxy, row.num_topologies, row.num_seeds, *cells, row.seed_spread, row.beats_all, row.note])
    return csv_text([*header, "seed_spread", "beats_all", "note"], rows)
