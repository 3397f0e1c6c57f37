"""`python -m vitsearch`, and the console script: the command line."""

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Run the command line. Ctrl-C ends it at once, without a traceback, also while it is being imported."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # not if a script ignores it
        signal.signal(signal.SIGINT, _interrupted)
    try:
        from orchestrator.cli.main import main as run_command_line
    except MemoryError:
        sys.exit("vitsearch: this command needs more memory than it may use. Raise the limit (`ulimit -v`).")
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, before)
    run_command_line()


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    os.write(2, b"vitsearch: interrupted\n")
    os._exit(130)


if __name__ == "__main__":
    main()
