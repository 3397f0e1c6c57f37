"""What users should know about how a trial ran, in words, from the details of its outcome."""

from collections.abc import Mapping
from typing import Any


def notes_of(details: Mapping[str, Any]) -> list[str]:
    """One phrase for each note, to follow the name of the trial: `trained with ...`."""
    return [
        *(f"continued from an earlier checkpoint: {damage}" for damage in details.get("damaged_checkpoints", ())),
        *(f"had a loss spike: {spike}" for spike in details.get("loss_spikes", ())),
        *(f"ran short of memory: {details[name]}" for name in ("memory",) if name in details),
        *(f"was not compiled: {details[name]}" for name in ("not_compiled",) if name in details),
        *(f"was slow: {details[name]}" for name in ("slow",) if name in details),
    ]
