"""`vitsearch correlate`: runs a study with one correlate stage, built from options instead of a file."""

import hashlib
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cli.console import fail
from orchestrator.cli.given_tables import TableNetworks, networks_of, one_each, optional_facts
from orchestrator.cli.running import run_and_show
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.proxy_choices import ALL
from orchestrator.spec.study_file import StudySpec, make_spec
from orchestrator.spec.truth_error import TruthError
from trainers.config import NOISE
from trainers.data.sources import BUILT_IN
from trainers.yaml_source import SpecError, absolute_path

_IMAGES_PER_CLASS = 20
_OPTIONS = {
    "transfer": "--transfer",
    "num_images": "--test-images",
    "table": "--table",
    "space": "--space",
    "target": "--target",
    "recipe": "--recipe",
    "epoch": "--epoch",
    "num_classes": "--num-classes",
    "proxies": "--proxies",
    "baselines": "--proxies",
    "seeds": "--seeds",
    "repeats": "--repeats",
    "batch_size": "--batch-size",
    "image_size": "--image-size",
    "max_images": "--batch-size",
    "source": "--data",
    "study": "STUDY",
    "seed": "--seed",
}
"""The option that sets each key of the study file."""


@dataclass(frozen=True, kw_only=True)
class CorrelateOptions:
    """The command-line options; `None` or empty if omitted."""

    study: str | None
    tables: Sequence[Path]
    spaces: Sequence[str]
    targets: Sequence[str]
    test_images: Sequence[int]
    """`spaces`, `targets` and `test_images` have one entry per table, or a single entry for all tables."""
    recipes: Sequence[str]
    epochs: Sequence[int]
    """`recipes` and `epochs` have one entry per table of trainings, or a single entry for all of them."""
    num_classes: int | None
    proxies: Sequence[str]
    seeds: int | None
    repeats: int | None
    batch_size: int | None
    data: str | None
    image_size: int | None
    transfers: Sequence[str]
    seed: int | None


def correlate_command(options: CorrelateOptions, *, quiet: bool, as_json: bool) -> None:
    """Run or resume the study that the options describe, and show its results."""
    settings = load_settings()
    try:
        given = _of_study(options, settings) if options.study is not None else _of_tables(options)
        spec = make_spec({"study": "correlate", **given})
        spec = spec.model_copy(update={"study": _name(spec, settings)})
    except SpecError as error:
        keys = re.findall(r"[a-z_]+", error.path or "")
        option = next((_OPTIONS[key] for key in keys if key in _OPTIONS), None)
        fail(f"{option}: {error.message}" if option else error.message, status=2)
    except TruthError as error:
        fail(f"{_OPTIONS.get(error.key, error.key)}: {error}", status=2)
    text = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    again = shlex.join(["vitsearch", *sys.argv[1:]])
    run_and_show(spec, text, settings, where=None, again=again, quiet=quiet, as_json=as_json)


