"""What a training begins with: the model in its row, the training images, and the signals to measure."""

import torch

from plugins.protocols import LossInput, Signal, attends_to_image, needed_signals
from plugins.registry import create
from search_spaces.base import ImageTask
from search_spaces.ramps import Ramp, largest
from trainers.config import Configuration, TrainTask
from trainers.data.images import ImageData
from trainers.hardware.devices import derive_seed, fits_on
from trainers.models.building import build_model, topology_costs
from trainers.training.batch import TrainingImages
from trainers.training.companions import make_companions
from trainers.training.evaluation import Normalizer
from trainers.training.levels import LevelledRow
from trainers.training.loss_needs import inputs_of, reads_attention, smaller_problem, trains_two
from trainers.training.losses import initial_loss_state
from trainers.training.methods import Methods
from trainers.training.network import prepare_rates
from trainers.training.row import Row, pack_problem
from trainers.weights.fitting import load_initial
from trainers.weights.prepared import read_prepared


def make_row(configuration: Configuration, data: ImageData, device: torch.device) -> Row:
    """A newly initialised model, ready for training, with the weights that the configuration starts from.

    Raises:
        ValueError: The recipe does not fit the model, or its loss lacks what it reads.
        trainers.weights.errors.WeightsError: These weights cannot be read.
        UnsuitableRatesError: The recipe's rates do not suit the model or the optimizer.
    """
    recipe, task = configuration.recipe, data.task
    # Known blocks receive drop-path factors with each step; other models draw their own, at a fixed rate.
    rate = 0.0 if isinstance(recipe.drop_path, Ramp) else recipe.drop_path
    model = build_model(configuration.topology, task, seed=configuration.seed, device=device, drop_path=rate)
    rates = prepare_rates(model, recipe, configuration.topology, task)
    if configuration.weights is not None:
        load_initial(model, read_prepared(configuration.weights), configuration.topology, data.class_names)
    methods = Methods.of(recipe.curriculum)
    if methods.smaller is None:
        row = Row(model, recipe, rates)
    else:
        row = LevelledRow(
            model, recipe, rates, _make_smaller(configuration, methods, task, device, rate), methods.smaller
        )
    if row.num_blocks == 0 and isinstance(recipe.drop_path, Ramp):
        raise ValueError(
            f"recipe.drop_path may change during training only if the model has blocks (`plugins.protocols."
            f"TransformerBlock`), but {type(model).__name__} has none. Use a plain number."
        )
    if reads_attention(recipe.mixing) and not attends_to_image(model):
        raise ValueError(
            f"recipe.mixing `{recipe.mixing.name}` with labels by attention needs a model that tells which parts of an "
            f"image it attends to (`plugins.protocols.AttendsToImage`), but {configuration.topology} does not. With "
            "`merged_tokens`, tokens leave their places. Choose another topology, or labels by the area."
        )
    row.companions = make_companions(configuration, data, model, device)
    row.loss_state = initial_loss_state(recipe, len(data.train), task.num_classes, device)
    if isinstance(row, LevelledRow):
        row.small.companions, row.small.loss_state = row.companions, row.loss_state
    if trains_two(recipe.loss):
        row.peer = _make_peer(configuration, data, device, rate)
    problem = pack_problem(row) if LossInput.MATE in inputs_of(recipe.loss) else None
    if problem is not None:
        raise ValueError(f"recipe.loss `{recipe.loss.name}` trains two models as a pack: {problem}")
    return row


def _make_peer(configuration: Configuration, data: ImageData, device: torch.device, drop_path: float) -> Row:
    """A second model of the topology with other random weights, which is trained with the first."""
    recipe = configuration.recipe.model_copy(update={"ema": None, "swa": None})
    seed = derive_seed(configuration.seed, "peer")
    model = build_model(configuration.topology, data.task, seed=seed, device=device, drop_path=drop_path)
    peer = Row(model, recipe, prepare_rates(model, recipe, configuration.topology, data.task))
    peer.loss_state = initial_loss_state(recipe, len(data.train), data.task.num_classes, device)
    return peer


def _make_smaller(
    configuration: Configuration, methods: Methods, task: ImageTask, device: torch.device, drop_path: float
) -> Row:
    """The smaller network that a method of the recipe trains; its weights will be taken from the whole one.

    Raises:
        ValueError: The topology has no smaller form, or the loss trains two models.
    """
    problem = smaller_problem(configuration.recipe.loss, configuration.recipe.curriculum)
    if problem is not None:
        raise ValueError(problem)
    topology = methods.smaller_topology(configuration.topology)
    assert topology is not None
    recipe = configuration.recipe.model_copy(update={"ema": None, "swa": None})
    seed = derive_seed(configuration.seed, "smaller")
    model = build_model(topology, task, seed=seed, device=device, drop_path=drop_path)
    return Row(model, recipe, prepare_rates(model, recipe, topology, task))


def training_images(data: ImageData, device: torch.device) -> TrainingImages:
    """The training part, on a device if it fits there."""
    images = data.train.images
    return TrainingImages(
        images=images.to(device) if fits_on(device, images.numel()) else images,
        labels=data.train.labels.to(device),
        num_classes=data.task.num_classes,
        normalizer=Normalizer(data.mean, data.std, device),
        class_counts=data.train.labels.bincount(minlength=data.task.num_classes).float().to(device),
        digest=data.digest,
        true_labels=None if data.train.true_labels is None else data.train.true_labels.to(device),
    )


def wanted_signals(task: TrainTask) -> frozenset[Signal]:
    """Signals that a training must measure: those in the task, and those that its plug-ins read."""
    configuration = task.configuration
    plugins = [*Methods.of(configuration.recipe.curriculum).plugins]
    if configuration.stopping is not None:
        plugins.append(create("stopping", configuration.stopping.name, configuration.stopping.settings))
    read = [needed_signals(plugin) for plugin in plugins]
    return frozenset(task.signals).union(*read)


def step_macs(configuration: Configuration, task: ImageTask) -> float:
    """Multiply-accumulates of the most expensive step of a training."""
    return 3 * topology_costs(configuration.topology, task).macs * largest(configuration.recipe.batch_size)
