"""Rules for every averaging method, and the behaviour of ours."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from plugins.averaging.arithmetic import weighted_sum
from plugins.averaging.class_groups import groups_by_loss, last_layer
from plugins.averaging.ema import ema_weights
from plugins.averaging.greedy_soup import greedy_soup
from plugins.averaging.lawa import average_latest
from plugins.averaging.lcsc import search_coefficients
from plugins.averaging.wsm import decay_weights
from plugins.protocols import Averager, Evaluated, EvaluatingAverager, PluginCard, StateDict
from plugins.registry import PluginSettingsError, available, create
from search_spaces.decay_forms import DecayForm
from search_spaces.recipes import PluginChoice
from tests.contracts.test_optimizers_in_training import TOPOLOGIES
from tests.rounding import rounded
from tests.unit.training import CPU, configuration, digits, run
from trainers.config import AverageTask, Configuration
from trainers.tasks.averaging import average as average_task

Averaging = Averager | EvaluatingAverager


def checkpoints_of(values: list[float], dtype: torch.dtype = torch.float32) -> list[dict[str, Tensor]]:
    return [{"weight": torch.full((2, 3), value, dtype=dtype), "steps": torch.tensor(int(value))} for value in values]


@pytest.fixture(params=list(available("averaging")))
def averager(request: pytest.FixtureRequest) -> Averaging:
    return create("averaging", request.param)


def all_alike(weights: StateDict) -> Evaluated:
    return Evaluated(loss=1.0, accuracy=0.5)


def average(averager: Averaging, checkpoints: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The average, where all state dicts are equally good for a method that evaluates them."""
    if isinstance(averager, EvaluatingAverager):
        return averager.average_by(checkpoints, all_alike)
    return averager.average(checkpoints)


def test_it_has_a_card(averager: Averaging) -> None:
    assert isinstance(averager.card, PluginCard)
    assert averager.card.source
    assert averager.card.cost


def test_it_reads_something_that_a_study_offers(averager: Averaging) -> None:
    assert getattr(averager, "reads", None) in (None, "ema", "swa", "best", "trials")


def test_it_gives_the_same_average_twice(averager: Averaging) -> None:
    def judge(weights: StateDict) -> Evaluated:
        distance = abs(weights["weight"][0, 0].item() - 7.3)
        return Evaluated(loss=distance, accuracy=1 / (1 + distance))

    found = []
    for _ in range(2):
        checkpoints = checkpoints_of([float(number) for number in range(12)])
        evaluates = isinstance(averager, EvaluatingAverager)
        result = averager.average_by(checkpoints, judge) if evaluates else averager.average(checkpoints)
        found.append(result["weight"])
    assert torch.equal(*found)


def test_inputs_are_left_unchanged(averager: Averaging) -> None:
    checkpoints = checkpoints_of([float(number) for number in range(12)])
    result = average(averager, checkpoints)
    result["weight"].add_(100)
    assert [checkpoint["weight"][0, 0].item() for checkpoint in checkpoints] == list(range(12))


def test_equal_checkpoints_average_to_themselves(averager: Averaging) -> None:
    checkpoints = checkpoints_of([3.7] * averager.num_needed)
    assert torch.equal(average(averager, checkpoints)["weight"], checkpoints[0]["weight"])


def test_the_average_lies_among_the_checkpoints(averager: Averaging) -> None:
    value = average(averager, checkpoints_of([float(number) for number in range(12)]))["weight"]
    assert 0 <= value.min() <= value.max() <= 11


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_kept_and_does_not_overflow(averager: Averaging, dtype: torch.dtype) -> None:
    checkpoints = checkpoints_of([40_000.0] * averager.num_needed, dtype)
    value = average(averager, checkpoints)["weight"]
    assert value.dtype == dtype
    assert torch.equal(value, checkpoints[-1]["weight"])


