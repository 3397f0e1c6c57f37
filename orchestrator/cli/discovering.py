"""`vitsearch discover`: searches for a formula that ranks the topologies of tables, reports it and saves it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orchestrator.cli.console import fail, note, out, plugins_print_on_stderr, print_json
from orchestrator.cli.given_tables import TableNetworks, networks_of, one_each, optional_facts
from orchestrator.cli.signals import StopRequest, stop_on_signal
from orchestrator.settings import Settings, load_settings

if TYPE_CHECKING:
    from orchestrator.discovery.evolution import SearchSettings
    from orchestrator.discovery.run import Findings, MeasuredPool
    from orchestrator.evaluation.ground_truth import GroundTruth
    from orchestrator.evaluation.repeated_truths import NamedAccuracies

_PAUSE_S = 5.0
"""Minimum time between two lines of progress."""
_IMAGES_PER_CLASS = 20


@dataclass(frozen=True, kw_only=True)
class DiscoverOptions:
    """The command-line options."""

    tables: Sequence[Path]
    spaces: Sequence[str]
    targets: Sequence[str]
    test_images: Sequence[int]
    """`spaces`, `targets` and `test_images` have one entry per table, or a single entry for all tables."""
    recipes: Sequence[str]
    epochs: Sequence[int]
    """`recipes` and `epochs` have one entry per table of trainings, or a single entry for all of them."""
    name: str
    num_classes: int | None
    image_size: int | None
    data: str
    batch_size: int
    num_networks: int
    iterations: int
    max_size: int
    seed: int
    save_interrupted: bool


def discover_command(options: DiscoverOptions, *, quiet: bool, as_json: bool) -> None:
    """Search for a formula, judge it on the held-out half, print it and save it."""
    from plugins.proxies.saved_formulas import saving_problem

    settings = load_settings()
    problem = saving_problem(settings.formula_folder, options.name)
    if problem is not None:
        fail(f"--name: {problem}", status=2)
    search_settings = _search_settings(options)
    networks = networks_of(options.tables, options.image_size, options.num_classes)
    truths = _truths(options, networks)
    control, progress = StopRequest(), _Lines(quiet=quiet)
    with stop_on_signal(control), plugins_print_on_stderr():
        pool = _measured(options, truths, settings, control, progress)
        findings = _found(options, pool, search_settings, control, progress)
    path = None
    if not findings.discovery.interrupted or options.save_interrupted:
        path = _save(options, networks, truths, findings, settings)
    if as_json:
        print_json({"saved": None if path is None else str(path), **findings.as_json()})
    else:
        from orchestrator.cli.discovery_table import discovery_report

        out(discovery_report(findings, saved=path))
    if findings.discovery.interrupted:
        kept = f"saved as {path}" if path else "not saved (--save-interrupted saves such a formula)"
        fail(f"interrupted; the best formula so far is {kept}. The networks' statistics are kept.", status=130)


def _search_settings(options: DiscoverOptions) -> "SearchSettings":
    from orchestrator.discovery.evolution import SearchSettings

    try:
        return SearchSettings(iterations=options.iterations, max_size=options.max_size)
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        fail(f"--{option} must be {first['msg'].removeprefix('Input should be ')}, but got {first['input']}.", status=2)


def _truths(options: DiscoverOptions, networks: TableNetworks) -> list["GroundTruth"]:
    """Load the accuracies of the tables; exits if they are invalid."""
    from orchestrator.discovery.evolution import MIN_TOPOLOGIES
    from orchestrator.evaluation.ground_truth import load_table_truth
    from orchestrator.evaluation.repeated_truths import repetition
    from orchestrator.spec.truth_error import TruthError
    from orchestrator.spec.truth_source import TruthSource
    from trainers.config import DataConfig
    from trainers.data.listing import DataError
    from trainers.data.sources import BUILT_IN
    from trainers.yaml_source import absolute_path

    if options.data in BUILT_IN:
        images: dict[str, Any] = {"source": options.data}
    else:
        images = {"source": absolute_path(options.data, Path.cwd()), "resize": "crop"}
        images["max_images"] = max(_IMAGES_PER_CLASS * networks.num_classes, 2 * options.batch_size)
    if options.data == "noise":
        images |= {"num_classes": networks.num_classes, "max_images": max(320, 2 * options.batch_size)}
    data = DataConfig(**images, image_size=networks.image_size)
    truths: list[GroundTruth] = []
    for table, space, target, optional in zip(
        options.tables,
        one_each("--space", options.spaces, options.tables),
        one_each("--target", options.targets, options.tables),
        optional_facts(options.tables, options.test_images, options.recipes, options.epochs),
        strict=True,
    ):
        path = absolute_path(str(table), Path.cwd())
        source = TruthSource(table=path, space=space, target=target, num_classes=networks.num_classes, **optional)
        try:
            truth = load_table_truth(source, data=data)
        except TruthError as error:
            option = "test-images" if error.key == "num_images" else error.key.replace("_", "-")
            fail(f"--{option}: {error}", status=2)
        except DataError as error:
            fail(f"--data: {error}", status=2)
        if len(truth.topologies) < MIN_TOPOLOGIES or len(set(truth.accuracies)) == 1:
            fail(
                f"--table: {table} must have at least {MIN_TOPOLOGIES} topologies that differ in {target}, but has "
                f"{len(truth.topologies)} with {len(set(truth.accuracies))} different values.",
                status=2,
            )
        mistake = repetition(_named(truth), [_named(one) for one in truths])
        if mistake is not None:
            fail(f"--table: {target} of {table} {mistake}", status=2)
        truths.append(truth)
    return truths


def _named(truth: "GroundTruth") -> "NamedAccuracies":
    from orchestrator.evaluation.repeated_truths import NamedAccuracies

    return NamedAccuracies(truth.title, truth.by_topology)


def _measured(
    options: DiscoverOptions,
    truths: Sequence["GroundTruth"],
    settings: Settings,
    control: StopRequest,
    progress: "_Lines",
) -> "MeasuredPool":
    from orchestrator.discovery.block_tables import StatisticsFiles
    from orchestrator.discovery.run import measure_pool

    pool = measure_pool(
        truths,
        StatisticsFiles(settings.home / "block-statistics"),
        batch_size=options.batch_size,
        num_networks=options.num_networks,
        on_progress=progress.networks,
        should_stop=control.should_stop,
    )
    if pool is None:
        fail(
            "interrupted; the statistics measured so far are kept. Run the same command again to continue.",
            status=130,
        )
    for topology in pool.left_out:
        note(f"excluding {topology}: its statistics are not finite")
    return pool


def _found(
    options: DiscoverOptions,
    pool: "MeasuredPool",
    search_settings: "SearchSettings",
    control: StopRequest,
    progress: "_Lines",
) -> "Findings":
    from orchestrator.discovery.run import discover

    try:
        findings = discover(
            pool,
            search_settings,
            name=options.name,
            seed=options.seed,
            should_stop=control.should_stop,
            on_progress=progress.formulas(options.iterations),
        )
    except ValueError as error:
        fail(str(error), status=1)
    if findings is None:
        fail("the search ended before any formula could be evaluated. Raise --iterations.", status=1)
    return findings


def _save(
    options: DiscoverOptions,
    networks: TableNetworks,
    truths: Sequence["GroundTruth"],
    findings: "Findings",
    settings: Settings,
) -> Path:
    from orchestrator.evaluation.repeated_truths import accuracies_digest
    from plugins.proxies.saved_formulas import save_formula

    about = [
        *findings.about(),
        f"networks: {options.num_networks} per topology, {networks.num_classes} classes, {networks.image_size} pixels, "
        f"a batch of {options.batch_size} from {options.data}",
    ]
    fitted_to = [accuracies_digest(truth.by_topology) for truth in truths]
    formula = findings.discovery.formula
    return save_formula(settings.formula_folder, options.name, formula, comments="\n".join(about), fitted_to=fitted_to)


class _Lines:
    """Prints occasional lines of progress."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._began = self._last_printed = time.monotonic()

    def networks(self, done: int, total: int) -> None:
        if done == 0:
            self._began = time.monotonic()
            self._print(f"measuring {total} networks without stored statistics")
        elif done == total:
            self._print(f"measured {total} networks in {time.monotonic() - self._began:.0f} s")
        elif self._is_due():
            left = (time.monotonic() - self._began) / done * (total - done)
            self._print(f"measured {done} of {total} networks, about {left:.0f} s left")

    def formulas(self, iterations: int) -> Any:
        def show(done: int, best: float) -> None:
            if done == iterations or self._is_due():
                self._print(
                    f"tried {done:,} of {iterations:,} formulas; best on the searched half, minus counting: {best:+.3f}"
                )

        return show

    def _is_due(self) -> bool:
        return time.monotonic() - self._last_printed >= _PAUSE_S

    def _print(self, line: str) -> None:
        self._last_printed = time.monotonic()
        if not self._quiet:
            note(line)
