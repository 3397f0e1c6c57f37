"""Draws the most confident mistakes of a model into a picture."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from trainers.data.images import ImageSplit
from trainers.results.model_report import ModelReport

_COLUMNS, _MIN_SIDE, _MIN_CELL, _MARGIN, _LINE, _FONT_SIZE = 6, 96, 150, 8, 17, 13


def draw_mistakes(report: ModelReport, split: ImageSplit, file: Path) -> None:
    """Draw the mistakes of a report with their true and predicted classes.

    Args:
        report: The report; its `mistakes` are drawn, at least one.
        split: The images that it is about.
        file: The picture file to write. An older one is replaced.

    Raises:
        OSError: The file cannot be written.
    """
    size = split.images.shape[-1]
    side = size * max(1, -(-_MIN_SIDE // size))
    cell = max(side, _MIN_CELL) + _MARGIN
    height = side + 2 * _LINE + 2 * _MARGIN
    columns = min(_COLUMNS, len(report.mistakes))
    rows = -(-len(report.mistakes) // columns)
    font = ImageFont.load_default(size=_FONT_SIZE)
    sheet = Image.new("RGB", (columns * cell + _MARGIN, rows * height + _MARGIN), "white")
    pen = ImageDraw.Draw(sheet)
    for place, mistake in enumerate(report.mistakes):
        left, top = _MARGIN + place % columns * cell, _MARGIN + place // columns * height
        image = split.images[mistake.image]
        pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).contiguous().numpy()
        sheet.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
        answer = f" {100 * mistake.probability:.1f} %"
        room = cell - _MARGIN
        for line, (text, tail, colour) in enumerate(
            [(mistake.prediction, answer, "#b03000"), (f"is {mistake.truth}", "", "black")]
        ):
            shown = _fitted(text, room - font.getlength(tail), font) + tail
            pen.text((left, top + side + 2 + line * _LINE), shown, fill=colour, font=font)
    unfinished = file.with_name(f".unfinished-{file.name}")
    sheet.save(unfinished)
    unfinished.replace(file)


def _fitted(text: str, width: float, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The text, with its end replaced by dots if it is too wide."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
