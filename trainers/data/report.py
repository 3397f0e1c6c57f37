"""What was understood of a data set, as plain data; made by `trainers.data.describing`."""

from pydantic import BaseModel, ConfigDict


class _Plain(BaseModel):
    model_config = ConfigDict(frozen=True)


class PartReport(_Plain):
    """Images of one part."""

    num_images: int
    per_class: dict[str, int]


class SkippedReport(_Plain):
    """Entries that are not used, for one reason."""

    reason: str
    count: int
    examples: list[str]


class WarningReport(_Plain):
    """Something suspicious."""

    kind: str
    message: str


class DataReport(_Plain):
    """What was understood of a data set."""

    source: str
    classes: list[str]
    parts: dict[str, PartReport]
    """By name: `train`, `validation` and `test`."""
    image_size: int
    resize: str
    channels: int
    mean: list[float]
    """Per channel, from 0 to 1, over the training part."""
    std: list[float]
    """Standard deviation in the same way; 0 for a constant channel."""
    originals: list[str]
    """Modes and sizes before resizing, most frequent first, such as `RGB 640 x 480: 120`."""
    skipped: list[SkippedReport]
    warnings: list[WarningReport]

    @property
    def num_images(self) -> int:
        """Images of all parts."""
        return sum(part.num_images for part in self.parts.values())

    def places(self, skipped: SkippedReport) -> list[str]:
        """Examples of what was skipped, by their places in the source."""
        return [example.removeprefix(f"{self.source}/") for example in skipped.examples]

    @property
    def colours(self) -> str:
        """`grey` or `colour`, for messages."""
        return "grey" if self.channels == 1 else "colour"

    def lines(self) -> list[str]:
        """Lines for the start of a run: what is used, what is left out, and what is suspicious."""
        counts = ", ".join(f"{part.num_images} {name}" for name, part in self.parts.items())
        lines = [
            f"{self.num_images} {self.colours} images of {len(self.classes)} classes at {self.image_size} x "
            f"{self.image_size} pixels: {counts}"
        ]
        if self.skipped:
            lines.append("left out: " + "; ".join(f"{one.count} {one.reason}" for one in self.skipped))
        return [*lines, *(f"warning: {warning.message}" for warning in self.warnings)]