def test_counters_are_the_newests(averager: Averaging) -> None:
    steps = average(averager, checkpoints_of([float(number) for number in range(12)]))["steps"]
    assert steps.dtype == torch.int64
    assert steps.item() == 11


def test_older_checkpoints_than_needed_change_nothing(averager: Averaging) -> None:
    newest = checkpoints_of([float(number) for number in range(averager.num_needed)])
    older = checkpoints_of([500.0, 600.0])
    assert torch.equal(average(averager, older + newest)["weight"], average(averager, newest)["weight"])


def test_too_few_checkpoints_are_refused(averager: Averaging) -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        average(averager, checkpoints_of([1.0] * (averager.num_needed - 1)))


@pytest.mark.parametrize("name", [name for name in available("averaging") if create("averaging", name).num_needed > 1])
def test_checkpoints_of_different_models_are_refused(name: str) -> None:
    averager = create("averaging", name)
    checkpoints = checkpoints_of([1.0] * averager.num_needed)
    checkpoints[-2] = {"other": torch.zeros(2, 3)}
    with pytest.raises(ValueError, match="one model"):
        average(averager, checkpoints)


# --- checkpoints of trainings ---


SMALL: dict[str, dict[str, Any]] = {
    name: {"window": 2} for name in ("class-groups", "ema", "lawa", "greedy-soup", "lcsc", "uniform-soup", "wsm")
} | {"lcsc": {"window": 2, "evaluations": 5}}
"""Settings for three checkpoints."""


