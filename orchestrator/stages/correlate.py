"""Stage `correlate`: how well training-free scores predict accuracy, and whether any beats counting parameters."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.engines.seeds import seed_for
from orchestrator.evaluation.combining import MIN_TOPOLOGIES, nested_predictions, rank_aggregates, transfer
from orchestrator.evaluation.early_ranking import EarlyJudgement, judge_early
from orchestrator.evaluation.ground_truth import (
    GroundTruth,
    find_truth_study,
    last_screen,
    load_truth,
    read_spec,
    trained_truth,
)
from orchestrator.evaluation.verdict import Interval, Verdict, judge
from orchestrator.reports.plots import agreement_over_epochs, correlation_summary, scatter_score_against_accuracy
from orchestrator.spec.proxy_choices import is_pool_proxy, proxy_directions, with_repeats
from orchestrator.spec.study_file import CorrelateStage, ScreenStage
from orchestrator.spec.truth_table import TruthError
from orchestrator.stages.context import StageContext, StageFailedError, StageOutcome
from orchestrator.stages.truth_scores import ScoredTruth, Seeds, score_truths
from search_spaces.recipes import PluginChoice

DEFAULT_BATCH_SIZE = 16
COMBINED = "combined."
"""Prefix of the names of combinations, which no plug-in has."""
LEARNED = f"{COMBINED}learned"
_UNITS = {"fraction": "fraction", "table": "as in the table"}


def run_correlate(context: StageContext, spec: CorrelateStage) -> StageOutcome:
    """Score the topologies of the ground truth with every proxy, and judge each, and combinations of all of them.

    Raises:
        StageFailedError: A ground truth cannot be used, or nothing could be scored.
    """
    try:
        truths = _truths(context, spec)
    except TruthError as error:
        raise StageFailedError(str(error)) from error
    screen, screen_seed = _screen(context, spec)
    choices = chosen_proxies(spec, screen)
    scored = score_truths(
        context,
        truths,
        choices,
        base_seed=screen_seed,
        num_seeds=spec.seeds,
        batch_size=spec.batch_size or (screen.batch_size if screen else DEFAULT_BATCH_SIZE),
    )
    context.progress.note(f"judging {len(choices)} proxies over {len(truths[0].topologies)} topologies")
    judged = Judged(context, spec, choices, scored)
    return judged.outcome()


def _tracked_truth(context: StageContext, truth: GroundTruth) -> list[str]:
    """Events that tell MLflow what scores were compared with."""
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


def chosen_proxies(spec: CorrelateStage, screen: ScreenStage | None) -> tuple[PluginChoice, ...]:
    """The proxies of a stage with its number of repeats, the baselines among them."""
    named = {choice.name: choice for choice in (spec.proxies or (screen.proxies if screen else ()))}
    for baseline in spec.baselines:
        named.setdefault(baseline, PluginChoice(name=baseline))
    return with_repeats(named.values(), spec.repeats)


class Judged:
    """The verdicts of one stage, and how they are told."""

    def __init__(
        self,
        context: StageContext,
        spec: CorrelateStage,
        choices: Sequence[PluginChoice],
        scored: Sequence[ScoredTruth],
    ) -> None:
        self._context = context
        self._spec = spec
        self._scored = scored[0]
        self._truth = scored[0].truth
        pools = {choice.name: self._scored.of_pool(choice) for choice in choices if is_pool_proxy(choice.name)}
        own: dict[str, Seeds] = {
            choice.name: pools.get(choice.name) or self._scored.scores[choice.name] for choice in choices
        }
        combined = self._combinations() if spec.combine else {}
        self._scores = {**own, **combined}
        self._directions = proxy_directions(own) | dict.fromkeys(combined, "maximize")
        self.verdicts = [self._with_failures(row) for row in self._judge(self._scores, self._truth)]
        self.transfers = [self._carry_over(other) for other in scored[1:]]
        self.early = self._judge_early()

    def outcome(self) -> StageOutcome:
        """The stage's result, table, metrics and figures."""
        verdicts, truth = self.verdicts, self._truth
        result = {
            "truth": _describe(truth),
            "num_topologies": len(truth.topologies),
            "num_seeds": self._scored.num_seeds,
            "baselines": list(self._spec.baselines),
            "confidence": self._spec.confidence,
            "resamples": self._spec.resamples,
            "proxies": [_row(row) for row in verdicts],
            "transfers": self.transfers,
            "early": None if self.early is None else self.early.model_dump(mode="json"),
        }
        return StageOutcome(
            result=result,
            summary=f"{len(truth.topologies)} topologies; best tau {_tau_text(verdicts[0])}",
            metrics=self._metrics(),
            texts={"correlation.csv": _table(verdicts), "scores.csv": self._score_table()},
            plots=tuple(self._plots()),
            events=tuple(_tracked_truth(self._context, truth)),
        )

    def _judge(self, scores: Mapping[str, Seeds], truth: GroundTruth) -> list[Verdict]:
        return judge(
            scores,
            truth.accuracies,
            directions={name: self._directions.get(name, "maximize") for name in scores},
            baselines=self._spec.baselines,
            resamples=self._spec.resamples,
            confidence=self._spec.confidence,
            seed=self._context.seed,
        )

    def _combinations(self) -> dict[str, Seeds]:
        """By ranks alone, and learned: each topology is predicted by a combination that never saw its accuracy."""
        found: dict[str, Seeds] = {}
        for index in range(self._scored.num_seeds):
            oriented = self._scored.oriented(index)
            for name, values in rank_aggregates(oriented).items():
                found.setdefault(f"{COMBINED}{name}", []).append(values)
            if len(self._truth.topologies) >= MIN_TOPOLOGIES:
                predicted = nested_predictions(oriented, self._truth.accuracies, seed=self._context.seed)
                found.setdefault(LEARNED, []).append(predicted)
        return found

    def _carry_over(self, other: ScoredTruth) -> dict[str, Any]:
        """The combination learned on the first truth, judged on another that it never saw."""
        predictions = []
        for index in range(self._scored.num_seeds if len(self._truth.topologies) >= MIN_TOPOLOGIES else 0):
            fitted = self._scored.oriented(index), self._truth.accuracies
            predictions.append(transfer(*fitted, other.oriented(index), seed=self._context.seed))
        scores = {name: other.scores[name] for name in self._spec.baselines}
        rows = self._judge({**({LEARNED: predictions} if predictions else {}), **scores}, other.truth)
        return {"truth": _describe(other.truth), "proxies": [_row(row) for row in rows]}

    def _judge_early(self) -> EarlyJudgement | None:
        if not self._truth.curves:
            return None
        return judge_early(
            self._truth.curves,
            resamples=self._spec.resamples,
            confidence=self._spec.confidence,
            seed=self._context.seed,
        )

    def _with_failures(self, verdict: Verdict) -> Verdict:
        """The verdict with the reasons of missing scores in its note."""
        reasons = self._scored.reasons.get(verdict.proxy, {})
        told = [f"{count} failed: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
        more = [f"and {len(told) - 2} other reasons"] if len(told) > 2 else []
        note = "; ".join([*([verdict.note] if verdict.note else []), *told[:2], *more])
        return verdict.model_copy(update={"note": note or None})

    def _metrics(self) -> dict[str, float]:
        statistics = ("tau", "spearman", "partial_tau", "top_recall", "regret")
        found: dict[str, float] = {"num_topologies": len(self._truth.topologies)}
        for row in self.verdicts:
            for name in statistics:
                interval: Interval | None = getattr(row, name)
                if interval is not None and interval.value is not None:
                    found[f"{name}.{row.proxy}"] = interval.value
        return found | {f"wall_time_s.{name}": seconds for name, seconds in self._scored.wall_time_s.items()}

    def _score_table(self) -> str:
        """One row per topology: its accuracy, and every score from the first seed."""
        names = list(self._scores)
        rows = zip(
            self._truth.topologies, self._truth.accuracies, *(self._scores[name][0] for name in names), strict=True
        )
        return _csv(["topology", self._truth.target, *names], rows)

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
                target="validation accuracy after training" if truth.kind == "trials" else f"{truth.target}, published",
                unit=_UNITS[truth.unit],
            )
            yield path
        path = folder / "correlation-summary.png"
        correlation_summary(self.verdicts, path, baseline=self._spec.baselines[0], subject=truth.title)
        yield path
        if self.early is not None:
            path = folder / "agreement-over-epochs.png"
            agreement_over_epochs(self.early, path)
            yield path


