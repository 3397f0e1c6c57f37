"""Measures the difficulty of the training images by short separate trainings, and keeps it on disk.

Each of them has a file in the cache folder. Its name is made from the images, the model and the length of the
training, so all later trainings and studies with the same images share it. A training also keeps the difficulties that
it uses in its own folder, so that it continues with the same numbers wherever it is resumed.

Legend: `N` training images, `P` numbers of a model.
"""

import contextlib
import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from torch.func import grad, vmap

from plugins.protocols import PriorDifficulty
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import Configuration
from trainers.data.cache_settings import cache_settings
from trainers.data.images import ImageData
from trainers.data.mapping import batches
from trainers.hardware.devices import computing_in, cpu_threads
from trainers.models.blocks import unfused_attention
from trainers.models.building import build_model, topology_costs
from trainers.storage.artifacts import fetched, published
from trainers.training.batch import TrainingImages, prepare
from trainers.training.course import Course
from trainers.training.evaluation import Normalizer, example_losses, logits_of
from trainers.training.losses import NotFiniteError
from trainers.training.row import Row
from trainers.training.step import learn

_VERSION = 1
"""Version of the measurement. Raise it if the same images and settings give other numbers than before."""
_FOLDER = "difficulties"
_NUMBERS_AT_ONCE = 1 << 23
"""Largest number of gradients' numbers to compute at once for the gradient norms of single images: 32 MiB."""
_RECIPE = Recipe(schedule=PluginChoice(name="constant"))
"""Recipe of the trainings that measure a difficulty: the defaults without decay, since they end early."""

_logger = logging.getLogger(__name__)


class StoppedError(Exception):
    """The training was asked to stop while a difficulty was measured."""


def measure_prior_difficulty(
    needed: PriorDifficulty,
    configuration: Configuration,
    data: ImageData,
    source: TrainingImages,
    *,
    folder: Path,
    should_stop: Callable[[], bool],
) -> Tensor:
    """The difficulty of each training image, shape (N,), float64, on the CPU; read from disk if it was measured before.

    Args:
        needed: The difficulty.
        configuration: The training that uses it. Its topology is used if `needed` names none; its recipe and seed do
            not matter.
        data: The data of the training.
        source: The same training images, on the device.
        folder: Folder of the training.
        should_stop: Called between steps, and while another process measures the same.

    Raises:
        StoppedError: `should_stop` returned true. What was measured so far is kept.
        NotFiniteError: The difficulty is not finite.
    """
    topology = needed.topology or configuration.topology
    device = source.normalizer.mean.device
    keys = [_key(needed.kind, topology, needed.epochs, run, data, device) for run in range(needed.runs)]
    own = folder / f"difficulty-{hashlib.sha256(''.join(keys).encode()).hexdigest()[:16]}.safetensors"
    with contextlib.suppress(OSError):
        fetched(own)
    known = _read(own, len(data.train))
    if known is not None:
        return known
    measured = []
    for run, key in enumerate(keys):
        configured = Configuration(
            data=configuration.data, topology=topology, recipe=_RECIPE, epochs=needed.epochs, seed=run
        )
        measured.append(_kept(key, configured, needed.kind, data, source, should_stop))
    mean = torch.stack(measured).mean(0)
    _write(own, mean)
    with contextlib.suppress(OSError):
        published(own)
    return mean


def _kept(
    key: str,
    configuration: Configuration,
    kind: str,
    data: ImageData,
    source: TrainingImages,
    should_stop: Callable[[], bool],
) -> Tensor:
    """The difficulty by one training, from the cache or measured; one process measures, and others wait for it."""
    settings = cache_settings()
    if not settings.max_bytes:
        return _measure(configuration, kind, data, source, should_stop)
    file = settings.folder / _FOLDER / f"{key}.safetensors"
    with _locked(file, should_stop):
        known = _read(file, len(data.train))
        if known is None:
            known = _measure(configuration, kind, data, source, should_stop)
            _write(file, known)
        return known


