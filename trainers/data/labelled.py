"""Loads labelled images to evaluate a model on, with classes matched by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch

from search_spaces.base import ImageTask
from trainers.config import NOISE, DataConfig
from trainers.data.decoding import Chosen
from trainers.data.images import ImageSplit, choose_parts, decode_images, load_images
from trainers.data.listing import DataError, DataFindings, UnreadableError, few
from trainers.data.mapping import joined
from trainers.data.pixels import Scales
from trainers.data.sources import BUILT_IN, list_parts, list_source

Part = Literal["test", "validation", "train", "all"]


class ModelInput(NamedTuple):
    """What a model knows of its input."""

    data: DataConfig
    """Source, size and treatment of the training images."""
    data_digest: str
    """Digest of the training and validation part."""
    task: ImageTask
    class_names: tuple[str, ...]
    scales: Scales
    """Values that mean white in deep images."""
    trained_on: tuple[str, ...] = ("train",)
    """The parts whose images the weights were fitted to."""


@dataclass(frozen=True, kw_only=True)
class ImageNames:
    """Names of the images of several listings, one after the other; looked up only for those that are asked for."""

    parts: tuple[Chosen, ...]

    def of(self, positions: Sequence[int]) -> list[str]:
        """File, or row of a file, of the images at these positions."""
        places = [(chosen.listing, int(index)) for chosen in self.parts for index in chosen.indices]
        return [next(iter(places[one][0].items([places[one][1]]))).name for one in positions]


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Labelled images for a model."""

    source: str
    part: Part
    why: str
    """Why this part was chosen, in a few words."""
    split: ImageSplit
    """The images, with the model's class numbers."""
    names: ImageNames | None
    """`None` if broken images were left out, because positions do not tell the names then."""
    notes: tuple[str, ...]
    """What was left out, and what makes the figures less reliable."""


def names_of_test_images(config: DataConfig, split: ImageSplit) -> ImageNames | None:
    """The names of the images that `load_test_images` loaded; `None` if some were left out, or if they have none."""
    if config.source == NOISE:
        return None
    chosen = choose_parts(list_source(config), config)["test"]
    return ImageNames(parts=(chosen,)) if len(chosen.indices) == len(split) else None


def load_labelled(source: str | None, model: ModelInput, *, part: Part | None = None) -> LabelledImages:
    """Load labelled images as a model sees them.

    Args:
        source: Images in any form that `vitsearch data` reads. Default: the source that the model was trained on.
        model: The model's input.
        part: Which images. Default: the test part, if the source has one or is the model's own; otherwise all.

    Raises:
        DataError: The images cannot be used, there is no such part, or no class has a name that the model knows.
    """
    is_own = source is None or _same_place(source, model.data.source)
    config = model.data if is_own else _config_of(str(source), model.data)
    if config.source == NOISE:
        raise DataError(
            f"a model can only be evaluated on labelled images, but {NOISE!r} has random labels. Name a folder or a "
            "file of images."
        )
    findings, notes = DataFindings(), []
    if is_own:
        listed = list_source(config)
        names, parts = listed.class_names, choose_parts(listed, config)
    else:
        names, listings = list_parts(config, findings)
        parts = {name: Chosen(one, np.arange(len(one.labels))) for name, one in listings.items()}
    chosen, why = _choose(part, parts, is_own=is_own, where=config.source)
    if is_own:
        notes += _own_notes(config, model, chosen)
    numbers = _class_numbers(names, model.class_names, config.source)
    taken, left_out = _known(parts if chosen == "all" else {chosen: parts[chosen]}, numbers, names)
    notes += left_out
    decoded = decode_images(taken, config, findings=findings, num_channels=model.task.in_channels, scales=model.scales)
    if decoded.broken and not config.skip_broken:
        raise UnreadableError(decoded.broken)
    split = ImageSplit(
        images=reduce(joined, [one.images for one in decoded.splits]),
        labels=torch.from_numpy(numbers)[torch.cat([one.labels for one in decoded.splits])],
    )
    if not len(split):
        raise DataError(f"the {chosen} part of {config.source} must have images, but has none that can be used.")
    missing = [name for number, name in enumerate(model.class_names) if not bool((split.labels == number).any())]
    if missing:
        notes.append(f"there are no images of {few([repr(name) for name in missing])}, which the model knows")
    notes += [
        f"left out: {one.count} {one.reason}" + (f", such as {one.examples[0]}" if one.examples else "")
        for one in findings.skipped.values()
    ]
    notes += [one.message for one in findings.warnings]
    return LabelledImages(
        source=config.source,
        part=chosen,
        why=why,
        split=split,
        names=None if decoded.broken else ImageNames(parts=tuple(taken)),
        notes=tuple(notes),
    )


def _same_place(source: str, other: str) -> bool:
    if source in BUILT_IN or other in BUILT_IN:
        return source == other
    return Path(source).expanduser().resolve() == Path(other).expanduser().resolve()


def _config_of(source: str, data: DataConfig) -> DataConfig:
    """The model's treatment of images for another source: all images are used, and of any size, as `predict` does."""
    return data.model_copy(
        update={
            "source": source,
            "resize": "stretch" if data.resize == "stretch" else "crop",
            "max_images": None,
            "max_test_images": None,
        }
    )


def _choose(part: Part | None, parts: Mapping[str, Chosen], *, is_own: bool, where: str) -> tuple[Part, str]:
    """The part to evaluate, and why."""
    if part is None and "test" in parts:
        return "test", "held out from the search and the training" if is_own else "the source has a test part"
    if part is None:
        return "all", "the source has no test part"
    if part != "all" and part not in parts:
        found = ", ".join(parts)
        raise DataError(
            f"{where} must have a {part} part, as `part: {part}` asks, but it has only {found}. Use `part: all`, or "
            f"name one of these."
        )
    return part, "as asked"


def _own_notes(config: DataConfig, model: ModelInput, part: Part) -> list[str]:
    if part == "all" or part in model.trained_on:
        return ["the model was trained on these images, or some of them, so that its figures are too good"]
    if load_images(config).digest != model.data_digest:
        return [
            f"the images of {config.source} have changed since the model was trained on them, so that its {part} part "
            "may contain training images, and the figures may be too good"
        ]
    return []


def _class_numbers(
    names: Sequence[str], known: Sequence[str], where: str
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """The model's class number for each class of the source; -1 if the model does not know it."""
    numbers = {name: number for number, name in enumerate(known)}
    found = np.array([numbers.get(name, -1) for name in names], dtype=np.int64)
    if (found < 0).all():
        raise DataError(
            f"the classes of {where} must have the names of the model's classes ({few(list(known))}), but are "
            f"{few(list(names))}. Rename them."
        )
    return found


def _known(
    parts: Mapping[str, Chosen], numbers: "np.ndarray[tuple[int], np.dtype[np.int64]]", names: Sequence[str]
) -> tuple[list[Chosen], list[str]]:
    """The images whose class the model knows, and a note on the others."""
    taken, unknown = [], np.zeros(len(names), dtype=np.int64)
    for chosen in parts.values():
        labels = np.asarray(chosen.listing.labels)[chosen.indices]
        is_known = numbers[labels] >= 0
        unknown += np.bincount(labels[~is_known], minlength=len(names))
        taken.append(Chosen(chosen.listing, chosen.indices[is_known]))
    if not unknown.any():
        return taken, []
    classes = [f"{name!r} ({count})" for name, count in zip(names, unknown.tolist(), strict=True) if count]
    return taken, [f"{int(unknown.sum())} images left out, of classes that the model does not know: {few(classes)}"]
