"""Of several attempts at one training, only the newest may write its files.

A worker that its driver has lost, or whose driver another machine has taken over from, may train on: what it tells is
refused by the rows, and its checkpoints by what is here. Each attempt leaves its token beside the checkpoints when it
begins; whoever finds a higher one there writes nothing more.
"""

from trainers.config import Fence
from trainers.training.checkpoints import writing


class SupersededError(RuntimeError):
    """A newer attempt at the same training has begun."""


def claim(fence: Fence | None) -> None:
    """Begin: from now on, earlier attempts may not write.

    Raises:
        SupersededError: A newer attempt has begun.
        trainers.training.checkpoints.CheckpointWriteError: The file system takes no more.
    """
    check(fence)
    if fence is None or _newest(fence) == fence.token:
        return
    with writing(fence.file):
        fence.file.parent.mkdir(parents=True, exist_ok=True)
        whole = fence.file.with_name(f".{fence.file.name}-{fence.token}")
        whole.write_text(str(fence.token), encoding="ascii")
        whole.replace(fence.file)


def check(fence: Fence | None) -> None:
    """Return if no newer attempt has begun.

    Raises:
        SupersededError: One has.
        trainers.training.checkpoints.CheckpointWriteError: That cannot be read.
    """
    if fence is not None and _newest(fence) > fence.token:
        raise SupersededError(
            f"a newer attempt at the training in {fence.file.parent} has begun, so this one must end: its study has "
            "given it up, or goes on in another process. If neither is so (the database came from a backup), delete "
            f"{fence.file} and run the same command again."
        )


def _newest(fence: Fence) -> int:
    with writing(fence.file):
        try:
            return int(fence.file.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):  # a first attempt, or torn by a power cut
            return 0
