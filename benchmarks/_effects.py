"""What each method gave in the benchmarks, as text for its card."""

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks._arms import Arm
from benchmarks._methods_page import arms_of, results_of
from benchmarks._pairs import paired_difference
from benchmarks.methods import AS_VIT, CONTROL, ELSEWHERE, KINDS
from search_spaces.recipes import PLUGIN_FIELDS

IMAGES = {"digits": "digits", "cifar10": "CIFAR-10", "noisy-digits": "digits with 40 % wrong labels"}
"""Files of results, and what a card calls them."""
ARMS: Mapping[str, tuple[Arm, ...]] = {AS_VIT: tuple(arm for arms in KINDS.values() for arm in arms), **ELSEWHERE}
"""All arms by topology."""
_AT_EQUAL_WORK = "points of test accuracy against AdamW with cosine at equal work"
_TO_THE_END = "points of test accuracy against training to the end, with 40 % wrong labels"


def measured_effects() -> dict[str, dict[str, str]]:
    """A sentence for each method that was measured, by kind and name."""
    found: dict[str, dict[str, list[str]]] = {}
    for topology, arms in ARMS.items():
        results = {images: arms_of(images, topology) for images in IMAGES}
        for arm in arms:
            for kind, name in _methods_of(arm):
                found.setdefault(kind, {}).setdefault(name, []).extend(_of_arm(arm, name, results))
    texts = {
        kind: {name: f"{'; '.join(parts)} ({_AT_EQUAL_WORK})" for name, parts in sorted(of_kind.items()) if parts}
        for kind, of_kind in sorted(found.items())
    }
    stopping = {name: f"{'; '.join(parts)} ({_TO_THE_END})" for name, parts in sorted(_of_criteria().items())}
    return {kind: of_kind for kind, of_kind in {**texts, "stopping": stopping}.items() if of_kind}


def _methods_of(arm: Arm) -> Iterator[tuple[str, str]]:
    """Kind and name of the method of an arm, for an optimizer whatever schedule it has."""
    methods = {
        field: value if isinstance(value, str) else value["name"]
        for field, value in arm.changes.items()
        if field in PLUGIN_FIELDS
    }
    if arm.is_refined:
        methods = {"schedule": "refined-linear"}
    if "optimizer" in methods:
        methods.pop("schedule", None)
    yield from ((PLUGIN_FIELDS[field], name) for field, name in methods.items())


def _of_arm(arm: Arm, name: str, results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    shown = "" if arm.name == name else f"{arm.name}, "
    for images, words in IMAGES.items():
        arms = results[images]
        if arm.name in arms and CONTROL.name in arms:
            difference = paired_difference(arms[arm.name]["test"], arms[CONTROL.name]["test"])
            yield f"{shown}{words}: {difference.text(scale=100)}"


def _of_criteria() -> dict[str, list[str]]:
    content: dict[str, Any] = results_of("noisy-labels-digits") or {"rows": []}
    found: dict[str, list[str]] = {}
    for row in content["rows"]:
        end, _, _, difference = row.values()
        name, bracket, _ = end.partition("(")
        if bracket and " " not in name:
            found.setdefault(name, []).append(f"{end}: {difference}")
    return found
