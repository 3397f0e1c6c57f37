"""Figures without a drawing. A small study saves some twenty, and drawing them takes longer than its trainings.

The figures are made as usual, but matplotlib saves a blank image. Tests of what figures show use the fixture
`drawn_figures`, and the study of the fixture `tiny` draws all of its figures.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from matplotlib.figure import Figure
from PIL import Image

_save_drawing = Figure.savefig


def _save_blank(self: Figure, target: Any, **options: Any) -> None:
    if str(target).endswith(".svg"):  # drawn only for pages, whose tests look at them
        _save_drawing(self, target, **options)
        return
    Image.new("L", (1, 1), 255).save(target, format="PNG")


@contextmanager
def blank_figures() -> Iterator[None]:
    """Save blank images inside the `with` block."""
    with patch.object(Figure, "savefig", _save_blank):
        yield


@contextmanager
def figures_as_usual() -> Iterator[None]:
    """Draw figures inside the `with` block."""
    with patch.object(Figure, "savefig", _save_drawing):
        yield
