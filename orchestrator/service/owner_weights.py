"""Weights of owners: who gets more device time while several wait."""

from orchestrator.store.repository import Store
from orchestrator.store.study_names import check_owner, home_owner

MIN_WEIGHT, MAX_WEIGHT = 0.01, 100.0


class WeightError(ValueError):
    """The name of an owner or a weight is invalid."""


def set_weight(store: Store, owner: str, weight: float) -> None:
    """Set the weight of an owner in the queue, and note it in the audit log.

    Args:
        store: The store.
        owner: The owner, who need not have any study yet.
        weight: With 2, the owner gets twice as much device time as with 1 while both have studies that wait.

    Raises:
        WeightError: The owner or the weight is invalid.
    """
    try:
        check_owner(owner)
    except ValueError as error:
        raise WeightError(str(error)) from None
    if not MIN_WEIGHT <= weight <= MAX_WEIGHT:
        raise WeightError(f"weight: must be from {MIN_WEIGHT:g} to {MAX_WEIGHT:g}, but got {weight:g}. Change it.")
    store.owners().set_weight(owner, weight)
    store.audit_log().add(home_owner(), "owner.weight", owner, details={"weight": weight})
