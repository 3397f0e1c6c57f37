"""Names of studies that belong to several owners.

The owner of the home is the user who runs vitsearch there. This owner's studies have their names as they are; those of
another owner are called `OWNER~NAME`, so that everyone may have a study `digits`.
"""

import getpass
import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from plugins.registry import nearest_name

SEPARATOR = "~"
MAX_LENGTH = 64
"""Of a name with its owner."""
_OWNER = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")


class NameTakenError(ValueError):
    """A name contains another owner's, or is too long together with its owner."""


@cache
def home_owner() -> str:
    """The owner of the home: the user of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def check_owner(owner: str) -> str:
    """Return the name of an owner if it is valid.

    Raises:
        ValueError: It is not.
    """
    if _OWNER.fullmatch(owner) is None and owner != home_owner():
        raise ValueError(
            "the name of an owner must be 1 to 32 lower-case letters, digits, dots, dashes or underscores, the first a "
            f"letter or digit, but got {owner!r}. Change it."
        )
    return owner


def full_name(name: str, owner: str) -> str:
    """Name of an owner's study in the database.

    Raises:
        NameTakenError: The name contains that of another owner, or is too long.
    """
    prefix = "" if owner == home_owner() else f"{owner}{SEPARATOR}"
    if SEPARATOR in name and not (prefix and name.startswith(prefix)):
        raise NameTakenError(
            f"study: the name must be one of {owner}'s own, but {name!r} belongs to "
            f"{name.partition(SEPARATOR)[0]!r}. Remove the part up to {SEPARATOR!r}."
        )
    full = name if name.startswith(prefix) else f"{prefix}{name}"
    if len(full) > MAX_LENGTH:
        raise NameTakenError(
            f"study: the name must have at most {MAX_LENGTH - len(prefix)} characters, because that of its owner "
            f"{owner!r} is added, but {name!r} has {len(name)}. Shorten it."
        )
    return full


def owner_of(name: str) -> str:
    """The owner of a study in the database."""
    return name.partition(SEPARATOR)[0] if SEPARATOR in name else home_owner()


def nearest_study(name: str, names: Sequence[str]) -> str | None:
    """The study that someone meant who wrote its name wrongly, or gave its file instead; `None` if none is similar."""
    return nearest_name(name, names) or nearest_name(Path(name).stem, names)
