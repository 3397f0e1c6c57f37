"""The command train, which trains a single model."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.console import fail, note, out, plugins_print_on_stderr, print_json, stderr
from orchestrator.cli.decoding import show_decoding
from orchestrator.cli.exit_status import BAD_INPUT, exit_on_error
from orchestrator.cli.signals import StopRequest, stop_on_signal
from orchestrator.settings import load_settings
from orchestrator.spec.study_file import load_configuration
from orchestrator.stages.progress import as_percent
from plugins.metrics.deciding import ACCURACY
from trainers.config import EpochReport
from trainers.results.model_report import describe_result
from trainers.training.reporting import Reporter


class EpochLines(Reporter):
    """Prints a line per epoch, and passes the user's stop request to the training."""

    def __init__(self, control: StopRequest, *, epochs: int, quiet: bool, validates: bool = True) -> None:
        self._control = control
        self._epochs = epochs
        self._quiet = quiet
        self._validates = validates

    def report(self, report: EpochReport) -> None:
        if self._quiet:
            return
        figures = f"training loss {report.train_loss:.4f}"
        if self._validates:
            figures = f"validation accuracy {as_percent(report.val_accuracy)}, loss {report.val_loss:.4f}"
        note(f"epoch {report.epoch} of {self._epochs}: {figures}, {report.wall_time_s:.1f} s")

    def should_stop(self) -> bool:
        return self._control.should_stop()


def train_command(
    file: Path, *, overrides: Mapping[str, Any], folder: Path | None, overwrite: bool, quiet: bool, as_json: bool
) -> None:
    """Train a configuration, test it once, and save the model in a folder."""
    configuration = load_configuration(file, overrides=overrides)
    target = (folder or file.absolute().with_suffix("")).absolute()
    if target == file.absolute():
        target = target.with_name(f"{target.name}-model")
    if target.exists() and not overwrite:
        fail(
            f"{file}: the model's folder must be new, but {target} exists. Name another with --out, or replace the "
            "model in it with --overwrite.",
            status=BAD_INPUT,
        )
    from orchestrator.study.reusing import start_from_weights, with_teacher
    from trainers.champion import finish_model, train_configuration
    from trainers.data.fitting import load_for_training

    checkpoints = target.with_name(f"{target.name}.checkpoints")
    control = StopRequest()
    validates = configuration.train_on == "train"
    reporter = EpochLines(control, epochs=configuration.last_epoch, quiet=quiet, validates=validates)
    try:
        with exit_on_error(file):
            with show_decoding(stderr, quiet=quiet):
                data = load_for_training(configuration)
            if configuration.weights is not None:
                configuration, start = start_from_weights(configuration, data, checkpoints, load_settings())
                if not quiet:
                    note(start)
            if configuration.teacher is not None:
                configuration = with_teacher(configuration, checkpoints, load_settings())
            with stop_on_signal(control), plugins_print_on_stderr():
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
        f"test {'accuracy ' if report.metric == ACCURACY else ''}{describe_result(report)}, "
        + (
            f"validation {as_percent(metrics['val_accuracy'])}"
            if validates
            else "no validation figure and no calibration, because the validation part was trained on too"
        )
        + (f"; {outcome.reason}" if outcome.reason else "")
        + f"\nmodel in {target}\nvitsearch predict {target} IMAGE..."
    )
