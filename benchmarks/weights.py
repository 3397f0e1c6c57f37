"""What starting from weights gains: pretrain on 5 classes of CIFAR-10, then train on 300 images of the other 5.

`python -m benchmarks.weights --data FOLDER --json FILE` takes about 25 minutes on 2 cores, `--quick` one. FOLDER has
the parquet files of CIFAR-10; an interrupted run continues with the same command. For each seed, a model is pretrained
on 5 classes. Then the same topology and a smaller one (by weight selection) are trained on 300 images of the other
classes, from these weights and from random ones. Each way gets its better learning rate of two, chosen on validation
images, and is tested once on the test images of its classes.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks._machine import processor
from benchmarks._pairs import paired_difference
from benchmarks._timing import print_table
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import Configuration, DataConfig, InitialWeights, TrainTask
from trainers.data.images import ImageData, ImageSplit, channel_statistics, load_images, load_test_images
from trainers.models.building import build_model
from trainers.training.checkpoints import load_weights
from trainers.training.evaluation import Normalizer, evaluate
from trainers.training.loop import train
from trainers.training.reporting import SilentReporter
from trainers.weights.prepared import write_prepared
from trainers.weights.reading import SourceWeights

LARGE = "as-vit:4,4,3,1|4,2,3,2|2,2,3,2|2,1,3,1|32,16"
SMALL = "as-vit:4,4,2,1|4,2,2,1|2,2,2,1|2,1,2,1|32,8"
RATES = (5e-4, 2e-3)
CPU = torch.device("cpu")

BySeed = dict[str, float]
"""Test accuracy of each way, for one seed."""


@dataclass(frozen=True)
class Sizes:
    """How much is trained."""

    seeds: int = 5
    pretrain_images: int = 10_000
    pretrain_epochs: int = 12
    images: int = 300
    validation_images: int = 200
    epochs: int = 40


QUICK = Sizes(seeds=2, pretrain_images=500, pretrain_epochs=2, images=60, validation_images=50, epochs=3)


def some_classes(split: ImageSplit, classes: Sequence[int], count: int | None, seed: int) -> ImageSplit:
    """Images of some classes, which become classes 0, 1, ...; `count` of them, or all."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator)
    kept = order[torch.isin(split.labels[order], torch.tensor(classes))][:count]
    places = torch.full((max(classes) + 1,), -1)
    places[torch.tensor(classes)] = torch.arange(len(classes))
    return ImageSplit(images=split.images[kept], labels=places[split.labels[kept]])


def part_of(data: ImageData, classes: Sequence[int], count: int, num_validation: int, seed: int) -> ImageData:
    """A data set of some classes, with its own statistics."""
    chosen = some_classes(data.train, classes, count, seed)
    mean, std = channel_statistics(chosen.images)
    return replace(
        data,
        task=data.task.model_copy(update={"num_classes": len(classes)}),
        class_names=tuple(data.class_names[index] for index in classes),
        train=chosen,
        validation=some_classes(data.validation, classes, num_validation, seed),
        mean=mean,
        std=std,
    )


def trained(
    data: ImageData,
    config: DataConfig,
    topology: str,
    folder: Path,
    *,
    epochs: int,
    seed: int,
    rate: float,
    weights: InitialWeights | None = None,
) -> tuple[float, dict[str, torch.Tensor]]:
    """Validation accuracy and weights after training."""
    recipe = Recipe(learning_rate=rate, batch_size=32, augmentation=PluginChoice(name="flip-crop"))
    configuration = Configuration(
        data=config, topology=topology, recipe=recipe, epochs=epochs, seed=seed, weights=weights
    )
    outcome = train(TrainTask(configuration=configuration, folder=folder), data, SilentReporter(), CPU)
    assert outcome.state == "complete", outcome.reason
    return outcome.metrics["val_accuracy"], load_weights(outcome.checkpoints[-1].path)


def measure(
    data_folder: str, sizes: Sizes, *, known: Mapping[int, BySeed], save: Callable[[int, BySeed], None]
) -> dict[str, list[float]]:
    """Test accuracies of each way, one per seed. Seeds are measured in one process per core.

    Args:
        data_folder: The parquet files of CIFAR-10.
        sizes: How much is trained.
        known: Results of seeds that an earlier run has measured.
        save: Called with each seed and its results as soon as they are known.
    """
    started = time.perf_counter()
    load_images(_config(data_folder))  # decoded once for all processes
    by_seed = dict(known)
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        new = {
            pool.submit(measure_seed, data_folder, sizes, seed): seed
            for seed in range(sizes.seeds)
            if seed not in known
        }
        for done in as_completed(new):
            by_seed[new[done]] = done.result()
            save(new[done], done.result())
            print(f"{len(by_seed)} of {sizes.seeds} seeds: {time.perf_counter() - started:.0f} s", flush=True)
    return {name: [by_seed[seed][name] for seed in range(sizes.seeds)] for name in by_seed[0]}