@pytest.fixture(scope="module", params=list(TOPOLOGIES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Configuration, Any]:
    """A training of a space with three checkpoints and maintained averages."""
    made = configuration(epochs=3, recipe={"batch_size": 45, "ema": 0.5, "swa": 0.1})
    config = made.model_copy(update={"topology": TOPOLOGIES[request.param]})
    outcome = run(config, tmp_path_factory.mktemp(request.param), keep=3)
    return config, tuple(record.path for record in outcome.checkpoints)


@pytest.mark.parametrize("name", list(available("averaging")))
def test_averages_of_checkpoints_can_be_evaluated_and_repeated(name: str, trained: tuple[Configuration, Any]) -> None:
    config, folders = trained
    choice = PluginChoice(name=name, settings=SMALL.get(name, {}))
    trials = folders if getattr(create("averaging", name, choice.settings), "reads", None) == "trials" else ()
    task = AverageTask(configuration=config, checkpoints=folders, averaging=choice, trials=trials)
    files = {path: path.read_bytes() for folder in folders for path in folder.iterdir()}
    first, second = (average_task(task, digits(), CPU) for _ in range(2))
    assert first == second
    assert math.isfinite(first.metrics["val_loss"])
    assert first.metrics["forward_passes"] >= 1
    assert files == {path: path.read_bytes() for folder in folders for path in folder.iterdir()}


# --- ours ---


def test_lawa_is_the_mean_of_the_newest() -> None:
    value = average_latest(checkpoints_of([100.0, 1.0, 2.0, 6.0]), window=3)["weight"]
    assert torch.equal(value, torch.full((2, 3), 3.0))


def test_lawa_counts_its_spacing_back_from_the_newest() -> None:
    value = average_latest(checkpoints_of([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), window=3, spacing=2)["weight"]
    assert torch.equal(value, torch.full((2, 3), 3.0))  # 1, 3 and 5


def test_lawa_refuses_to_reach_back_beyond_the_first_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"4 checkpoints saved, but got window=3, spacing=2, which span 5"):
        average_latest(checkpoints_of([1.0] * 4), window=3, spacing=2)


def test_ema_is_its_recursion() -> None:
    values = [4.0, 1.0, 3.0, 9.0, 2.0]
    expected = values[0]
    for value in values[1:]:
        expected = 0.7 * expected + 0.3 * value
    ema = create("averaging", "ema", {"decay": 0.7, "window": 5})
    assert ema.average(checkpoints_of(values))["weight"][0, 0].item() == rounded(expected, 5, torch.float32)


def test_ema_weights_add_up_to_one() -> None:
    assert sum(ema_weights(9, decay=0.8)) == rounded(1.0, 9)


def test_small_differences_survive_the_sum() -> None:
    tiny = 2.0**-20
    value = weighted_sum(checkpoints_of([1.0, 1.0 + tiny]), [0.5, 0.5])["weight"][0, 0].item()
    assert value == 1.0 + tiny / 2


@pytest.mark.parametrize("name", ["last", "trained-ema", "trained-swa"])
def test_the_newest_is_taken_as_it_is(name: str) -> None:
    checkpoints = checkpoints_of([4.0, 1.0, 3.0])
    found = create("averaging", name).average(checkpoints)
    assert torch.equal(found["weight"], checkpoints[-1]["weight"])


@pytest.mark.parametrize("reads", ["ema", "swa"])
def test_the_averages_of_training_are_read_by_their_name(reads: str) -> None:
    assert create("averaging", f"trained-{reads}").reads == reads


# --- greedy soup ---


class Judge:
    """Finds weights better the nearer their first number is to `best`, and keeps what it was asked."""

    def __init__(self, best: float, *, step: float = 0.0) -> None:
        self.best = best
        self.step = step
        """Accuracies are rounded down to multiples of it."""
        self.asked: list[float] = []

    def __call__(self, weights: StateDict) -> Evaluated:
        value = weights["weight"][0, 0].item()
        self.asked.append(value)
        distance = abs(value - self.best)
        accuracy = 1 / (1 + distance)
        return Evaluated(loss=distance, accuracy=accuracy // self.step * self.step if self.step else accuracy)


def test_a_soup_takes_the_best_first_and_what_does_not_make_it_worse() -> None:
    judge = Judge(2.0)
    soup, chosen = greedy_soup(checkpoints_of([9.0, 1.0, 2.5, 4.0]), judge)
    # 2.5 is best. With 1 it is 1.75, which is nearer to 2. Then 4 gives 2.5 and 9 gives 4.17: both are refused.
    assert chosen == [1, 2]
    assert soup["weight"][0, 0].item() == 1.75
    assert judge.asked == pytest.approx([9.0, 1.0, 2.5, 4.0, 1.75, 2.5, 12.5 / 3])


def test_a_soup_is_never_worse_than_the_best_checkpoint() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        values = (10 * torch.rand(6, generator=generator)).tolist()
        judge = Judge(5.0)
        soup, _ = greedy_soup(checkpoints_of(values), judge)
        assert judge(soup).accuracy >= max(judge(checkpoint).accuracy for checkpoint in checkpoints_of(values))


def test_between_equal_accuracies_the_loss_decides() -> None:
    judge = Judge(2.0, step=0.5)  # all of them have the accuracy 0.5
    assert greedy_soup(checkpoints_of([2.75, 2.5, 2.75]), judge)[1] == [1]
    assert greedy_soup(checkpoints_of([2.75, 2.5, 1.5]), judge)[1] == [1, 2]


def test_a_soup_counts_a_loss_that_is_not_finite_as_worst() -> None:
    def judge(weights: StateDict) -> Evaluated:
        value = weights["weight"][0, 0].item()
        return Evaluated(loss=float("nan") if value > 3 else value, accuracy=0.5)

    assert greedy_soup(checkpoints_of([5.0, 2.0, 9.0]), judge)[1] == [1]


def test_a_soup_considers_the_newest_of_its_window() -> None:
    judge = Judge(0.0)
    create("averaging", "greedy-soup", {"window": 2}).average_by(checkpoints_of([0.0, 3.0, 4.0]), judge)
    assert judge.asked == [3.0, 4.0, 3.5]


def test_a_soup_of_trials_reads_trials() -> None:
    assert create("averaging", "greedy-soup", {"across": "trials"}).reads == "trials"
    assert create("averaging", "greedy-soup").reads is None


def test_a_uniform_soup_is_the_mean_of_the_best_trials() -> None:
    soup = create("averaging", "uniform-soup", {"window": 2}).average(checkpoints_of([100.0, 1.0, 2.0]))
    assert soup["weight"][0, 0].item() == 1.5


# --- WSM ---


@pytest.mark.parametrize("form", ["linear", "cosine", "1-sqrt"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_wsm_gives_each_update_the_weight_of_the_decay(form: DecayForm, count: int) -> None:
    def decay(progress: float) -> float:
        falls = {"linear": 1 - progress, "cosine": math.cos(math.pi * progress / 2) ** 2, "1-sqrt": 1 - progress**0.5}
        return falls[form]

    # Weights after updates of sizes 1, 10, 100, ...: the mean has each update with the factor of its decay.
    updates = [10.0**number for number in range(count)]
    states = [sum(updates[: number + 1]) for number in range(count)]
    expected = sum(update * (decay(number / count) if number else 1.0) for number, update in enumerate(updates))
    found = sum(weight * state for weight, state in zip(decay_weights(count, form), states, strict=True))
    assert found == pytest.approx(expected, rel=1e-9)
    value = create("averaging", "wsm", {"window": count, "decay": form}).average(checkpoints_of([50.0, *states]))
    assert value["weight"][0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_wsm_with_a_linear_decay_is_lawa() -> None:
    states = checkpoints_of([4.0, 1.0, 3.0, 9.0, 2.0, 7.0])
    wsm = create("averaging", "wsm", {"window": 3, "spacing": 2, "decay": "linear"}).average(states)
    torch.testing.assert_close(wsm["weight"], average_latest(states, window=3, spacing=2)["weight"])


# --- LCSC ---


def search(target: list[float], **settings: int) -> tuple[list[float], list[list[float]]]:
    """The coefficients found if those nearest to `target` are best, and all that were tried."""
    asked: list[list[float]] = []

    def judge(coefficients: Sequence[float]) -> tuple[float, float]:
        asked.append(list(coefficients))
        return -math.dist(coefficients, target), 0.0

    given = {"num_evaluations": 300, "population": 6, "seed": 0, **settings}
    return search_coefficients(len(target), judge, deviation=0.1, **given), asked


def test_lcsc_finds_coefficients_outside_of_the_simplex() -> None:
    target = [0.5, -0.9, 1.4]
    found, asked = search(target)
    assert math.dist(found, target) < 0.1
    assert len(asked) == 300
    assert all(sum(coefficients) == pytest.approx(1.0) for coefficients in asked)
    assert found == search(target)[0]
    assert found != search(target, seed=1)[0]


def test_lcsc_begins_with_the_newest_the_mean_and_moving_averages_and_keeps_its_limit() -> None:
    _, asked = search([0.0, 0.0, 1.0], num_evaluations=4)
    assert asked[:2] == [[0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]]
    assert asked[2:] == [ema_weights(3, decay=0.5), ema_weights(3, decay=0.8)]
    assert len(search([0.0, 0.0, 1.0], num_evaluations=2)[1]) == 2


def test_lcsc_is_never_worse_than_the_newest_checkpoint_and_counts_its_evaluations() -> None:
    judge = Judge(3.1)
    settings = {"window": 3, "spacing": 2, "evaluations": 25}
    found = create("averaging", "lcsc", settings).average_by(checkpoints_of([9.0, 1.0, 5.0, 4.0, 7.0, 2.0]), judge)
    assert len(judge.asked) == 25
    assert judge.asked[0] == 2.0
    assert judge.asked[1] == pytest.approx(7 / 3)  # 1, 4 and 2
    assert abs(found["weight"][0, 0].item() - 3.1) == min(abs(asked - 3.1) for asked in judge.asked)


# --- class groups ---


def heads_of(rows: list[list[float]]) -> list[dict[str, Tensor]]:
    """Checkpoints, each with the rows of a last layer, and a body that counts them."""
    return [
        {
            "body.weight": torch.tensor([float(number)]),
            "head.0.weight": torch.tensor([[9.0, 9.0]]),
            "head.2.weight": torch.tensor(own)[:, None],
            "head.2.bias": torch.tensor(own),
        }
        for number, own in enumerate(rows)
    ]


def test_each_class_group_is_averaged_over_the_checkpoints_that_suit_it() -> None:
    """Class 0 is best in the newest checkpoint, class 1 as the mean of two, class 2 as the mean of three."""
    asked = []

    def judge(state: StateDict) -> Evaluated:
        rows = state["head.2.bias"].tolist()
        asked.append(rows)
        distances = [abs(row - target) for row, target in zip(rows, (6.0, 5.0, 2.0), strict=True)]
        return Evaluated(sum(distances), 1 / (1 + sum(distances)), class_losses={0: 9.0, 2: 1.0, 1: 5.0})

    checkpoints = heads_of([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0], [6.0, 6.0, 6.0]])
    found = create("averaging", "class-groups", {"window": 3, "groups": 3}).average_by(checkpoints, judge)
    assert found["head.2.bias"].tolist() == found["head.2.weight"].flatten().tolist() == [6.0, 5.0, 2.0]
    assert found["body.weight"].tolist() == [1.0]
    assert torch.equal(found["head.0.weight"], checkpoints[0]["head.0.weight"])
    assert len(asked) == 1 + 3 * 2
    assert asked[0] == pytest.approx([3.0, 10 / 3, 2.0])


def test_class_groups_are_of_about_equal_size_and_begin_with_the_hardest() -> None:
    losses = {0: 0.1, 1: 0.7, 3: 0.3, 4: 0.9, 7: 0.3}
    assert groups_by_loss(losses, 2) == [[4, 1], [3, 7, 0]]
    assert groups_by_loss(losses, 9) == [[4], [1], [3], [7], [0]]
    assert groups_by_loss({}, 3) == []


@pytest.mark.parametrize("modules", [("head",), ("head.0", "head.2"), ("head.2", "head.10")])
def test_the_last_layer_is_found_in_any_order_of_the_tensors(modules: tuple[str, ...]) -> None:
    names = [f"{module}.{kind}" for module in ("embed", *modules) for kind in ("weight", "bias")]
    expected = {f"{modules[-1]}.weight", f"{modules[-1]}.bias"}
    for order in itertools.permutations(names):
        assert set(last_layer({name: torch.zeros(1) for name in order})) == expected


def test_class_groups_need_a_last_layer_with_a_known_name() -> None:
    def judge(state: StateDict) -> Evaluated:
        return Evaluated(1.0, 0.5, class_losses={0: 1.0, 1: 2.0})

    with pytest.raises(ValueError, match="last layer is named `head`, but none of its tensors is"):
        create("averaging", "class-groups").average_by(checkpoints_of([1.0] * 5), judge)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("class-groups", {"groups": 0}),
        ("class-groups", {"window": 1}),
        ("wsm", {"decay": "step"}),
        ("lcsc", {"evaluations": 0}),
        ("lcsc", {"deviation": 0.0}),
        ("uniform-soup", {"window": 0}),
        ("trained-ema", {"rate": 1.0}),
        ("greedy-soup", {"across": "seeds"}),
        ("lawa", {"window": 0}),
        ("lawa", {"spacing": 0}),
        ("ema", {"decay": 1}),
        ("greedy-soup", {"window": 0}),
    ],
)
def test_settings_that_mean_nothing_are_refused(name: str, settings: dict[str, float | str]) -> None:
    with pytest.raises(PluginSettingsError, match=next(iter(settings))):
        create("averaging", name, settings)
