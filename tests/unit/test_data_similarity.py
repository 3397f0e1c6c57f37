"""The distance between data sets, from their descriptions."""

import math
from typing import Any

from orchestrator.evaluation.data_similarity import distance_between
from trainers.data.report import DataReport


def described(*counts: int, **changed: Any) -> DataReport:
    per_class = {f"class {number}": count for number, count in enumerate(counts)}
    given = {
        "source": "photos",
        "classes": list(per_class),
        "parts": {"train": {"num_images": sum(counts), "per_class": per_class}},
        "image_size": 32,
        "resize": "same",
        "channels": 3,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.2, 0.2],
        "originals": [],
        "skipped": [],
        "warnings": [],
    }
    return DataReport.model_validate({**given, **changed})


PHOTOS = described(400, 400)


def test_equal_descriptions_have_no_distance() -> None:
    found = distance_between(PHOTOS, described(400, 400, source="elsewhere"))
    assert (found.total, found.differences, found.is_near) == (0.0, (), True)


def test_each_respect_counts_by_its_scale_and_is_told_in_words() -> None:
    for other, text in (
        (described(1600, 1600), "3,200 training images instead of 800"),
        (described(200, 200, 200, 200), "4 classes instead of 2"),
        (described(400, 400, image_size=16), "models for 16 instead of 32 pixels"),
        (described(400, 400, channels=1, mean=[0.5], std=[0.2]), "grey instead of colour images"),
        (described(400, 400, mean=[0.55, 0.65, 0.75]), "a brightness of the pixels of 0.65 instead of 0.50"),
        (described(400, 400, std=[0.35] * 3), "a contrast of the pixels of 0.35 instead of 0.20"),
    ):
        found = distance_between(PHOTOS, other)
        assert math.isclose(found.total, 1.0, abs_tol=1e-9), text
        assert [one.text for one in found.differences] == [text]


def test_uneven_classes_differ_from_even_ones_and_many_differences_are_not_near() -> None:
    uneven = distance_between(PHOTOS, described(760, 40))
    assert [one.text for one in uneven.differences] == ["an evenness of the class sizes of 0.29 instead of 1.00"]
    other = distance_between(PHOTOS, described(*[60] * 20, image_size=64, channels=1, mean=[0.1], std=[0.4]))
    assert not other.is_near
    assert [one.amount for one in other.differences] == sorted((one.amount for one in other.differences), reverse=True)
