"""The error of accuracies that cannot be used."""


class TruthError(ValueError):
    """A ground truth cannot be used; the message states where, what must hold and what was found.

    Attributes:
        key: The key of the study file's `truth` that caused the error.
    """

    def __init__(self, message: str, *, key: str = "table") -> None:
        self.key = key
        super().__init__(message)
