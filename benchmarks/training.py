"""Speed of trainings: against a plain PyTorch loop, in packs, and what checkpoints, signals and reports cost.

`python -m benchmarks.training` takes about ten minutes on two CPU cores, `--quick` two. The images are noise, so that
nothing is read. Ways that are compared run in turn in one process; the tables give medians and quartiles. `--device
cuda` needs torch, pydantic, numpy and safetensors only; what needs more is left out with a sentence. The share of the
peak counts the arithmetic of training and validation, in closed form, against a product of large matrices.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F

from benchmarks._machine import chosen_device, processor, product_tflops, trains_in, waiting_for
from benchmarks._timing import print_table, save_report
from plugins.protocols import Signal
from search_spaces.base import ImageTask
from search_spaces.ramps import largest
from search_spaces.recipes import Recipe
from trainers.config import Configuration, DataConfig, EpochReport, TrainTask
from trainers.data.images import ImageData, ImageSplit
from trainers.hardware.devices import autocast, cpu_threads, describe_device, describe_devices
from trainers.models.building import build_model, topology_costs
from trainers.training import checkpoints
from trainers.training.batch import Step, prepare
from trainers.training.course import Course
from trainers.training.learner import RowLearner
from trainers.training.loop import train
from trainers.training.packed import train_packed
from trainers.training.reporting import SilentReporter
from trainers.training.saving import CheckpointWriter, Saver, Snapshot
from trainers.training.set_up import make_row, step_macs, training_images
from trainers.training.signals import SignalMeter
from trainers.training.step import learn

SIZES = {
    "25 k": "as-vit:4,2,4,1|3,4,3,1|3,2,4,1|4,1,2,1|16,4",
    "372 k": "as-vit:4,2,4,1|3,4,3,1|3,2,4,1|4,1,2,1|16,16",
    "1.5 M": "as-vit:4,2,4,1|3,4,3,1|3,2,4,1|4,1,2,1|16,32",
    "23 M": "as-vit:4,2,4,1|3,4,3,1|3,2,4,1|4,1,2,1|16,128",
}
"""As-ViT topologies by their number of parameters."""
SMALL = ("25 k", "372 k", "1.5 M")
SECTIONS = ("plain", "packs", "checkpoints", "signals", "reports", "compile")
Row = dict[str, Any]


def main() -> None:
    options = _options()
    device = chosen_device(options.device)
    torch.set_num_threads(options.threads or describe_devices().cores)
    dtype = trains_in(device)
    report: dict[str, Any] = {
        "processor": processor(),
        "system": platform.system(),
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "precision": str(dtype).removeprefix("torch."),
        "peak_tflops": product_tflops(device, dtype),
        "load": os.getloadavg()[0],
        **{name: getattr(options, name) for name in ("images", "epochs", "batch_size", "repeats")},
    }
    print(
        f"{report['processor']}, torch {torch.__version__}, on {report['device']}, {report['threads']} threads, load "
        f"{report['load']:.1f} before the start; {options.repeats} runs of {options.epochs} epochs of {options.images} "
        f"images of 32 px, batch size {options.batch_size}; large products in {report['precision']}: "
        f"{report['peak_tflops']:.3g} TFLOP/s"
    )
    work: Mapping[str, tuple[str, Callable[[], Iterable[Row]]]] = {
        "plain": ("training against a plain loop", lambda: _against_plain(options, device, report["peak_tflops"])),
        "packs": ("packs of the smallest model against one after the other", lambda: _packs(options, device)),
        "checkpoints": ("time that training waits for a checkpoint", lambda: _stalls(options, device)),
        "signals": ("time with a signal against without", lambda: _signals(options, device)),
        "reports": ("reports of a study", lambda: _reports(options)),
        "compile": ("compiled against not compiled", lambda: _compiled(options, device)),
    }
    for name in options.sections:
        title, run = work[name]
        report[name] = []
        for row in run():
            report[name].append(row)
            save_report(options.json, report)
        if report[name]:
            print_table(title, report[name], medians=False)
    save_report(options.json, report)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="cpu, cuda or mps (the best one)")
    parser.add_argument("--threads", type=int, help="number of CPU threads (number of cores)")
    parser.add_argument("--images", type=int, default=2048, help="training images (2048), four times the validation's")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each training (2)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (64)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each way (7)")
    parser.add_argument("--quick", action="store_true", help="3 runs of one epoch of 512 images")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=[name for name in SECTIONS if name != "compile"],
        help="what to measure (all but compile, which takes minutes)",
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=SMALL, help="number of parameters (all but 23 M)")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    options = parser.parse_args()
    if options.quick:
        options.images, options.epochs, options.repeats = 512, 1, 3
    return options


# --- what is trained ---


def _data(options: argparse.Namespace) -> ImageData:
    """Noise with random labels."""
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> ImageSplit:
        return ImageSplit(
            images=torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator),
            labels=torch.randint(10, (count,), generator=generator),
        )

    return ImageData(
        name="noise",
        task=ImageTask(image_size=32, in_channels=3, num_classes=10),
        class_names=tuple(map(str, range(10))),
        mean=(0.5,) * 3,
        std=(0.3,) * 3,
        train=split(options.images),
        validation=split(options.images // 4),
        digest="",
    )


def _configuration(topology: str, options: argparse.Namespace, *, seed: int = 0) -> Configuration:
    return Configuration(
        data=DataConfig(source="noise"),
        topology=topology,
        recipe=Recipe(batch_size=options.batch_size, learning_rate=1e-3 * 1.2**seed),
        epochs=options.epochs,
        seed=seed,
    )


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _timed_train(
    topology: str, options: argparse.Namespace, device: torch.device, data: ImageData, **task: Any
) -> float:
    """Seconds of a training with validation, checkpoints and reports."""
    with _folder() as folder:
        given = TrainTask(configuration=_configuration(topology, options), folder=folder, **task)
        started = time.perf_counter()
        outcome = train(given, data, SilentReporter(), device)
        waiting_for(device)()
        elapsed = time.perf_counter() - started
    assert outcome.state == "complete", outcome.reason
    return elapsed


def _plain_loop(
    topology: str, options: argparse.Namespace, device: torch.device, data: ImageData, *, saves: bool = False
) -> float:
    """Seconds of the loop that one would write by hand: the same model, steps and validation.

    Args:
        saves: Whether it saves weights and optimizer with `torch.save` after each epoch, as ours can be continued.
    """
    configuration = _configuration(topology, options)
    with cpu_threads(step_macs(configuration, data.task)), _folder() as folder:
        started = time.perf_counter()
        loop = PlainLoop(configuration, device, data)
        for epoch in range(options.epochs):
            loop.learn()
            loop.validate()
            if saves:
                loop.save(folder / f"{epoch}.pt")
        return time.perf_counter() - started


class PlainLoop:
    """The loop that one would write by hand."""

    def __init__(
        self, configuration: Configuration, device: torch.device, data: ImageData, *, is_compiled: bool = False
    ) -> None:
        self._recipe, self._device, self._validation = configuration.recipe, device, data.validation
        self._model = build_model(configuration.topology, data.task, seed=0, device=device)
        self._forward: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(self._model) if is_compiled else self._model
        )
        self._images, self._labels = data.train.images.to(device), data.train.labels.to(device)
        self._mean = torch.tensor(data.mean, device=device).view(1, -1, 1, 1)
        self._std = torch.tensor(data.std, device=device).view(1, -1, 1, 1)
        named = list(self._model.named_parameters())
        decayed = [one for name, one in named if name.endswith("weight") and one.ndim >= 2]
        others = [one for name, one in named if not (name.endswith("weight") and one.ndim >= 2)]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=device.type != "mps")
        self._generator = torch.Generator().manual_seed(0)

    def learn(self) -> float:
        """Train for an epoch.

        Returns:
            Mean loss.
        """
        self._model.train()
        losses = []
        order = torch.randperm(len(self._images), generator=self._generator)
        for indices in torch.split(order, round(largest(self._recipe.batch_size))):
            batch = (self._images[indices.to(self._device)].float().div_(255) - self._mean) / self._std
            with autocast(self._device):
                logits = self._forward(batch)
            loss = F.cross_entropy(logits.float(), self._labels[indices.to(self._device)])
            self._optimizer.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._recipe.gradient_clip)  # type: ignore[arg-type]
            self._optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean().item()

    def validate(self) -> float:
        """Validation accuracy."""
        self._model.eval()
        hits, split = 0, self._validation
        with torch.inference_mode(), autocast(self._device):
            for images, labels in zip(torch.split(split.images, 512), torch.split(split.labels, 512), strict=True):
                logits = self._model((images.to(self._device).float().div_(255) - self._mean) / self._std)
                hits += int((logits.argmax(1) == labels.to(self._device)).sum())
        return hits / len(split)

    def save(self, file: Path) -> None:
        """Write weights and optimizer."""
        torch.save({"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}, file)


# --- sections ---


def _ratio(ways: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each way in `repeats` runs, in turn; which one begins alternates. Each runs once before, untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run()
    for repeat in range(repeats):
        for name in list(ways)[:: 1 if repeat % 2 == 0 else -1]:
            seconds[name].append(ways[name]())
    return seconds


def _quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.3g}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def _times_as_fast(seconds: Mapping[str, Sequence[float]], way: str, base: str) -> str:
    """Median and quartiles of the ratios of the pairs."""
    return _quartiles([slow / fast for slow, fast in zip(seconds[base], seconds[way], strict=True)])


def _against_plain(options: argparse.Namespace, device: torch.device, peak_tflops: float) -> Iterator[Row]:
    data = _data(options)
    for size in options.sizes:
        topology = SIZES[size]
        seconds = _ratio(
            {
                "ours": partial(_timed_train, topology, options, device, data),
                "plain": partial(_plain_loop, topology, options, device, data),
                "saving": partial(_plain_loop, topology, options, device, data, saves=True),
            },
            options.repeats,
        )
        num_images = options.images * options.epochs
        tflop = 2 * topology_costs(topology, data.task).macs * options.epochs / 1e12
        tflop *= 3 * len(data.train) + len(data.validation)
        yield {
            "parameters": size,
            "images/s": _quartiles([num_images / one for one in seconds["ours"]]),
            "plain images/s": _quartiles([num_images / one for one in seconds["plain"]]),
            "times as fast": _times_as_fast(seconds, "ours", "plain"),
            "as one that saves": _times_as_fast(seconds, "ours", "saving"),
            "of peak": f"{tflop / statistics.median(seconds['ours']) / peak_tflops:.2%}",
        }


def _packs(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    data, topology = _data(options), SIZES["25 k"]

    def tasks(folder: Path, count: int) -> list[TrainTask]:
        return [
            TrainTask(configuration=_configuration(topology, options, seed=number), folder=folder / str(number))
            for number in range(count)
        ]

    def timed(work: Callable[[list[TrainTask]], object], count: int) -> float:
        with _folder() as folder:
            started = time.perf_counter()
            work(tasks(folder, count))
            waiting_for(device)()
            return time.perf_counter() - started

    def packed(given: list[TrainTask]) -> None:
        outcomes = dict(train_packed(given, data, [SilentReporter() for _ in given], device))
        assert all(outcome.state == "complete" for outcome in outcomes.values())

    def apart(given: list[TrainTask]) -> None:
        for task in given:
            train(task, data, SilentReporter(), device)

    for count in (2, 4, 8):
        seconds = _ratio(
            {"packed": partial(timed, packed, count), "apart": partial(timed, apart, count)}, options.repeats
        )
        num_images = count * options.images * options.epochs
        yield {
            "trainings": count,
            "images/s": _quartiles([num_images / one for one in seconds["packed"]]),
            "apart images/s": _quartiles([num_images / one for one in seconds["apart"]]),
            "times as fast": _times_as_fast(seconds, "packed", "apart"),
        }


def _stalls(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    data = _data(options)
    epoch = -(-options.images // options.batch_size)
    for size in options.sizes:
        topology = SIZES[size]
        for every, number in ((f"epoch ({epoch} steps)", epoch), ("50 steps", 50)):
            count = 3 if options.quick else 8
            run = partial(_steps_with_checkpoints, topology, options, device, data, every=number, count=count)
            ways = {way: partial(run, way) for way in ("none", "synchronous", "background")}
            seconds = _ratio(ways, options.repeats)
            stalls = {
                way: [1000 * (one - bare) / count for one, bare in zip(seconds[way], seconds["none"], strict=True)]
                for way in ("synchronous", "background")
            }
            yield {
                "parameters": size,
                "a checkpoint per": every,
                "step, ms": _quartiles([1000 * one / (number * count) for one in seconds["none"]]),
                "synchronous, ms": _quartiles(stalls["synchronous"]),
                "background, ms": _quartiles(stalls["background"]),
            }


def _steps_with_checkpoints(
    topology: str,
    options: argparse.Namespace,
    device: torch.device,
    data: ImageData,
    way: str,
    *,
    every: int,
    count: int,
) -> float:
    """Seconds of `every * count` optimizer steps with a checkpoint after each `every` of them."""
    configuration = _configuration(topology, options)
    configuration = configuration.model_copy(
        update={"epochs": -(-every * count * options.batch_size // options.images)}
    )
    with _folder() as folder, cpu_threads(step_macs(configuration, data.task)), CheckpointWriter() as writer:
        row = make_row(configuration, data, device)
        course = Course.lay_out(configuration, data, row.model, device)
        source = training_images(data, device)
        learner = RowLearner(row, SignalMeter(frozenset(), row, data.validation, source, seed=0))
        saver = Saver(writer, SilentReporter())
        history: list[EpochReport] = []
        learn(prepare([row], [next(_all_steps(course))], source))
        waiting_for(device)()
        started = time.perf_counter()
        for number, step in enumerate(_all_steps(course), start=1):
            saver.poll()
            learn(prepare([row], [step], source))
            if number % every == 0 and way != "none":
                history.append(_report(len(history) + 1))
                write = partial(_write, folder, learner.snapshot(), tuple(history))
                if way == "background":
                    saver.save(write, history[-1])
                else:
                    write()
            if number == every * count:
                break
        waiting_for(device)()
        elapsed = time.perf_counter() - started
        saver.settle()
    return elapsed


def _all_steps(course: Course) -> Iterator[Step]:
    for epoch in range(1, course.num_epochs + 1):
        yield from course.steps(epoch, None, ())


def _write(folder: Path, state: Snapshot, history: tuple[EpochReport, ...]) -> None:
    state.wait()
    checkpoints.save(
        folder,
        weights=state.weights,
        optimizer=state.optimizer,
        history=history,
        configuration="0" * 64,
        keep=1,
    )


def _report(epoch: int) -> EpochReport:
    return EpochReport(
        epoch=epoch, train_loss=1.0, val_loss=1.0, val_accuracy=0.5, learning_rate=0.1, num_images=1, wall_time_s=1.0
    )


def _signals(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    data, topology = _data(options), SIZES["372 k"]
    ways = {"none": (), **{signal.value: (signal,) for signal in Signal}}
    seconds = _ratio(
        {
            name: partial(_timed_train, topology, options, device, data, signals=signals)
            for name, signals in ways.items()
        },
        options.repeats,
    )
    for name in ways:
        if name != "none":
            yield {"signal": name, "times as long": _times_as_fast(seconds, "none", name)}


def _reports(options: argparse.Namespace) -> Sequence[Row]:
    """Share of a study's training time that its process spends on reports: rows, MLflow's events, the display."""
    try:
        import vitsearch
        from orchestrator.stages.searching import StoringReporter
    except ImportError as error:
        print(f"\nreports are not measured, because {error.name} is not installed")
        return []
    taken = {"report": 0.0, "should_stop": 0.0}

    def timed(name: str) -> Callable[..., Any]:
        method = getattr(StoringReporter, name)

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                taken[name] += time.perf_counter() - started

        return call

    study = {
        "study": "reports",
        "seed": 0,
        "data": {"source": "digits"},
        "pool": "inline",
        "stages": [
            {
                "stage": "train",
                "topologies": [SIZES["25 k"]],
                "num_trials": 2,
                "epochs": 5,
                "recipe": {"batch_size": options.batch_size, "learning_rate": {"low": 1e-3, "high": 2e-3}},
            }
        ],
    }
    with (
        _folder() as home,
        patch.object(StoringReporter, "report", timed("report")),
        patch.object(StoringReporter, "should_stop", timed("should_stop")),
    ):
        run = vitsearch.run_study(study, home=home, tracking=True)
    trained = sum(float(trial.metrics["wall_time_s"]) for trial in run.trials())
    return [
        {
            "parameters": "25 k",
            "training, s": trained,
            "reports, s": taken["report"],
            "stop requests, s": taken["should_stop"],
            "share": f"{sum(taken.values()) / trained:.2%}",
        }
    ]


def _compiled(options: argparse.Namespace, device: torch.device) -> Iterator[Row]:
    """Without the time to compile, which the first epoch takes, and without validation."""
    data = _data(options)
    for size in options.sizes:
        yield {"parameters": size, **_compiled_steps(SIZES[size], options, device, data)}


def _compiled_steps(topology: str, options: argparse.Namespace, device: torch.device, data: ImageData) -> Row:
    from trainers.training.compiling import CompiledForward

    configuration = _configuration(topology, options)
    with cpu_threads(step_macs(configuration, data.task)):
        row = make_row(configuration, data, device)
        course = Course.lay_out(configuration, data, row.model, device)
        source = training_images(data, device)
        compiled = CompiledForward(row.model)

        def ours(forward: Callable[..., Any]) -> None:
            row.forward = forward
            for step in course.steps(1, None, ()):
                learn(prepare([row], [step], source))

        def timed(work: Callable[[], object]) -> float:
            started = time.perf_counter()
            work()
            waiting_for(device)()
            return time.perf_counter() - started

        ways: dict[str, Callable[[], object]] = {
            "ours": partial(ours, row.model),
            "ours compiled": partial(ours, compiled),
            "plain": PlainLoop(configuration, device, data).learn,
        }
        first = timed(ways["ours compiled"])
        if compiled.problem is None:  # otherwise, the plain loop would fail
            ways["plain compiled"] = PlainLoop(configuration, device, data, is_compiled=True).learn
        seconds = _ratio({way: partial(timed, work) for way, work in ways.items()}, options.repeats)
    rates = {f"{way}, images/s": _quartiles([len(data.train) / one for one in taken]) for way, taken in seconds.items()}
    against = "plain compiled" if "plain compiled" in ways else "plain"
    return {
        "first epoch, s": first,
        "times as fast": _times_as_fast(seconds, "ours compiled", "ours"),
        **rates,
        f"against {against}": _times_as_fast(seconds, "ours compiled", against),
        "problem": compiled.problem or "none",
    }


if __name__ == "__main__":
    main()
