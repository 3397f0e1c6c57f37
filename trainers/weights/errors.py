"""The error of weights that cannot be used; a module without torch, so that commands can catch it quickly."""


class WeightsError(ValueError):
    """Weights to start from are missing, unreadable, or belong to a model that has nothing in common."""
