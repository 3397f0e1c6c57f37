"""Lets only the newest attempt at a training write its files.

A worker may continue to train after its driver lost contact, or after another machine took over the study. The database
rejects its reports, and this module its checkpoints: each attempt writes its token beside the checkpoints when it
begins, and an attempt that finds a higher token there stops writing.
"""

from trainers.config import Fence
from trainers.storage.addresses import place_text
from trainers.storage.artifacts import artifacts_at
from trainers.training.checkpoints import writing


class SupersededError(RuntimeError):
    """A newer attempt at the same training has begun."""


def claim(fence: Fence | None) -> None:
    """Begin an attempt. From now on, earlier attempts must not write.

    Raises:
        SupersededError: A newer attempt has begun.
        trainers.training.checkpoints.CheckpointWriteError: The token cannot be written.
    """
    check(fence)
    if fence is None or _newest(fence) == fence.token:
        return
    with writing(fence.file):
        artifacts_at(fence.file).write_token(fence.file, fence.token)


def check(fence: Fence | None) -> None:
    """Check that no newer attempt has begun.

    Raises:
        SupersededError: A newer attempt has begun.
        trainers.training.checkpoints.CheckpointWriteError: The token cannot be read.
    """
    if fence is not None and _newest(fence) > fence.token:
        raise SupersededError(
            f"only the newest attempt may train in {place_text(fence.file.parent)}, but a newer one than this has "
            "begun: the study gave this attempt up, or continues in another process. If neither is the case (the "
            f"database was restored from a backup), delete {place_text(fence.file)} and run the same command again."
        )


def _newest(fence: Fence) -> int:
    with writing(fence.file):
        return artifacts_at(fence.file).newest_token(fence.file)
