"""Switches off what libraries do unasked. Light, since it must be imported before any of them."""

import os

_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GIT_PYTHON_REFRESH": "quiet",
}


def quiet_libraries() -> None:
    """Keep libraries from phoning home, downloading, and chatting on the terminal; call it before they are imported.

    Variables that the user has set stay as they are.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
