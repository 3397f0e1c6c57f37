"""Values of signals against the authors' formulas, written out in NumPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plugins.protocols import CLASS_SIGNALS, SIGNAL_COSTS, Signal, class_key, class_values
from search_spaces.recipes import Recipe
from tests.rounding import rounded
from trainers.data.images import ImageSplit
from trainers.hardware.devices import make_generator
from trainers.models.blocks import SelfAttention
from trainers.training.batch import TrainingImages
from trainers.training.block_signals import BlockWatch
from trainers.training.evaluation import Normalizer
from trainers.training.gradient_signals import GradientSample
from trainers.training.row import Row
from trainers.training.signal_arithmetic import effective_rank, evidence, largest_eigenvalue, neural_persistence
from trainers.training.signals import SignalMeter

NUM_CLASSES = 3
SEED = 11


class SoftmaxRegression(nn.Module):
    """Logits of four pixels: its gradients and its Hessian have closed forms."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.head = nn.Linear(4, NUM_CLASSES, dtype=dtype)
        generator = torch.Generator().manual_seed(2)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def forward_features(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.forward_features(images))
        return logits


def training_images(count: int = 40) -> TrainingImages:
    draws = np.random.default_rng(3)
    return TrainingImages(
        images=torch.from_numpy(draws.integers(0, 256, (count, 1, 2, 2), dtype=np.uint8)),
        labels=torch.from_numpy(draws.integers(0, NUM_CLASSES, count)),
        num_classes=NUM_CLASSES,
        normalizer=Normalizer((0.5,), (0.25,), torch.device("cpu")),
        class_counts=torch.ones(NUM_CLASSES),
        digest="",
    )


def numbers_of(model: SoftmaxRegression, training: TrainingImages) -> tuple[np.ndarray, ...]:
    """Inputs with a 1 (N, 5), probabilities and one-hot labels (N, classes)."""
    images = training.normalizer(training.images).double().flatten(1).numpy()
    logits = images @ model.head.weight.detach().double().numpy().T + model.head.bias.detach().double().numpy()
    shares = np.exp(logits - logits.max(1, keepdims=True))
    targets = np.eye(NUM_CLASSES)[training.labels.numpy()]
    return np.column_stack([images, np.ones(len(images))]), shares / shares.sum(1, keepdims=True), targets


def gradients_of(model: SoftmaxRegression, training: TrainingImages) -> np.ndarray:
    """Gradient of each image, (N, classes * 5)."""
    inputs, shares, targets = numbers_of(model, training)
    return np.einsum("nc,ni->nci", shares - targets, inputs).reshape(len(inputs), -1)


@pytest.fixture(scope="module")
def model() -> SoftmaxRegression:
    return SoftmaxRegression(torch.float64)


def measured(model: SoftmaxRegression, signal: Signal) -> float:
    sample = GradientSample(Row(model, Recipe()), training_images(), seed=SEED)
    return sample.measure(model, frozenset({signal}))[signal]


def test_the_evidence_is_that_of_mahsereci(model: SoftmaxRegression) -> None:
    gradients = gradients_of(model, training_images())
    count = len(gradients)
    ratios = gradients.mean(0) ** 2 / gradients.var(0, ddof=1)
    assert measured(model, Signal.EVIDENCE) == pytest.approx(1 - count * ratios.mean(), rel=1e-6)


