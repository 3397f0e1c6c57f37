"""What differs between two studies: their files, their images, and what they found."""

import json
import math
from collections.abc import Mapping, Set
from typing import Any, NamedTuple

import yaml

from orchestrator.settings import Settings
from orchestrator.spec.study_file import HOW
from orchestrator.stages.promote import PromoteResult
from orchestrator.stages.train_result import TrainResult
from orchestrator.store.records import StudyRecord
from orchestrator.store.repository import Store
from orchestrator.study.access import database_gone, find_study, open_existing, study_folder
from orchestrator.study.report import read_study
from orchestrator.study.reported import ReportedStudy
from trainers.results.model_report import Estimate, describe_accuracy

MISSING = "(not there)"
"""Stands for a value that a study does not have."""


class StudyDifference(NamedTuple):
    """A fact in which two studies differ."""

    name: str
    first: str
    second: str


class StudyDiff(NamedTuple):
    """What differs between two studies. The results are listed also if they are equal."""

    first: str
    second: str
    file: tuple[StudyDifference, ...]
    data: tuple[StudyDifference, ...]
    champion: tuple[StudyDifference, ...]
    """Differences of the champions' configurations, without the data; none unless both have a champion."""
    without_champion: tuple[str, ...]
    """Names of the studies that have no champion."""
    results: tuple[StudyDifference, ...]
    verdict: str | None
    """Whether one champion is better, in words; `None` unless both were tested."""

    def as_json(self) -> dict[str, Any]:
        """The differences as plain data."""
        parts = {name: [one._asdict() for one in getattr(self, name)] for name in _PARTS}
        return {
            "first": self.first,
            "second": self.second,
            **parts,
            "without_champion": list(self.without_champion),
            "verdict": self.verdict,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "StudyDiff":
        """The differences that `as_json` returned, possibly those of a service with more fields."""
        parts = {name: tuple(_difference(one) for one in content[name]) for name in _PARTS}
        return cls(
            first=content["first"],
            second=content["second"],
            **parts,
            without_champion=tuple(content["without_champion"]),
            verdict=content["verdict"],
        )


_PARTS = ("file", "data", "champion", "results")


def _difference(content: Mapping[str, str]) -> StudyDifference:
    return StudyDifference(content["name"], content["first"], content["second"])


def diff_studies(first: str, second: str, settings: Settings) -> StudyDiff:
    """Compare two studies of the home.

    Raises:
        orchestrator.study.access.UnknownStudyError: There is no study of one of the names.
    """
    one, other = find_study(first, settings), find_study(second, settings)
    with open_existing(settings) as store:
        if store is None:
            raise database_gone(settings)
        return diff_records(one, other, store, settings)


def diff_records(first: StudyRecord, second: StudyRecord, store: Store, settings: Settings) -> StudyDiff:
    """Compare two studies whose records were read with their actual states."""
    one, other = (read_study(study, store, study_folder(settings, study)) for study in (first, second))
    shared = _stages(one).keys() & _stages(other).keys()
    without = tuple(study.study.name for study in (one, other) if study.last(PromoteResult) is None)
    return StudyDiff(
        first.name,
        second.name,
        file=_differences(_file(one, shared), _file(other, shared)),
        data=_differences(_data(one), _data(other)),
        champion=() if without else _differences(_configuration(one), _configuration(other)),
        without_champion=without,
        results=_pairs(_results(one), _results(other)),
        verdict=_verdict(one, other),
    )


def _raw(reported: ReportedStudy) -> dict[str, Any]:
    """The study file with the defaults of this version, if it is readable."""
    return reported.study.spec if reported.spec is None else reported.spec.model_dump(mode="json")


def _stages(reported: ReportedStudy) -> dict[str, dict[str, Any]]:
    return {str(stage.get("name") or stage["stage"]): dict(stage) for stage in _raw(reported).get("stages", ())}


def _file(reported: ReportedStudy, shared: Set[str]) -> dict[str, str]:
    """The study file with one key per value. Stages have their names as keys, so that an added one shifts no others.

    Args:
        reported: The study.
        shared: Names of the stages that both studies have; of others, only the names are listed.
    """
    content = {name: value for name, value in _raw(reported).items() if name not in {*HOW, "study", "stages"}}
    stages = _stages(reported)
    return _flat({**content, "stages": list(stages), **{name: stages[name] for name in stages if name in shared}})


def _data(reported: ReportedStudy) -> dict[str, str]:
    data = reported.data
    if data is None:
        return {"digest": reported.study.data_digest[:16]}
    facts: dict[str, Any] = {
        "digest": reported.study.data_digest[:16],
        "classes": len(data.classes),
        **{f"{name} images": part.num_images for name, part in data.parts.items()},
        "channels": data.channels,
        "mean": [round(value, 4) for value in data.mean],
        "std": [round(value, 4) for value in data.std],
        "left out": sum(one.count for one in data.skipped),
    }
    return _flat(facts)


def _configuration(reported: ReportedStudy) -> dict[str, str]:
    champion = reported.last(PromoteResult)
    return {} if champion is None else _flat(champion.configuration.model_dump(mode="json", exclude={"data"}))


def _results(reported: ReportedStudy) -> dict[str, str]:
    champion, train = reported.last(PromoteResult), reported.last(TrainResult)
    facts: dict[str, str] = {"state": reported.study.state}
    if champion is not None:
        tested = f"{100 * champion.test_accuracy:.2f} %"
        facts["test accuracy"] = tested if champion.test is None else describe_accuracy(champion.test)
        if champion.val_accuracy is not None:
            facts["validation accuracy"] = f"{100 * champion.val_accuracy:.2f} %"
        facts["parameters"] = f"{champion.parameters:,.0f}"
        facts["MACs per image"] = f"{champion.macs:,.0f}"
    elif train is not None:
        facts["best validation accuracy"] = f"{100 * train.best.val_accuracy:.2f} %"
    if train is not None:
        facts["trained models"] = str(len(train.trials))
    return {**facts, "time (s)": f"{reported.total_s:.0f}"}


def accuracy_verdict(first: str, second: str, accuracy: Estimate, other: Estimate) -> str | None:
    """Whether two test accuracies differ by more than chance; `None` if one of them has no interval.

    The interval of the difference is that of two independent proportions, made of their Wilson intervals. It is too
    wide if both models were tested on the same images.

    Args:
        first: Name of a study.
        second: Name of the other one.
        accuracy: Test accuracy of the first one's champion.
        other: That of the second one's.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    if accuracy.low is None or accuracy.high is None or other.low is None or other.high is None:
        return None
    gain = other.value - accuracy.value
    low = gain - math.hypot(other.value - other.low, accuracy.high - accuracy.value)
    high = gain + math.hypot(other.high - other.value, accuracy.value - accuracy.low)
    shown = f"{100 * gain:+.2f} points of test accuracy (95 % interval {100 * low:+.2f} to {100 * high:+.2f})"
    who = "neither is shown to be better" if low <= 0 <= high else f"{second if gain > 0 else first} is better"
    return f"{second} against {first}: {shown}; {who}"


def _verdict(one: ReportedStudy, other: ReportedStudy) -> str | None:
    """Whether one champion is better than the other; `None` unless both were tested by this version."""
    tests = [None if (found := study.last(PromoteResult)) is None else found.test for study in (one, other)]
    if tests[0] is None or tests[1] is None:
        return None
    return accuracy_verdict(
        one.study.name, other.study.name, tests[0].metrics["accuracy"], tests[1].metrics["accuracy"]
    )


def _differences(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[StudyDifference, ...]:
    pairs = _pairs(_with_names(first, second), _with_names(second, first))
    return tuple(pair for pair in pairs if pair.first != pair.second)


def _with_names(settings: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """The same settings, in which a method that is only a name can be compared with one that has settings, too."""
    return {f"{key}.name" if f"{key}.name" in other else key: value for key, value in settings.items()}


def _pairs(first: Mapping[str, str], second: Mapping[str, str]) -> tuple[StudyDifference, ...]:
    names = dict.fromkeys([*first, *second])
    return tuple(StudyDifference(name, first.get(name, MISSING), second.get(name, MISSING)) for name in names)


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings with one dotted key per value; lists are values."""
    if isinstance(value, Mapping) and value:
        return {key: text for name, inner in value.items() for key, text in _flat(inner, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): _text(value)}


def _text(value: Any) -> str:
    if isinstance(value, list) and value and not any(isinstance(one, list | Mapping) for one in value):
        return ", ".join(map(_text, value))
    if isinstance(value, list | Mapping):  # as it is written in a study file
        flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=math.inf)
        return str(flow).strip()
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
