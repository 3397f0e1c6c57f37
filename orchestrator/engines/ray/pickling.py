"""Keeps our objects out of Ray Tune's snapshots."""

from typing import Any


class NotPickled:
    """An object that pickles to nothing, because Tune pickles its arguments into a snapshot that we never read."""

    def __getstate__(self) -> dict[str, Any]:
        return {}
