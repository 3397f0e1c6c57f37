"""Turns off unwanted network access and output of libraries.

This module imports only `os`, because it must run before those libraries are imported.
"""

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
    """Disable telemetry, downloads and terminal output of libraries; call this before importing them.

    Variables that the user has set are not changed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
