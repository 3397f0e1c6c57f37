"""Seeds that depend on where they are used, so that no two places draw the same numbers."""

import hashlib


def derive_seed(*parts: int | str) -> int:
    """A seed between 0 and 2^31 - 1 from a study's seed and the names and numbers of a place in it."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
