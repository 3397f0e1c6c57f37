"""Paths of a study's files. Rows keep them relative to the study's folder, so that a home can be moved."""

from pathlib import Path


def folder_name(name: str, uid: str) -> str:
    """Name of a study's folder; it differs between studies that have had the same name."""
    return f"{name}-{uid}"


def folder_of_study(artifact_root: Path, name: str, uid: str) -> Path:
    """Folder of a study's checkpoints, plots and champion."""
    return artifact_root / "studies" / folder_name(name, uid)


def log_of_submission(local_root: Path, uid: str) -> Path:
    """File with what the drivers of a submission wrote, on a cluster in a folder that all machines share."""
    return local_root / "logs" / f"{uid}.log"


def to_stored(path: Path, folder: Path) -> str:
    """A path as a row keeps it: relative to the study's folder if it lies below, else unchanged."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
