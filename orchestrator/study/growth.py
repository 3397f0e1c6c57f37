"""How an existing study grows when its file has changed, or when its failed trials are to run again."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from orchestrator.engines.ray.generations import COPY_STEPS
from orchestrator.spec.growing import BegunStage, Growth, plan_growth
from orchestrator.spec.study_file import StudySpec
from orchestrator.stages.retention import CUT, kept_checkpoints, trial_folder_in
from orchestrator.stages.train import TRAIN
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.growth_rows import GrowthRows
from orchestrator.store.past_growths import PastGrowth
from orchestrator.store.records import StudyRecord, TrialRecord
from orchestrator.store.repository import Store

_SHOWN_CHANGES = 4
_READ_WEIGHTS = frozenset({"averaging", "promote"})
"""Kinds of stages that read the best trial's weights."""


class SpecChangedError(ValueError):
    """A study of that name exists, but its file was different.

    Attributes:
        changes: One line per difference.
    """

    def __init__(self, name: str, changes: Sequence[str]) -> None:
        self.changes = list(changes)
        shown = "; ".join(self.changes[:5]) + (f"; and {len(changes) - 5} more" if len(changes) > 5 else "")
        super().__init__(
            f"study {name!r} must keep these settings, but the file changes them ({shown}). Give the file another "
            "`study:` name, "
            f"or delete the old study with: vitsearch delete {name}"
        )


@dataclass(frozen=True, kw_only=True)
class StudyGrowth:
    """The growth of an existing study."""

    growth: Growth
    record: PastGrowth
    rerun: Mapping[str, Sequence[int]]
    """Numbers of the trials that run again, by stage."""
    extended: frozenset[str]
    repeated: frozenset[str]
    lines: tuple[str, ...]
    """What happens, for people."""

    @property
    def affects_stages(self) -> bool:
        """Whether any stage has something left to do because of it."""
        return bool(self.extended or self.repeated or self.growth.added)

    def rows(self, spec: StudySpec, data_digest: str) -> GrowthRows:
        """The changes of the study's rows."""
        return GrowthRows(
            spec=spec.model_dump(mode="json"),
            spec_digest=spec.digest,
            data_digest=data_digest,
            stage_names=[(stage.name, stage.stage) for stage in spec.stages],
            extended=self.extended,
            repeated=self.repeated,
            rerun=self.rerun,
            filled=self.growth.filled,
        )


def stored_spec(study: StudyRecord) -> StudySpec | None:
    """The file of a study; keys missing in an older version have their defaults. `None` if it cannot be read."""
    try:
        return StudySpec.model_validate(study.spec)
    except ValidationError:
        return None


def plan_study_growth(
    store: Store, study: StudyRecord, spec: StudySpec, *, retry_failed: bool = False
) -> StudyGrowth | None:
    """How a study grows to a changed file; `None` if there is nothing to change.

    Raises:
        SpecChangedError: The study cannot grow to the file.
    """
    old = stored_spec(study) if study.spec_digest != spec.digest or retry_failed else spec
    if old is None:
        raise SpecChangedError(spec.study, ["it was created by another version of vitsearch"])
    if old is spec:
        return None
    trials = {stage.name: store.trials(stage.id) for stage in store.stages(study.id)}
    asked = {stage.name: getattr(stage, "num_trials", 0) for stage in old.stages}
    states = {stage.name: stage.state for stage in store.stages(study.id)}
    begun = {
        name: BegunStage(
            len(found),
            has_copies=any(COPY_STEPS in trial.details for trial in found),
            is_short=_is_short(asked.get(name), found),
        )
        for name, found in trials.items()
        if found or states[name] != "waiting"
    }
    failed = {
        name: numbers
        for name, found in trials.items()
        if retry_failed and (numbers := [trial.number for trial in found if trial.state == "failed"])
    }
    lost = _lost_trainings(store, study, spec, trials) if retry_failed else {}
    growth = plan_growth(old, spec, begun, retried={*failed, *lost})
    if growth.refused:
        raise SpecChangedError(spec.study, growth.refused)
    if not growth.changes and not failed and not lost:
        return None
    kept_failed, kept_lost = (
        {name: numbers for name, numbers in found.items() if name not in growth.repeated} for found in (failed, lost)
    )
    return _study_growth(old, spec, growth, trials, kept_failed, kept_lost, store.study_folder(study))


def _lost_trainings(
    store: Store, study: StudyRecord, spec: StudySpec, trials: Mapping[str, Sequence[TrialRecord]]
) -> dict[str, list[int]]:
    """Numbers of the trials that a stage still has to read and whose weights are no longer on disk, by stage.

    These are the best trial of a train stage, and the trainings of an unfinished promote stage.
    """
    records = {stage.name: stage for stage in store.stages(study.id)}
    found: dict[str, list[int]] = {}
    for position, stage in enumerate(spec.stages):
        record = records.get(stage.name)
        if record is None:
            continue
        needed: set[int] = set()
        if isinstance(stage, TrainStage) and record.state == "complete":
            readers = itertools.takewhile(lambda later: later.stage != "train", spec.stages[position + 1 :])
            unfinished = [one for one in readers if one.name not in records or records[one.name].state != "complete"]
            if any(one.stage in _READ_WEIGHTS for one in unfinished):
                needed = {TRAIN.read(record, stage, partial(list, trials[stage.name])).best.trial}
        elif stage.stage == "promote" and record.state != "complete":
            needed = {trial.number for trial in trials[stage.name] if trial.is_usable}
        lost = [
            trial.number
            for trial in trials[stage.name]
            if trial.number in needed and not kept_checkpoints(store, trial)
        ]
        if lost:
            found[stage.name] = lost
    return found