def _truths(context: StageContext, spec: CorrelateStage) -> list[GroundTruth]:
    """What is compared with first, then what the combination is carried to."""
    others = [load_truth(choice, data=context.spec.data, store=context.store) for choice in spec.transfer]
    if spec.truth is not None:
        return [load_truth(spec.truth, data=context.spec.data, store=context.store), *others]
    from trainers.data.images import load_images

    stage = context.earlier("train")
    if stage is None:  # the spec's own validation demands one
        raise LookupError(f"stage {context.stage.name!r} needs a train stage before it")
    return [trained_truth(context.store, context.study, stage, images=load_images(context.spec.data)), *others]


def _screen(context: StageContext, spec: CorrelateStage) -> tuple[ScreenStage | None, int]:
    """The screen whose proxies and batch are the defaults, and the seed that makes its scores known already."""
    screen = last_screen(context.spec, context.stage.position)
    if screen is None and spec.truth is not None and spec.truth.study is not None:
        screen = last_screen(read_spec(find_truth_study(spec.truth.study, context.store)[1]))
    return screen, seed_for(context.spec.seed, screen.name) if screen else context.seed


def _describe(truth: GroundTruth) -> dict[str, Any]:
    return {
        "kind": truth.kind,
        "name": truth.name,
        "source": truth.source,
        "target": truth.target,
        "unit": truth.unit,
        "num_topologies": len(truth.topologies),
        "digest": truth.digest,
    }


def _row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON data, with what it beats spelled out."""
    return {
        **verdict.model_dump(mode="json"),
        "is_combination": verdict.proxy.startswith(COMBINED),
        "beats": [baseline for baseline in verdict.minus if verdict.beats(baseline)],
        "beats_all": verdict.beats_all,
    }


def _tau_text(verdict: Verdict) -> str:
    tau = verdict.tau
    if tau.value is None:
        return f"undefined ({verdict.note})"
    interval = "" if tau.low is None or tau.high is None else f" [{tau.low:.2f}, {tau.high:.2f}]"
    return f"{tau.value:.2f}{interval} ({verdict.proxy})"


def _table(verdicts: Sequence[Verdict]) -> str:
    """Everything that is known of each proxy, a line each."""
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
    return _csv([*header, "seed_spread", "beats_all", "note"], rows)


def _csv(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow("" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row)
    return buffer.getvalue()
