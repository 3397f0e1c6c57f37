"""`vitsearch owner`: the owners of studies and their shares of the devices."""

from rich.table import Table

from orchestrator.cli.console import out, print_json
from orchestrator.cli.submitting import opened_store
from orchestrator.settings import load_settings


def list_owners_command(*, as_json: bool) -> None:
    """Print owners with their weights and the device time that counts now."""
    with opened_store(load_settings()) as store:
        found = store.owners().all()
    if as_json:
        print_json([one._asdict() for one in found])
        return
    if not found:
        out("No owners yet: nobody has submitted a study that ran. Set a weight with: vitsearch owner weight OWNER 2")
        return
    table = Table("owner", "weight", "device time (h)", box=None, pad_edge=False)
    for one in found:
        table.add_row(one.name, f"{one.weight:g}", f"{one.used_s / 3600:.1f}")
    out(table)


def set_weight_command(owner: str, weight: float) -> None:
    """Set the weight of an owner."""
    from orchestrator.service.owner_weights import set_weight

    with opened_store(load_settings()) as store:
        set_weight(store, owner, weight)
    out(f"{owner} has the weight {weight:g}; the next studies start accordingly")
