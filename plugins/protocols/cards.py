"""Information that every plug-in carries about itself."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PluginCard:
    """Information about a method that a user needs before choosing it."""

    source: str
    """Author, year, arXiv id, and the differences between our version and the paper."""
    cost: str
    """Cost of one use, in words: `one forward pass of the training set per epoch`."""
    needs: tuple[str, ...] = ()
    """Required inputs: `images`, `difficulty`, `validation loss`, ..."""