def test_parameters_without_influence_are_no_evidence() -> None:
    gradients = torch.randn(20, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    rounding = 1e-9 * torch.randn(20, 2, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    both = torch.cat([gradients, rounding, torch.zeros(20, 1, dtype=torch.float64)], 1)
    found = [evidence(one.sum(0), one.square().sum(0), 20) for one in (gradients, both)]
    assert found[0] == pytest.approx(found[1], rel=1e-9)
    assert math.isnan(evidence(torch.zeros(3), torch.zeros(3), 20))


def test_the_disparity_is_the_mean_distance_between_gradients_of_scaled_losses(model: SoftmaxRegression) -> None:
    training = training_images()
    _, shares, targets = numbers_of(model, training)
    losses, each = -np.log((shares * targets).sum(1)), gradients_of(model, training)
    order = torch.randperm(40, generator=make_generator(SEED, "signal-images")).numpy()
    scaled = []
    for batch in order.reshape(5, 8):
        own, gradients = losses[batch], each[batch]
        mean, std = own.mean(), own.std(ddof=1)
        of_std = ((own - mean)[:, None] * gradients).sum(0) / (7 * std)
        scaled.append(gradients.mean(0) / std - mean * of_std / std**2)
    distances = [np.linalg.norm(one - other) for one, other in itertools.combinations(scaled, 2)]
    assert measured(model, Signal.GRADIENT_DISPARITY) == pytest.approx(np.mean(distances), rel=1e-6)


def test_the_sharpness_is_a_power_iteration_with_the_hessian(model: SoftmaxRegression) -> None:
    inputs, shares, _ = numbers_of(model, training_images())
    curvature = np.einsum("nc,cd->ncd", shares, np.eye(NUM_CLASSES)) - np.einsum("nc,nd->ncd", shares, shares)
    hessian = np.einsum("ncd,ni,nj->cidj", curvature, inputs, inputs).reshape(15, 15) / len(inputs)
    generator = make_generator(SEED, "power-iteration")
    weight, bias = torch.randn(NUM_CLASSES, 4, generator=generator), torch.randn(NUM_CLASSES, generator=generator)
    vector = torch.column_stack([weight, bias]).double().numpy().ravel()
    for _ in range(9):
        vector = hessian @ vector
    quotient = vector @ hessian @ vector / (vector @ vector)
    assert measured(model, Signal.SHARPNESS) == pytest.approx(quotient, rel=1e-6)
    assert quotient == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=0.02)


def test_a_power_iteration_finds_the_eigenvalue_of_largest_size() -> None:
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    matrix = root + root.T - 5 * torch.eye(6, dtype=torch.float64)
    values = torch.linalg.eigvalsh(matrix)
    found = largest_eigenvalue(lambda vector: matrix @ vector, torch.ones(6, dtype=torch.float64), num_products=200)
    assert found == pytest.approx(float(values[values.abs().argmax()]), rel=1e-6)
    assert largest_eigenvalue(torch.zeros_like, torch.ones(6), num_products=3) == 0


def kruskal(weights: np.ndarray) -> list[float]:
    """Edges of the maximum spanning tree of a bipartite graph."""
    rows, columns = weights.shape
    parent = list(range(rows + columns))

    def root(vertex: int) -> int:
        while parent[vertex] != vertex:
            vertex = parent[vertex]
        return vertex

    chosen = []
    for weight, row, column in sorted(
        ((weights[i, j], i, j) for i in range(rows) for j in range(columns)), reverse=True
    ):
        one, other = root(row), root(rows + column)
        if one != other:
            parent[one] = other
            chosen.append(float(weight))
    return chosen


def test_the_neural_persistence_is_that_of_rieck() -> None:
    draws = np.random.default_rng(6)
    matrices = [draws.normal(size=(4, 7)), draws.normal(size=(5, 2)) / 3]
    matrices[1][0, :] = 0.0  # an unconnected vertex is joined by an edge of weight 0
    largest = max(np.abs(matrix).max() for matrix in matrices)
    values = []
    for matrix in matrices:
        tree = kruskal(np.abs(matrix) / largest)
        assert len(tree) == sum(matrix.shape) - 1
        values.append(math.sqrt(sum((1 - weight) ** 2 for weight in tree)) / math.sqrt(len(tree)))
    assert neural_persistence([torch.from_numpy(matrix) for matrix in matrices]) == pytest.approx(np.mean(values))


def test_the_neural_persistence_of_equal_weights_is_0_and_that_of_no_weights_undefined() -> None:
    assert neural_persistence([torch.ones(3, 5)]) == pytest.approx(0, abs=1e-12)
    assert math.isnan(neural_persistence([torch.zeros(3, 5)]))


def test_the_effective_rank_counts_directions() -> None:
    square = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    assert effective_rank(square) == pytest.approx(6)
    assert effective_rank(square[:, :1] @ square[:1]) == pytest.approx(1)
    sizes = np.array([4.0, 2.0, 1.0])
    shares = sizes / sizes.sum()
    expected = math.exp(-(shares * np.log(shares)).sum())
    assert effective_rank(square[:, :3] * torch.from_numpy(sizes)) == pytest.approx(expected, rel=1e-9)


def test_a_dormant_unit_is_quiet_compared_with_its_layer() -> None:
    watch = BlockWatch()
    watch.on_sums(0, torch.tensor([[1.0, -1.0, 0.01, 0.0], [1.0, 1.0, -0.01, 0.0]]))
    watch.on_sums(1, torch.full((2, 4), 1e-6))  # quiet, but all equally
    assert watch.signals() == {Signal.DORMANT_UNITS: 2 / 8}


# --- the meter ---


def meter_of(model: SoftmaxRegression, *wanted: Signal) -> SignalMeter:
    training = training_images()
    validation = ImageSplit(images=training.images[:12], labels=training.labels[:12])
    return SignalMeter(frozenset(wanted), Row(model, Recipe()), validation, training, seed=SEED)


def test_the_training_part_gives_accuracies_and_changes() -> None:
    model = SoftmaxRegression(torch.float32)
    meter = meter_of(model, Signal.TRAINING_ACCURACY, Signal.CHANGED_TRAINING_PREDICTIONS, *CLASS_SIGNALS)
    meter.begin()
    before = numbers_of(model, training_images())[1].argmax(1)
    with torch.no_grad():
        model.head.weight.mul_(-1)
    found, labels = meter.measure(), training_images().labels.numpy()
    after = numbers_of(model, training_images())[1].argmax(1)
    assert found["changed_training_predictions"] == (before != after).mean() > 0
    assert found["training_accuracy"] == (after == labels).mean()
    of_classes = class_values(found, Signal.CLASS_TRAINING_ACCURACY)
    assert of_classes == {number: (after == labels)[labels == number].mean() for number in range(NUM_CLASSES)}
    assert meter.measure()["changed_training_predictions"] == 0


def test_the_norm_and_the_noise_of_gradients_are_those_of_their_formulas() -> None:
    """E|g| and E|g|^2 / |E g|^2 - 1 over the steps of an epoch."""
    model = SoftmaxRegression(torch.float32)
    meter = meter_of(model, Signal.GRADIENT_NORM, Signal.GRADIENT_NOISE)
    row_size = meter._row.layout.num_numbers
    for epoch in range(2):
        meter.begin()
        gradients = np.random.default_rng(epoch).normal(0.3, 1.0, (5, row_size)).astype(np.float32)
        for gradient in gradients:
            meter.take(torch.from_numpy(gradient))
        wide = gradients.astype(np.float64)
        norms = np.linalg.norm(wide, axis=1)
        noise = (norms**2).mean() / (wide.mean(0) ** 2).sum() - 1
        assert meter.measure() == pytest.approx({"gradient_norm": norms.mean(), "gradient_noise": noise}, rel=1e-6)


def test_the_weight_persistence_is_the_cosine_between_changes() -> None:
    model = SoftmaxRegression(torch.float32)
    meter = meter_of(model, Signal.WEIGHT_PERSISTENCE)
    meter.begin()
    draws = np.random.default_rng(4).normal(size=(3, 15))
    found = []
    for change in draws:
        with torch.no_grad():
            model.head.weight.add_(torch.from_numpy(change[:12].reshape(NUM_CLASSES, 4)).float())
            model.head.bias.add_(torch.from_numpy(change[12:]).float())
        found.append(meter.measure())
    cosines = [one @ other / np.linalg.norm(one) / np.linalg.norm(other) for one, other in itertools.pairwise(draws)]
    assert found == [{}, *({"weight_persistence": pytest.approx(value, abs=1e-6)} for value in cosines)]


def test_changed_predictions_are_counted_on_the_validation_part() -> None:
    model = SoftmaxRegression(torch.float32)
    meter = meter_of(model, Signal.CHANGED_PREDICTIONS)
    meter.begin()
    before = numbers_of(model, training_images())[1][:12].argmax(1)
    with torch.no_grad():
        model.head.weight.mul_(-1)
    after = numbers_of(model, training_images())[1][:12].argmax(1)
    assert meter.measure() == {"changed_predictions": (before != after).mean()}
    assert meter.measure() == {"changed_predictions": 0.0}


# --- blocks ---


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_the_signals_of_attention_are_those_of_its_weights_and_logits() -> None:
    draws = np.random.default_rng(12)
    attention = SelfAttention(6, heads=2, head_width=5).double().requires_grad_(False)
    arrays = {name: draws.normal(size=value.shape) for name, value in attention.state_dict().items()}
    attention.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    watch, entropies, largest = BlockWatch(), [], 0.0
    for tokens in draws.normal(size=(2, 3, 4, 6)):  # two batches of three images with four tokens
        watch.on_attention(attention, torch.from_numpy(tokens))
        watch.on_logits(attention, torch.from_numpy(tokens))
        projected = tokens @ arrays["qkv.weight"].T + arrays["qkv.bias"]
        query, key, _ = projected.reshape(3, 4, 3, 2, 5).transpose(2, 0, 3, 1, 4)
        logits = query @ key.swapaxes(-1, -2) / math.sqrt(5)
        weights = softmax(logits)
        entropies.append(-(weights * np.log(weights)).sum(-1).mean() / math.log(4))
        largest = max(largest, np.abs(logits).max())
    expected = {Signal.ATTENTION_ENTROPY: np.mean(entropies), Signal.ATTENTION_LOGIT: largest}
    assert watch.signals() == pytest.approx(expected, rel=1e-6)


def test_a_dead_unit_is_quiet_for_every_image() -> None:
    watch = BlockWatch()
    watch.on_peaks(0, torch.tensor([[0.009, -0.5, 0.0]]))
    watch.on_peaks(0, torch.tensor([[-0.009, 0.0, 0.02]]))
    watch.on_peaks(1, torch.tensor([[0.0, 1.0, 1.0]]))
    assert watch.signals() == {Signal.DEAD_UNITS: 2 / 6}


def test_log_z_is_the_mean_normaliser_of_the_validation_part() -> None:
    model = SoftmaxRegression(torch.float32)
    meter = meter_of(model, Signal.LOG_Z)
    meter.begin()
    logits = model(training_images().normalizer(training_images().images[:12])).detach().double().numpy()
    expected = np.log(np.exp(logits).sum(1)).mean()
    assert meter.measure() == {"log_z": rounded(expected, 4 + 12, torch.float32)}


def test_the_layer_change_is_relative_to_the_weights_before() -> None:
    model = SoftmaxRegression(torch.float32)
    meter = meter_of(model, Signal.LAYER_CHANGE)
    meter.begin()
    with torch.no_grad():
        model.head.weight.mul_(1.5)
        model.head.bias.add_(7)  # biases are no weight matrices
    assert meter.measure() == {"layer_change": pytest.approx(0.5, rel=1e-5)}
    assert meter.measure() == {"layer_change": 0.0}


def test_the_rank_needs_a_model_with_features() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, NUM_CLASSES))
    with pytest.raises(ValueError, match="effective_rank needs a model with `forward_features"):
        meter_of(plain, Signal.EFFECTIVE_RANK)  # type: ignore[arg-type]


def test_every_signal_has_a_cost() -> None:
    assert set(SIGNAL_COSTS) == set(Signal)


def test_values_of_classes_are_read_by_class() -> None:
    key = class_key(Signal.CLASS_TRAINING_ACCURACY, 10)
    recorded = {key: 0.5, "class_training_accuracy.2": 0.25, "training_accuracy": 1.0}
    assert class_values(recorded, Signal.CLASS_TRAINING_ACCURACY) == {10: 0.5, 2: 0.25}
