"""The commands backup and restore."""

from pathlib import Path

from orchestrator.cli.console import note, out
from orchestrator.settings import load_settings
from trainers.storage.addresses import address_of


def backup_command(folder: Path, *, with_objects: bool) -> None:
    """Copy the installation into a new folder."""
    from orchestrator.study.backup import make_backup
    from orchestrator.study.sizes import human_size

    settings = load_settings()
    made = make_backup(settings, folder, with_objects=with_objects)
    out(f"{folder}: {human_size(made.num_bytes)}, the databases and files of {settings.home}")
    for remark in made.left_out:
        note(f"not in the backup: {remark}")
    places = ["VITSEARCH_HOME=NEW"]
    if not settings.database_url.startswith("sqlite"):
        places.append("VITSEARCH_DATABASE_URL=NEW")
    address = address_of(settings.artifact_root)
    if address is not None:
        places.append(f"VITSEARCH_ARTIFACT_ROOT={f'{address}-NEW' if with_objects else address}")
    kept = "" if address is None or with_objects else ", beside the objects that the store keeps,"
    note(f"restore it into an empty home{kept} with: {' '.join(places)} vitsearch restore {folder}")


def restore_command(folder: Path) -> None:
    """Fill an empty installation from a backup."""
    from orchestrator.study.backup import restore_backup

    settings = load_settings()
    missing = restore_backup(settings, folder)
    out(f"restored {folder} into {settings.home}. Its studies: vitsearch list")
    if missing is not None:
        note(missing)
