"""Errors of the store, in a module that imports nothing, so that the command line starts fast."""


class DatabaseUnavailableError(RuntimeError):
    """The database has been unreachable for too long, or rejects writes; the message states what to do."""