def proxy_names(given: Sequence[str]) -> list[str]:
    """Unique names from repeated options and comma-separated lists."""
    names = [name.strip() for text in given for name in text.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _of_tables(options: CorrelateOptions) -> dict[str, Any]:
    if not options.tables:
        fail("name a study, or a table of accuracies with --table FILE --space SPACE --target TARGET", status=2)
    networks = networks_of(options.tables, options.image_size, options.num_classes)
    truths = [
        {
            "table": _path(table),
            "space": space,
            "target": target,
            "num_classes": networks.num_classes,
            **{key: value for key, value in optional.items() if value is not None},
        }
        for table, space, target, optional in zip(
            options.tables,
            one_each("--space", options.spaces, options.tables),
            one_each("--target", options.targets, options.tables),
            optional_facts(options.tables, options.test_images, options.recipes, options.epochs),
            strict=True,
        )
    ]
    return {
        "seed": options.seed or 0,
        "data": _images(options, networks),
        "stages": [_stage(options, truths[0], [ALL], networks) | {"further": truths[1:]}],
    }


def _of_study(options: CorrelateOptions, settings: Settings) -> dict[str, Any]:
    """Use the study's images and seed, and by default its proxies."""
    for_tables = {
        "--table": options.tables,
        "--space": options.spaces,
        "--target": options.targets,
        "--test-images": options.test_images,
        "--recipe": options.recipes and not options.transfers,
        "--epoch": options.epochs and not options.transfers,
        "--num-classes": options.num_classes,
        "--data": options.data,
        "--image-size": options.image_size,
    }
    for option, value in for_tables.items():
        if value:
            fail(f"{option} is only for a table, but got the study {options.study!r}. Remove one.", status=2)
    from orchestrator.stages.truths import find_truth_study, last_screen, read_spec
    from orchestrator.study.access import open_existing

    with open_existing(settings) as store:
        study = read_spec(find_truth_study(str(options.study), store)[1])
    screen = last_screen(study)
    proxies = [choice.model_dump(mode="json") for choice in screen.proxies] if screen else [ALL]
    return {
        "seed": study.seed if options.seed is None else options.seed,
        "data": study.data.model_dump(mode="json"),
        "stages": [_stage(options, {"study": options.study}, proxies, networks_of((), None, None))],
    }


def _stage(
    options: CorrelateOptions, truth: Mapping[str, Any], default_proxies: Sequence[Any], networks: TableNetworks
) -> dict[str, Any]:
    given = {"seeds": options.seeds, "repeats": options.repeats, "batch_size": options.batch_size}
    return {
        "stage": "correlate",
        "truth": dict(truth),
        "proxies": proxy_names(options.proxies) or list(default_proxies),
        **{key: value for key, value in given.items() if value is not None},
        "transfer": [_transfer(text, options, networks) for text in options.transfers],
    }


def _transfer(text: str, options: CorrelateOptions, networks: TableNetworks) -> dict[str, Any]:
    file, *rest = text.rsplit(":", 2)
    if len(rest) != 2 or not all((file, *rest)):
        fail(f"--transfer must be FILE:SPACE:TARGET, but got {text!r}.", status=2)
    (optional,) = optional_facts([Path(file)], (), options.recipes[:1], options.epochs[:1], is_further=True)
    given = {"table": _path(Path(file)), "space": rest[0], "target": rest[1], "num_classes": networks.num_classes}
    return {**given, **{key: value for key, value in optional.items() if value is not None}}


def _images(options: CorrelateOptions, networks: TableNetworks) -> dict[str, Any]:
    """Noise by default, otherwise a subset of the images, because scores read only one batch."""
    size, num_classes = networks.image_size, networks.num_classes
    wanted = 2 * (options.batch_size or 0)
    if options.data is None or options.data == NOISE:
        more = {"max_images": wanted} if wanted > 320 else {}
        return {"source": NOISE, "image_size": size, "num_classes": num_classes, **more}
    source = options.data if options.data in BUILT_IN else absolute_path(options.data, Path.cwd())
    return {
        "source": source,
        "image_size": size,
        "resize": "crop",
        "max_images": max(_IMAGES_PER_CLASS * num_classes, wanted),
    }


def _path(file: Path) -> str:
    return absolute_path(str(file), Path.cwd())


def _name(spec: StudySpec, settings: Settings) -> str:
    """The study's name: the ground truth, and a digest of all settings and of the ground truth's content."""
    from orchestrator.stages.correlate import CorrelateStage
    from orchestrator.stages.truths import TRAINED_TARGET, truth_fingerprint
    from orchestrator.study.access import open_existing

    truths = [truth for stage in spec.stages for truth in stage.truths]
    with open_existing(settings) as store:
        content = [spec.digest, *(truth_fingerprint(truth, store) for truth in truths)]
    suffix = hashlib.sha256(" ".join(content).encode()).hexdigest()[:8]
    stem = truths[0].study or Path(truths[0].table or "").stem
    num_further = sum(len(stage.further) for stage in spec.stages if isinstance(stage, CorrelateStage))
    more = f"-and-{num_further}-more" if num_further else ""
    words = re.sub(r"[^a-z0-9._-]+", "-", f"{stem}-{truths[0].target or TRAINED_TARGET}{more}".lower()).lstrip("._-")
    return f"{words[:54].rstrip('-')}-{suffix}"
