"""Seeds of the parts of a study, so that no two parts draw the same random numbers."""

import hashlib


def seed_for(*parts: int | str) -> int:
    """A seed between 0 and 2^31 - 1, derived from a study's seed and the names and numbers of a part of it."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
