"""Plain data for JSON, which has no numbers that are not finite."""

import math
from typing import Any


def finite(value: Any) -> Any:
    """Plain data in which numbers that are not finite became `None`."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return value
