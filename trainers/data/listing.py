"""What reading a source gives: lists of labelled images that are not decoded yet, and what was ignored."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_MAX_EXAMPLES = 5
_MAX_UNREADABLE = 20


class DataError(ValueError):
    """The data cannot be used. The message names the place, the requirement, the problem and a remedy."""


class Item(NamedTuple):
    """One image before decoding."""

    name: str
    """File, or row of a file, for messages."""
    content: Any
    """A file's path, an encoded file's bytes, grey pixels (H, W), uint8, or a Pillow image."""


class Origin(NamedTuple):
    """Where an image comes from."""

    name: str
    """As in `Item`."""
    file: Path
    """The file that contains the image."""


class Listing(Protocol):
    """The labelled images of one part of a source."""

    @property
    def where(self) -> str:
        """The source, for messages."""
        ...

    @property
    def labels(self) -> tuple[int, ...]:
        """Class of each image, as an index into the source's `class_names`."""
        ...

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """The images at ascending `indices`."""
        ...

    def origins(self, indices: Sequence[int]) -> list[Origin] | None:
        """The origins of the images at `indices`, without reading the images; `None` if they are in no files."""
        ...


@dataclass(frozen=True, kw_only=True)
class FileListing:
    """Image files with their classes."""

    where: str
    labels: tuple[int, ...]
    files: tuple[Path, ...]

    def items(self, indices: Sequence[int]) -> Iterator[Item]:
        """Paths of the files."""
        for index in indices:
            yield Item(str(self.files[index]), self.files[index])

    def origins(self, indices: Sequence[int]) -> list[Origin]:
        """The files themselves."""
        return [Origin(str(self.files[index]), self.files[index]) for index in indices]


class UnreadableError(DataError):
    """Files or rows are not images.

    Attributes:
        reasons: The reason for each, by name.
        remedy: What leaves them out, or `None` if nothing does.
    """

    def __init__(self, reasons: Mapping[str, str], *, remedy: str | None = "`data.skip_broken: true`") -> None:
        self.reasons, self.remedy = dict(reasons), remedy
        names = [f"{name} ({reason})" for name, reason in list(reasons.items())[:_MAX_UNREADABLE]]
        if len(reasons) == 1:
            ((name, reason),) = reasons.items()
            advice = f", or leave it out with {remedy}" if remedy else ""
            text = f"{name} must be an image that Pillow can read, but: {reason}. Replace or remove it{advice}."
        else:
            more = [f"... and {len(reasons) - len(names)} more"] if len(reasons) > len(names) else []
            advice = f", or leave them out with {remedy}" if remedy else ""
            text = "\n  ".join(
                [
                    f"{len(reasons)} images must be readable by Pillow, but are not. Replace or remove them{advice}:",
                    *names,
                    *more,
                ]
            )
        super().__init__(text)

    def with_remedy(self, remedy: str) -> "UnreadableError":
        """The same error with other advice, such as the option of a command."""
        return UnreadableError(self.reasons, remedy=remedy)


@dataclass
class Skipped:
    """Entries of a source that are not used, for one reason."""

    reason: str
    count: int = 0
    examples: list[str] = field(default_factory=list)
    """The first few, for messages."""


class DataWarning(NamedTuple):
    """Something suspicious that does not prevent the data from being used."""

    kind: str
    """Machine-readable, such as `constant` or `leak`."""
    message: str


@dataclass
class DataFindings:
    """Collects what was ignored and what is suspicious. Nothing is dropped without an entry here."""

    skipped: dict[str, Skipped] = field(default_factory=dict)
    """By reason, in the order of their discovery."""
    warnings: list[DataWarning] = field(default_factory=list)

    def skip(self, reason: str, example: str, *, count: int = 1) -> None:
        """Count entries that are not used."""
        found = self.skipped.setdefault(reason, Skipped(reason))
        found.count += count
        if example and len(found.examples) < _MAX_EXAMPLES:
            found.examples.append(example.encode(errors="backslashreplace").decode())  # a name may be no UTF-8

    def warn(self, kind: str, message: str) -> None:
        """Add a warning."""
        self.warnings.append(DataWarning(kind, message))


@dataclass(frozen=True, kw_only=True)
class Source:
    """The images of a data set, by part."""

    where: str
    """The place, for messages."""
    class_names: tuple[str, ...]
    train: Listing
    """The part that trials may use. Validation and test images are split off it if the source has no such parts."""
    validation: Listing | None = None
    test: Listing | None = None
    findings: DataFindings = field(default_factory=DataFindings)

    @property
    def parts(self) -> dict[str, Listing]:
        """The parts that the source has, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: listing for name, listing in named.items() if listing is not None}


def few(names: Sequence[str], limit: int = 8) -> str:
    """Up to `limit` names, and the number of names if there are more."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"
