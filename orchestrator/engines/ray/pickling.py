"""Objects that Ray Tune may pickle, to no effect."""

from typing import Any


class NotKept:
    """Tune pickles what it is given into a snapshot that we never read; these objects leave nothing in it."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