def _config(data_folder: str) -> DataConfig:
    return DataConfig(source=data_folder, image_size=32, validation=0.1)


def measure_seed(data_folder: str, sizes: Sizes, seed: int) -> BySeed:
    """Test accuracy of each way for one seed, on one thread."""
    torch.set_num_threads(1)
    config = _config(data_folder)
    data, test = load_images(config), load_test_images(config)
    order = torch.randperm(data.task.num_classes, generator=torch.Generator().manual_seed(seed)).tolist()
    first, second = sorted(order[:5]), sorted(order[5:])
    before = part_of(data, first, sizes.pretrain_images, sizes.validation_images, seed)
    after = part_of(data, second, sizes.images, sizes.validation_images, seed)
    examined = some_classes(test, second, None, seed)
    found: BySeed = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _, pretrained = trained(
            before, config, LARGE, folder / "pretrained", epochs=sizes.pretrain_epochs, seed=seed, rate=2e-3
        )
        source = SourceWeights(
            source="pretrained",
            sha256=f"{seed:064d}",
            tensors=pretrained,
            topology=LARGE,
            task=before.task,
            class_names=before.class_names,
        )
        weights = write_prepared(folder, source)
        for name, topology in (("same topology", LARGE), ("smaller topology", SMALL)):
            for way, start in (("with", weights), ("without", None)):
                results = [
                    trained(
                        after,
                        config,
                        topology,
                        folder / f"{name}-{way}-{rate}",
                        epochs=sizes.epochs,
                        seed=seed,
                        rate=rate,
                        weights=start,
                    )
                    for rate in RATES
                ]
                _, state = max(results, key=lambda result: result[0])
                model = build_model(topology, after.task, seed=0, device=CPU)
                model.load_state_dict(state)
                normalizer = Normalizer(after.mean, after.std, CPU)
                found[f"{name}, {way}"] = evaluate(model, examined, normalizer).accuracy
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", metavar="FOLDER", help="CIFAR-10 as parquet files")
    parser.add_argument("--quick", action="store_true", help="a rehearsal with little training")
    parser.add_argument("--seeds", type=int, metavar="N", help="number of seeds, at least 2")
    parser.add_argument("--json", type=Path, metavar="FILE", help="save the results, and continue from them")
    options = parser.parse_args()
    if options.data is None:
        print("skipped: this benchmark needs the images of CIFAR-10: python -m benchmarks.weights --data FOLDER")
        return
    sizes = QUICK if options.quick else Sizes()
    sizes = replace(sizes, seeds=options.seeds or sizes.seeds)
    head = {"processor": processor(), "processes": os.cpu_count(), "load": os.getloadavg()[0]}
    print(f"{head['processor']}, {head['processes']} processes, load average {head['load']:.1f}")
    started = time.perf_counter()
    content: dict[str, Any] = {**head, "sizes": vars(sizes), "seeds": {}}
    if options.json and options.json.exists():
        earlier = json.loads(options.json.read_text())
        content["seeds"] = earlier["seeds"] if earlier["sizes"] == content["sizes"] else {}

    def save(seed: int, found: BySeed) -> None:
        content["seeds"][str(seed)] = found
        if options.json:
            options.json.write_text(json.dumps(content, indent=2))

    found = measure(options.data, sizes, known={int(seed): one for seed, one in content["seeds"].items()}, save=save)
    rows = []
    for name in ("same topology", "smaller topology"):
        with_it, without = found[f"{name}, with"], found[f"{name}, without"]
        difference = paired_difference(with_it, without)
        rows.append(
            {
                "model": name,
                "with weights, %": f"{100 * sum(with_it) / len(with_it):.1f}",
                "without, %": f"{100 * sum(without) / len(without):.1f}",
                "difference, points [95 %]": difference.text(scale=100),
            }
        )
    print_table(f"{sizes.images} images of 5 classes, {sizes.seeds} seeds: test accuracy", rows, medians=False)
    print(f"{time.perf_counter() - started:.0f} s in all")
    if options.json:
        options.json.write_text(json.dumps({**content, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
