"""The commands train and predict, which train or use a single model."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.console import fail, note, out, print_json, stderr
from orchestrator.cli.decoding import show_decoding
from orchestrator.cli.exit_status import BAD_INPUT, exit_on_error
from orchestrator.cli.signals import StopRequest, stop_on_signal
from orchestrator.settings import load_settings
from orchestrator.spec.study_file import load_configuration
from orchestrator.stages.progress import as_percent
from trainers.config import EpochReport
from trainers.data.listing import DataError
from trainers.results.model_report import describe_accuracy
from trainers.training.reporting import Reporter


class EpochLines(Reporter):
    """Prints a line per epoch, and passes the user's stop request to the training."""

    def __init__(self, control: StopRequest, *, epochs: int, quiet: bool) -> None:
        self._control = control
        self._epochs = epochs
        self._quiet = quiet

    def report(self, report: EpochReport) -> None:
        if not self._quiet:
            note(
                f"epoch {report.epoch} of {self._epochs}: validation accuracy {as_percent(report.val_accuracy)}, "
                f"loss {report.val_loss:.4f}, {report.wall_time_s:.1f} s"
            )

    def should_stop(self) -> bool:
        return self._control.should_stop()


def train_command(file: Path, *, overrides: Mapping[str, Any], folder: Path | None, quiet: bool, as_json: bool) -> None:
    """Train a configuration, test it once, and save the model in a folder."""
    configuration = load_configuration(file, overrides=overrides)
    target = (folder or file.absolute().with_suffix("")).absolute()
    if target == file.absolute():
        target = target.with_name(f"{target.name}-model")
    from orchestrator.study.reusing import start_from_weights
    from trainers.champion import finish_model, train_configuration
    from trainers.data.images import load_images

    checkpoints = target.with_name(f"{target.name}.checkpoints")
    control = StopRequest()
    reporter = EpochLines(control, epochs=configuration.epochs, quiet=quiet)
    try:
        with exit_on_error(file):
            with show_decoding(stderr, quiet=quiet):
                data = load_images(configuration.data)
            if configuration.weights is not None:
                configuration, start = start_from_weights(configuration, data, checkpoints, load_settings())
                if not quiet:
                    note(start)
            with stop_on_signal(control):
                outcome, weights = train_configuration(configuration, checkpoints, reporter, data=data)
            if outcome.state == "interrupted":
                fail(
                    f"interrupted; finished epochs are kept. Resume with the same command: vitsearch train {file}",
                    status=130,
                )
            if weights is None:
                fail(f"training failed: {outcome.reason}", status=1)
            metrics, report, _ = finish_model(target, weights, configuration, data)
    except OSError as error:
        fail(f"{file}: {error}", status=1)
    except ValueError as error:  # training stopped early, with fewer checkpoints than the averaging method needs
        fail(f"{file}: {error}", status=1)
    shutil.rmtree(checkpoints, ignore_errors=True)  # the model no longer needs them
    if as_json:
        found = {"folder": str(target), "state": outcome.state, "reason": outcome.reason, **metrics}
        print_json({**found, "test": report.model_dump(mode="json")})
        return
    out(
        f"test accuracy {describe_accuracy(report)}, validation {as_percent(metrics['val_accuracy'])}"
        + (f"; {outcome.reason}" if outcome.reason else "")
        + f"\nmodel in {target}\nvitsearch predict {target} IMAGE..."
    )


def predict_command(model: str, images: list[Path], *, as_json: bool) -> None:
    """Classify images with a study's champion or a model folder."""
    from orchestrator.study.access import find_champion
    from trainers.champion import load_model

    folder = Path(model)
    if not folder.is_dir():
        folder = Path(find_champion(model, load_settings())["folder"])
    problems: list[DataError] = []
    predictions = load_model(folder).predict(images, problems=problems)
    if as_json and predictions:
        print_json([{**one._asdict(), "path": str(one.path)} for one in predictions])
    for one in predictions if not as_json else ():
        others = ", ".join(f"{label} {as_percent(probability)}" for label, probability in one.top[1:])
        out(f"{one.path}: {one.label} {as_percent(one.probability)}" + (f" ({others})" if others else ""))
    if problems:
        fail("\n".join(str(problem) for problem in problems), status=BAD_INPUT)