def _is_short(asked: int | None, trials: Sequence[TrialRecord]) -> bool:
    """Whether a stage has fewer trials than asked for, or trainings that a budget has ended."""
    ended = [trial for trial in trials if trial.ended_at is not None]
    return len(ended) < (asked or 0) or any(CUT in trial.details for trial in ended)


def _study_growth(
    old: StudySpec,
    new: StudySpec,
    growth: Growth,
    trials: Mapping[str, Sequence[TrialRecord]],
    failed: Mapping[str, Sequence[int]],
    lost: Mapping[str, Sequence[int]],
    folder: Path,
) -> StudyGrowth:
    rerun = {name: sorted([*failed.get(name, ()), *lost.get(name, ())]) for name in (*failed, *lost)}
    lines: list[str] = []
    if growth.changes:
        more = len(growth.changes) - _SHOWN_CHANGES
        shown = "; ".join(growth.changes[:_SHOWN_CHANGES]) + (f"; and {more} more" if more > 0 else "")
        lines.append(f"the study grows: {shown}")
    done = [f"{_count(numbers, 'failed trial', name, 'run')} again" for name, numbers in failed.items()]
    done += [
        f"{_count(numbers, 'training', name, 'begin')} again, because {'its' if len(numbers) == 1 else 'their'} "
        "weights are no longer on disk"
        for name, numbers in lost.items()
    ]
    for stage in new.stages:
        if stage.name not in growth.rerun:
            continue
        before = next(one for one in old.stages if one.name == stage.name)
        if isinstance(stage, TrainStage) and isinstance(before, TrainStage):
            point = growth.filled.get(stage.name, {})
            filled = [trial.model_copy(update={"point": {**point, **trial.point}}) for trial in trials[stage.name]]
            longer = _Longer.of(before, stage, filled, folder)
            done += longer.lines(stage.name)
            numbers = longer.numbers
        else:
            numbers = [trial.number for trial in trials[stage.name] if trial.state != "failed"]
            done.append(f"stage {stage.name!r} scores its {len(numbers)} topologies again")
        rerun[stage.name] = sorted({*rerun.get(stage.name, ()), *numbers})
    for name in growth.extended - growth.rerun:
        cut = [trial.number for trial in trials[name] if CUT in trial.details]
        if cut:
            rerun[name] = sorted({*rerun.get(name, ()), *cut})
            done.append(f"{_count(cut, 'training', name, 'continue')} that a budget had ended")
    again = [stage.name for stage in new.stages if stage.name in growth.repeated]
    if again:
        done.append(f"{'stages' if len(again) > 1 else 'stage'} {', '.join(map(repr, again))} will run again")
    lines += ["; ".join(done)] if done else []
    return StudyGrowth(
        growth=growth,
        record=PastGrowth(
            changes=growth.changes,
            stages=tuple(sorted(growth.extended | growth.repeated)),
            repeated=tuple(sorted(growth.repeated)),
            rerun={name: tuple(numbers) for name, numbers in rerun.items()},
            longer=dict(growth.longer),
        ),
        rerun=rerun,
        extended=growth.extended,
        repeated=growth.repeated,
        lines=tuple(lines),
    )


@dataclass(frozen=True, kw_only=True)
class _Longer:
    """Trainings that get more epochs."""

    continued: Sequence[int]
    """Trials that continue from their last checkpoint."""
    retrained: Sequence[int]
    """Trials that begin again."""
    waiting: Sequence[int]
    """Trials that have not ended."""
    reason: str | None
    """Why the first of them begins again."""

    @classmethod
    def of(cls, old: TrainStage, new: TrainStage, trials: Sequence[TrialRecord], folder: Path) -> "_Longer":
        from trainers.training.continuing import is_resumable, reason_to_retrain  # imports torch

        continued, retrained, waiting, reasons = [], [], [], []
        for trial in trials:
            if trial.ended_at is None:
                waiting.append(trial.number)
            if trial.ended_at is None or trial.state == "failed":
                continue
            recipe = new.recipe_space.decode(trial.point)
            reason = reason_to_retrain(recipe, before=old.epochs, epochs=new.epochs)
            if reason is None and trial.state == "stopped" and CUT not in trial.details:
                continue  # it was stopped for good, after the same epochs as in a longer training
            if reason is None and not is_resumable(trial_folder_in(folder / new.name, trial.number)):
                reason = "its last checkpoint has no optimizer state"
            if reason is None:
                continued.append(trial.number)
            else:
                retrained.append(trial.number)
                reasons.append(reason)
        reason = reasons[0] if reasons else None
        return cls(continued=continued, retrained=retrained, waiting=waiting, reason=reason)

    @property
    def numbers(self) -> Sequence[int]:
        return [*self.continued, *self.retrained, *self.waiting]

    def lines(self, stage: str) -> list[str]:
        found = []
        if self.continued:
            where = "their last checkpoints" if len(self.continued) > 1 else "its last checkpoint"
            found.append(f"{_count(self.continued, 'training', stage, 'continue')} from {where}")
        if self.retrained:
            found.append(f"{_count(self.retrained, 'training', stage, 'begin')} again, because {self.reason}")
        return found


def _count(numbers: Sequence[int], what: str, stage: str, verb: str) -> str:
    """The subject and verb of a sentence: `3 trainings of stage 'train' begin`."""
    one = len(numbers) == 1
    return f"{len(numbers)} {what}{'' if one else 's'} of stage {stage!r} {verb}{'s' if one else ''}"
