"""The command export, which writes a model, or the searches of a study, for other programs."""

from pathlib import Path

from orchestrator.cli.console import busy, fail, out, print_json
from orchestrator.cli.exit_status import FAILED
from orchestrator.safe_text import masked_address
from orchestrator.settings import load_settings
from orchestrator.study.models import find_model_folder
from orchestrator.study.sizes import human_size
from trainers.export_formats import ExportFormat


def export_command(
    model: str, export_format: ExportFormat, *, file: Path | None, overwrite: bool, as_json: bool
) -> None:
    """Write a study's champion or the model of a folder in a format that other programs read."""
    folder = find_model_folder(model, load_settings())
    import torch

    from trainers.champion import load_model
    from trainers.exporting import export_model

    name = folder.name if folder == Path(model) else model.partition("@")[0]
    target = file or Path(f"{name}{export_format.suffix}")
    predictor = load_model(folder, device=torch.device("cpu"))
    try:
        with busy(f"exporting {name} ..."):
            written, described = export_model(predictor, target, export_format, overwrite=overwrite)
    except OSError as error:
        fail(f"{target} must be writable, but: {error.strerror or error}. Name another file with --out.", status=FAILED)
    if as_json:
        facts = {"file": str(written.absolute()), "description": str(described.absolute())}
        print_json({**facts, "format": export_format.value})
    else:
        size = human_size(written.stat().st_size)
        out(f"{written}: {size}, {export_format.value}\n{described}: inputs, outputs and classes")


def export_optuna_command(study: str, url: str, *, overwrite: bool, as_json: bool) -> None:
    """Write the searches of a study into an Optuna database."""
    from orchestrator.study.optuna_searches import export_to_optuna

    written = export_to_optuna(study, url, load_settings(), overwrite=overwrite)
    if as_json:
        print_json({"url": masked_address(url), "studies": [one._asdict() for one in written]})
        return
    lines = [
        f"{one.name}: {one.num_trials} trials"
        + (f"; {one.num_left_out} that have not ended are left out" if one.num_left_out else "")
        for one in written
    ]
    out("\n".join([*lines, f"Look at them with: optuna-dashboard {masked_address(url)}"]))
