"""Judges the scores of one ground truth: every proxy, and their combinations."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from orchestrator.evaluation.ceiling import have_no_verdict, suspicion, without_marks
from orchestrator.evaluation.combining import MIN_TO_LEARN, nested_predictions, rank_aggregates
from orchestrator.evaluation.ground_truth import GroundTruth
from orchestrator.evaluation.joint import ScoredTable
from orchestrator.evaluation.judging import judge_proxies
from orchestrator.evaluation.verdict import Verdict
from orchestrator.spec.proxy_choices import is_pool_proxy, proxy_directions
from orchestrator.stages.truth_scores import ScoredTruth, Seeds
from orchestrator.stages.verdict_results import TruthSummary, VerdictRow, VerdictSettings
from plugins import registry
from search_spaces.recipes import PluginChoice

COMBINED = "combined."
"""Prefix of the names of combinations; no plug-in uses it."""
LEARNED = f"{COMBINED}learned"


class JudgedTruth:
    """A ground truth with its scores and the verdicts on them, best tau first.

    If the accuracies differ by no more than chance, no score is marked.
    """

    def __init__(
        self, scored: ScoredTruth, choices: Sequence[PluginChoice], settings: VerdictSettings, *, seed: int
    ) -> None:
        self.scored, self.truth = scored, scored.truth
        self.ceiling = self.truth.ceiling(settings.confidence)
        self._choices, self._settings, self._seed = choices, settings, seed
        self._fitted = {choice.name for choice in choices if scored.has_seen(choice.name)}
        self._directions = proxy_directions(choice.name for choice in choices)

    @cached_property
    def scores(self) -> dict[str, Seeds]:
        """Every proxy and combination, in the proxies' own direction."""
        own: dict[str, Seeds] = {
            choice.name: self.scored.of_pool(choice) if is_pool_proxy(choice.name) else self.scored.scores[choice.name]
            for choice in self._choices
        }
        return {**own, **(self._combinations() if self._settings.combine else {})}

    @cached_property
    def has_no_verdict(self) -> bool:
        """Whether the accuracies differ by no more than chance, so that no score can be judged by them."""
        return have_no_verdict(self.ceiling, self._unchecked)

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdicts on all scores, best tau first; without a mark if there is no verdict."""
        return [self._with_failures(self._with_suspicion(row)) for row in self._without_marks(self._unchecked)]

    def rows(self) -> tuple[VerdictRow, ...]:
        """The verdicts as results, best tau first."""
        return tuple(self.row(row) for row in self.verdicts)

    def row(self, verdict: Verdict) -> VerdictRow:
        """A verdict as a result, with the cost of the score."""
        name = verdict.proxy
        return verdict_row(
            verdict, training_macs=self.training_macs.get(name), wall_time_s=self.scored.wall_time_s.get(name)
        )

    @cached_property
    def training_macs(self) -> dict[str, float]:
        """For each score that trains for a few steps, the mean multiply-accumulates per topology and seed."""
        found = {choice.name: self.scored.macs_of(choice.name) for choice in self._choices}
        return {name: macs for name, macs in found.items() if macs is not None}

    def judge(self, scores: Mapping[str, Seeds]) -> list[Verdict]:
        """Judge other scores of the topologies; higher is better unless a proxy of that name says otherwise."""
        return self._without_marks(self._judge(scores))

    @cached_property
    def _unchecked(self) -> list[Verdict]:
        return self._judge(self.scores)

    def _without_marks(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        return without_marks(verdicts) if self.has_no_verdict else list(verdicts)

    def _judge(self, scores: Mapping[str, Seeds]) -> list[Verdict]:
        return judge_proxies(
            scores,
            self.truth.accuracies,
            directions={name: self._directions.get(name, "maximize") for name in scores},
            baselines=self._settings.baselines,
            resamples=self._settings.resamples,
            confidence=self._settings.confidence,
            seed=self._seed,
        )

    def as_table(self) -> ScoredTable:
        """The scores for a joint verdict, oriented so that higher is better, with the number of parameters as size.

        Scores that were fitted to these accuracies are left out.
        """
        signs = {name: -1.0 if self._directions.get(name) == "minimize" else 1.0 for name in self.scores}
        return ScoredTable(
            title=self.truth.title,
            topologies=self.truth.topologies,
            accuracies=self.truth.accuracies,
            scores={
                name: [[signs[name] * value for value in row] for row in seeds]
                for name, seeds in self.scores.items()
                if name not in self._fitted
            },
            sizes=[_parameters(topology, self.truth) for topology in self.truth.topologies],
        )

    def _combinations(self) -> dict[str, Seeds]:
        """Scores of rank aggregates and of the learned combination, which predicts each topology out of fold.

        Only training-free scores are combined, so that the combinations are training-free, too.
        """
        found: dict[str, Seeds] = {}
        for index in range(self.scored.num_seeds):
            oriented = self.scored.training_free(index)
            if not oriented:
                return {}
            for name, values in rank_aggregates(oriented).items():
                found.setdefault(f"{COMBINED}{name}", []).append(values)
            if len(self.truth.topologies) >= MIN_TO_LEARN:
                predicted = nested_predictions(oriented, self.truth.accuracies, seed=self._seed)
                found.setdefault(LEARNED, []).append(predicted)
        return found

    def _with_suspicion(self, verdict: Verdict) -> Verdict:
        """Add a note to a score that has seen the accuracies, which then has no mark, or that may have seen them."""
        if verdict.proxy in self._settings.baselines or verdict.proxy.startswith(COMBINED):
            return verdict
        note = suspicion(verdict, self.ceiling)
        if verdict.proxy in self._fitted:
            (verdict,) = without_marks([verdict])
            note = "it was fitted to these accuracies, so its tau is too good, and it has no mark"
        if note is None:
            return verdict
        return verdict.model_copy(update={"is_suspicious": True, "note": _joined(verdict.note, note)})

    def _with_failures(self, verdict: Verdict) -> Verdict:
        """Add the reasons for missing scores to the verdict's note."""
        reasons = self.scored.reasons.get(verdict.proxy, {})
        shown = [f"{count} failed: {reason}" for reason, count in sorted(reasons.items(), key=lambda item: -item[1])]
        more = [f"and {len(shown) - 2} other reasons"] if len(shown) > 2 else []
        return verdict.model_copy(update={"note": _joined(verdict.note, *shown[:2], *more)})


def truth_summary(truth: GroundTruth) -> TruthSummary:
    """A ground truth as a result."""
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


def verdict_row(
    verdict: Verdict, *, training_macs: float | None = None, wall_time_s: float | None = None
) -> VerdictRow:
    """A verdict as a result, with the list of baselines that the proxy beats and its cost."""
    return VerdictRow.model_validate(
        {
            **verdict.model_dump(exclude={"beaten"}),
            "is_combination": verdict.proxy.startswith(COMBINED),
            "beats": verdict.beaten,
            "beats_all": verdict.beats_all,
            "training_macs": training_macs,
            "wall_time_s": wall_time_s,
        }
    )


def _joined(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def _parameters(text: str, truth: GroundTruth) -> float:
    space = registry.load("spaces", text.partition(":")[0])
    return float(space.costs(registry.parse_topology(text), truth.task).parameters)