def _measure(
    configuration: Configuration,
    kind: str,
    data: ImageData,
    source: TrainingImages,
    should_stop: Callable[[], bool],
) -> Tensor:
    """Train one model and measure the difficulty of each image, (N,)."""
    started = time.perf_counter()
    device = source.normalizer.mean.device
    macs = topology_costs(configuration.topology, data.task).macs
    with cpu_threads(3 * macs * 64), computing_in("auto"):  # kept values must not depend on who measures them
        model = build_model(configuration.topology, data.task, seed=configuration.seed, device=device, drop_path=0.0)
        row = Row(model, configuration.recipe)
        course = Course.lay_out(configuration, data, model, device)
        for epoch in range(1, configuration.epochs + 1):
            for step in course.steps(epoch, None, ()):
                if should_stop():
                    raise StoppedError
                (answer,) = learn(prepare([row], [step], source))
                if isinstance(answer, Exception):
                    raise answer
        values = _difficulty(kind, row, data, source.normalizer, should_stop).double()
    if not torch.all(values.isfinite()):
        raise NotFiniteError(
            f"the difficulty {kind} of the training images must be finite, but a training of {configuration.topology} "
            f"over {configuration.epochs} epochs diverged. Choose another `difficulty_topology` or fewer epochs."
        )
    _logger.info(
        "Measured the difficulty %s of %d images with seed %d of %s: %.1f s.",
        *(kind, len(values), configuration.seed, configuration.topology, time.perf_counter() - started),
    )
    return values


def _difficulty(
    kind: str, row: Row, data: ImageData, normalizer: Normalizer, should_stop: Callable[[], bool]
) -> Tensor:
    with row.evaluated() as model:
        if kind == "trained-loss":
            return example_losses(model, data.train, normalizer)
        if kind == "el2n":
            logits = torch.cat(list(logits_of(model, data.train.images, normalizer)))
            return error_norms(logits.cpu().double(), data.train.labels.cpu())
        model.eval()
        return gradient_norms(row, data, normalizer, should_stop)


def error_norms(logits: Tensor, labels: Tensor) -> Tensor:
    """EL2N of each image, `||softmax(logits) - one_hot(label)||_2`, shape (N,), from logits (N, classes).

    Source: Paul et al. 2021, arXiv:2107.07075.
    """
    errors = logits.softmax(1) - F.one_hot(labels, logits.shape[1])
    norms: Tensor = torch.linalg.vector_norm(errors, dim=1)
    return norms


def gradient_norms(
    row: Row, data: ImageData, normalizer: Normalizer, should_stop: Callable[[], bool] = lambda: False
) -> Tensor:
    """GraNd of each training image, the norm of the gradient of its cross-entropy, shape (N,), float64, on the CPU.

    Raises:
        StoppedError: `should_stop`, which is called between batches, returned true.

    Source: Paul et al. 2021, arXiv:2107.07075.
    """
    parameters = [parameter.detach() for parameter in row.parameters()]

    def loss(values: list[Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(row.call(values, image[None]).float(), label[None])

    def squared_norm(image: Tensor, label: Tensor) -> Tensor:
        gradients = grad(loss)(parameters, image, label)
        return torch.stack([gradient.square().sum() for gradient in gradients]).sum()

    device = normalizer.mean.device
    at_once = max(1, _NUMBERS_AT_ONCE // row.layout.num_numbers)
    found = []
    labels = torch.split(data.train.labels, at_once)
    with unfused_attention():
        for images, own in zip(batches(data.train.images, at_once), labels, strict=True):
            if should_stop():
                raise StoppedError
            squares = vmap(squared_norm)(normalizer(images.to(device)), own.to(device))
            found.append(squares.cpu().double().sqrt())
    return torch.cat(found)


def _key(kind: str, topology: str, epochs: int, run: int, data: ImageData, device: torch.device) -> str:
    """Name of a measurement by one training: equal for equal images, model and training."""
    labels = hashlib.sha256(data.train.labels.cpu().numpy().tobytes()).hexdigest()
    facts = [_VERSION, kind, topology, epochs, run, data.digest, labels, data.task.image_size, device.type]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


@contextmanager
def _locked(file: Path, should_stop: Callable[[], bool]) -> Iterator[None]:
    """Hold the lock of a file inside the context. Without a folder that can be written, there is no lock."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        while True:
            try:
                lock.acquire(timeout=0.5)
                break
            except Timeout:
                if should_stop():
                    raise StoppedError from None
    except (OSError, NotImplementedError) as error:  # the latter: the file system has no locks
        _logger.warning("Difficulties of images are not kept for other trainings: %s: %s.", file.parent, error)
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(file: Path, num_images: int) -> Tensor | None:
    """Difficulties in a file; `None` if it is missing or damaged."""
    try:
        values = load(file.read_bytes())["difficulty"]
    except (OSError, SafetensorError, KeyError):
        return None
    return values if values.shape == (num_images,) else None


def _write(file: Path, values: Tensor) -> None:
    """Write a file atomically, if its folder can be written."""
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=".difficulty-", delete=False) as new:
            new.write(save({"difficulty": values.contiguous()}))
        Path(new.name).replace(file)
