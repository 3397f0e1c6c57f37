"""The trained trials of a study side by side: what they share is left out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from orchestrator.settings import Settings
from orchestrator.store.records import StageRecord, StudyRecord, TrialRecord
from orchestrator.study.access import find_study, open_existing

_DEFAULT_NUM_TRIALS = 4


class NoTrialsError(LookupError):
    """A study has not trained the trials to compare."""


class Comparison(NamedTuple):
    """Trials of one stage, in the order of their comparison."""

    study: StudyRecord
    stage: StageRecord
    trials: list[TrialRecord]
    champion: int | None
    """Number of the trial from which the champion was made."""

    @property
    def differing(self) -> list[str]:
        """Names of the sampled values that differ between the trials."""
        names = dict.fromkeys(name for trial in self.trials for name in trial.point)
        return [name for name in names if len({repr(trial.point.get(name)) for trial in self.trials}) > 1]

    def as_json(self) -> dict[str, Any]:
        """The comparison as plain data."""
        rows = [
            {
                "trial": trial.number,
                "state": trial.state,
                "reason": trial.reason,
                "metrics": trial.metrics,
                "point": dict(trial.point),
            }
            for trial in self.trials
        ]
        return {
            "study": self.study.name,
            "stage": self.stage.name,
            "champion": self.champion,
            "differing": self.differing,
            "trials": rows,
        }


def compare_trials(name: str, numbers: Sequence[int], settings: Settings) -> Comparison:
    """Find the trials to compare; without numbers, the best four.

    Raises:
        orchestrator.study.access.UnknownStudyError: There is no study of that name.
        NoTrialsError: It has no trained trials, or none of a number.
    """
    study = find_study(name, settings)
    with open_existing(settings) as store:
        stages = store.stages(study.id) if store else []
        trained = {stage.name: store.trials(stage.id) for stage in stages if store and stage.kind == "train"}
    stage = next((stage for stage in reversed(stages) if trained.get(stage.name)), None)
    if stage is None:
        raise NoTrialsError(
            f"study {name!r} must have trained trials to compare, but has none yet. See: vitsearch status {name}"
        )
    trials = {trial.number: trial for trial in trained[stage.name]}
    unknown = [number for number in numbers if number not in trials]
    if unknown:
        raise NoTrialsError(
            f"study {name!r}: a trial must be one of the {len(trials)} trials of stage {stage.name!r}, numbered from "
            f"0 to {max(trials)}, but got {', '.join(map(str, unknown))}. List them with: vitsearch trials {name}"
        )
    if not numbers:
        numbers = _best(stage, list(trials.values()))
    promoted = [one.result.get("trial") for one in stages if one.kind == "promote" and one.state == "complete"]
    chosen = [trials[number] for number in dict.fromkeys(numbers)]
    return Comparison(study, stage, chosen, promoted[-1] if promoted else None)


def _best(stage: StageRecord, trials: Sequence[TrialRecord]) -> list[int]:
    """Numbers of the best trials; while the stage runs, those that have a result, by validation accuracy."""
    rows = stage.result.get("leaderboard")
    if rows:
        return [row["trial"] for row in rows[:_DEFAULT_NUM_TRIALS]]
    usable = [trial for trial in trials if trial.is_usable] or list(trials)
    usable.sort(key=lambda trial: (-trial.metrics.get("val_accuracy", 0.0), trial.metrics.get("val_loss", 0.0)))
    return [trial.number for trial in usable[:_DEFAULT_NUM_TRIALS]]
