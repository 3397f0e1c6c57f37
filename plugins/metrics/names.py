"""Names of metrics: those that are always recorded, and the keys under which results store their values."""

RECORDED_METRICS = ("accuracy", "balanced-accuracy", "macro-f1", "loss")
"""Metrics that every evaluation records, whichever one decides."""


def metric_key(name: str, *, part: str = "val") -> str:
    """Key of a metric's value in results and in MLflow: `val_macro_f1` for `macro-f1` on the part `val`."""
    return f"{part}_{name.replace('-', '_')}"
