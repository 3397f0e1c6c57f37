"""Packed trainings: each equals the training alone, and none depends on how the others end."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from search_spaces.recipes import PluginChoice
from tests.rounding import difference_bound, likely_difference
from tests.unit.training import CPU, TOPOLOGY, Recorder, configuration, digits, run
from trainers import worker
from trainers.config import AverageTask, Configuration, EpochReport, PackedTrainTask, TaskOutcome, TrainTask
from trainers.models import building
from trainers.tasks.averaging import average
from trainers.training import packed, set_up
from trainers.training.checkpoints import OPTIMIZER, WEIGHTS, load_weights, read_manifest, read_tensors
from trainers.training.packed import train_packed
from trainers.training.packing import can_be_packed, is_tried_alone

RECIPES: tuple[dict[str, Any], ...] = (
    {},
    {
        "augmentation": "affine",
        "curriculum": "cyclical",
        "drop_path": 0.3,
        "label_smoothing": 0.1,
        "schedule": "linear",
    },
    {"curriculum": "paced", "augmentation": "shift", "gradient_clip": None, "learning_rate": 4e-3},
    {"weight_decay": 0.3, "warmup": 0.3, "gradient_clip": 0.1, "drop_path": 0.1},
)
"""Everything that the trainings of a pack may differ in. The sizes of their batches differ too, by their curricula."""

NUM_TERMS = 4 * 12 * 2 * 1600
"""On the way to the last weights: at most 4 epochs of 12 steps, each a pass forward and one back of 1,600 terms."""
IN_FLOAT64 = difference_bound(10 + 30, torch.float32)
"""Relative difference of losses in float64: they are reported in float32, over 10 classes and 30 images."""
IN_FLOAT32 = likely_difference(NUM_TERMS, torch.float32)
WEIGHTS_IN_FLOAT64 = 4e-3 * likely_difference(NUM_TERMS) / 1e-8
"""Absolute difference of weights; AdamW multiplies an error of a gradient that is 0 by the learning rate over 1e-8."""
TIMES = {"wall_time_s", "throughput_images_per_s"}


def configurations(*recipes: dict[str, Any], epochs: int = 3, **fields: Any) -> list[Configuration]:
    """One for each recipe, each with a seed of its own."""
    return [
        configuration(epochs=epochs, recipe={"batch_size": 24, **recipe}, **fields).model_copy(update={"seed": number})
        for number, recipe in enumerate(recipes)
    ]


def tasks_of(configs: Sequence[Configuration], folder: Path, *, keep: int = 1) -> list[TrainTask]:
    return [
        TrainTask(configuration=config, folder=folder / str(number), keep_checkpoints=keep)
        for number, config in enumerate(configs)
    ]


def pack(
    configs: Sequence[Configuration], folder: Path, reporters: Sequence[Recorder] | None = None, *, keep: int = 1
) -> tuple[TaskOutcome, ...]:
    """Train them together on the CPU."""
    tasks = tasks_of(configs, folder, keep=keep)
    return ordered(train_packed(tasks, digits(), reporters or [Recorder() for _ in tasks], CPU))


def ordered(ended: Iterator[tuple[int, TaskOutcome]]) -> tuple[TaskOutcome, ...]:
    """The outcomes by position; there must be one for each."""
    found = list(ended)
    outcomes = dict(found)
    assert len(outcomes) == len(found)
    return tuple(outcomes[position] for position in range(len(outcomes)))


Alone = Callable[[Configuration], tuple[TaskOutcome, list[EpochReport]]]


@pytest.fixture(scope="module")
def finished_alone() -> dict[tuple[str, str], tuple[TaskOutcome, list[EpochReport]]]:
    return {}


@pytest.fixture
def alone(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    finished_alone: dict[tuple[str, str], tuple[TaskOutcome, list[EpochReport]]],
) -> Alone:
    """Trains unpacked, each configuration once; three checkpoints are kept."""
    dtype = "float64" if "in_float64" in request.fixturenames else "float32"

    def train_alone(config: Configuration) -> tuple[TaskOutcome, list[EpochReport]]:
        key = (dtype, config.model_dump_json())
        if key not in finished_alone:
            recorder = Recorder()
            finished_alone[key] = run(config, tmp_path_factory.mktemp("alone"), recorder, keep=3), recorder.reports
        return finished_alone[key]

    return train_alone


def assert_same(found: TaskOutcome, expected: TaskOutcome, *, rel: float) -> None:
    """The outcomes are equal but for their times, and their weights and metrics up to rounding."""
    assert (found.state, found.error, found.reason) == (expected.state, expected.error, expected.reason)
    assert [record.epoch for record in found.checkpoints[-1:]] == [record.epoch for record in expected.checkpoints[-1:]]
    assert found.metrics.keys() == expected.metrics.keys()
    for name in found.metrics.keys() - TIMES:
        assert found.metrics[name] == pytest.approx(expected.metrics[name], rel=rel), name


def assert_same_weights(found: TaskOutcome, expected: TaskOutcome) -> None:
    """Every checkpoint that is left of the first has the weights of the other's."""
    weights = {record.epoch: record.path for record in expected.checkpoints}
    for record in found.checkpoints:
        assert_close(load_weights(record.path), load_weights(weights[record.epoch]), atol=WEIGHTS_IN_FLOAT64)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.fixture(params=[1, 8], ids=["apart", "stacked"])
def stacked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways in which a pack computes on a CPU."""
    monkeypatch.setattr(packed, "_STACKED_ON_CPU", request.param)
    return iter(())


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models compute in float64, so that a real difference is not hidden by rounding."""

    def build(*args: Any, **kwargs: Any) -> nn.Module:
        def widen(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
            wide = {key: value.double() if isinstance(value, Tensor) else value for key, value in kwargs.items()}
            return tuple(value.double() for value in args), wide

        model = building.build_model(*args, **kwargs).double()
        model.register_forward_pre_hook(widen, with_kwargs=True)
        return model

    monkeypatch.setattr(set_up, "build_model", build)


class StopsIn(Recorder):
    """Asks to stop before a batch of an epoch after the first, once the report before has arrived."""

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def should_stop(self) -> bool:
        return len(self.reports) == self.epoch - 1


# --- the same training ---


@pytest.mark.usefixtures("stacked", "in_float64")
def test_each_training_of_a_pack_is_the_one_that_it_is_alone(tmp_path: Path, alone: Alone) -> None:
    configs = configurations(*RECIPES)
    recorders = [Recorder() for _ in configs]
    outcomes = pack(configs, tmp_path, recorders, keep=3)
    for config, outcome, recorder in zip(configs, outcomes, recorders, strict=True):
        expected, reports = alone(config)
        assert len(outcome.checkpoints) == 3
        assert_same(outcome, expected, rel=IN_FLOAT64)
        assert_same_weights(outcome, expected)
        for mine, theirs in zip(recorder.reports, reports, strict=True):
            exact = {"epoch", "learning_rate", "num_images", "training_macs"}
            assert mine.model_dump(include=exact) == theirs.model_dump(include=exact)
            assert mine.train_loss == pytest.approx(theirs.train_loss, rel=likely_difference(NUM_TERMS))
            assert mine.val_loss == pytest.approx(theirs.val_loss, rel=IN_FLOAT64)


@pytest.mark.usefixtures("stacked")
def test_in_float32_results_are_the_same_up_to_rounding(tmp_path: Path, alone: Alone) -> None:
    configs = configurations(*RECIPES)
    for config, outcome in zip(configs, pack(configs, tmp_path), strict=True):
        assert_same(outcome, alone(config)[0], rel=IN_FLOAT32)


@pytest.mark.usefixtures("in_float64")
def test_threads_change_nothing(tmp_path: Path, alone: Alone) -> None:
    before = torch.get_num_threads()
    configs = configurations(*RECIPES)
    try:
        torch.set_num_threads(3)
        outcomes = pack(configs, tmp_path)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    for config, outcome in zip(configs, outcomes, strict=True):
        assert_same_weights(outcome, alone(config)[0])


@pytest.mark.usefixtures("stacked")
def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    pack(configurations(*RECIPES, epochs=1), tmp_path)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.usefixtures("in_float64")
def test_a_pack_goes_through_the_phases_of_progressive_tokenization(tmp_path: Path, alone: Alone) -> None:
    recipe = {"curriculum": {"name": "progressive-tokenization", "coarse": 0.25, "middle": 0.25}, "drop_path": 0.2}
    configs = configurations(recipe, {**recipe, "learning_rate": 1e-3}, epochs=4)
    pack(configs[:1], tmp_path, [StopsIn(3)])  # one is two epochs, and a phase, ahead
    for config, outcome in zip(configs, pack(configs, tmp_path), strict=True):
        assert_same(outcome, alone(config)[0], rel=IN_FLOAT64)
        assert_same_weights(outcome, alone(config)[0])


# --- checkpoints ---


def test_checkpoints_have_the_usual_form(tmp_path: Path) -> None:
    (config,) = configurations({})
    (outcome,) = pack([config], tmp_path / "pack")
    expected = run(config, tmp_path / "alone")
    for name in (WEIGHTS, OPTIMIZER):
        found, usual = (
            read_tensors(one.checkpoints[-1].path / name, read_manifest(one.checkpoints[-1].path).files[name])
            for one in (outcome, expected)
        )
        assert {key: (value.shape, value.dtype) for key, value in found.items()} == {
            key: (value.shape, value.dtype) for key, value in usual.items()
        }


@pytest.mark.usefixtures("in_float64")
@pytest.mark.parametrize("first", ["packed", "alone"])
def test_a_training_goes_on_alone_that_began_in_a_pack_and_the_other_way_round(
    tmp_path: Path, first: str, alone: Alone
) -> None:
    configs, reporters = configurations(*RECIPES[:3]), [StopsIn(2), StopsIn(3), StopsIn(2)]

    def train_apart(reporters: Sequence[Recorder]) -> list[TaskOutcome]:
        return [run(config, tmp_path / str(number), reporters[number]) for number, config in enumerate(configs)]

    on = [Recorder() for _ in configs]
    if first == "packed":
        begun, outcomes = pack(configs, tmp_path, reporters), train_apart(on)
    else:
        begun, outcomes = tuple(train_apart(reporters)), list(pack(configs, tmp_path, on))
    assert [outcome.reason for outcome in begun] == [f"asked to end in epoch {epoch} of 3" for epoch in (2, 3, 2)]
    for config, outcome in zip(configs, outcomes, strict=True):
        assert_same(outcome, alone(config)[0], rel=IN_FLOAT64)
        assert_same_weights(outcome, alone(config)[0])


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    configs = configurations({}, {"learning_rate": 1e-3})
    first = pack(configs, tmp_path)
    recorders = [Recorder(), Recorder()]
    assert pack(configs, tmp_path, recorders) == first
    assert [recorder.asked for recorder in recorders] == [0, 0]
    assert [len(recorder.reports) for recorder in recorders] == [3, 3]


def test_checkpoints_of_a_pack_are_averaged(tmp_path: Path) -> None:
    config = configurations({})[0]
    outcome = pack([config, *configurations({}, {"warmup": 0.5})[1:]], tmp_path, keep=3)[0]
    averaging = PluginChoice(name="last")
    paths = tuple(record.path for record in outcome.checkpoints)
    result = average(AverageTask(configuration=config, checkpoints=paths, averaging=averaging), digits(), CPU)
    assert len(paths) == 3
    assert result.metrics["val_loss"] == pytest.approx(outcome.metrics["val_loss"], rel=IN_FLOAT64)


# --- leaving the pack ---


@pytest.mark.usefixtures("stacked")
def test_each_training_ends_in_its_own_way_and_the_others_go_on(tmp_path: Path) -> None:
    patience = PluginChoice(name="patience", settings={"epochs": 1, "min_delta": 100})
    configs = configurations({}, {}, {"learning_rate": 1e30, "gradient_clip": None, "warmup": 0}, {}, epochs=4)
    configs[1] = configs[1].model_copy(update={"stopping": patience})
    reporters = [Recorder(), Recorder(), Recorder(), StopsIn(4)]
    told: list[tuple[int, int]] = []

    def train_pack() -> Iterator[tuple[int, TaskOutcome]]:
        for position, outcome in train_packed(tasks_of(configs, tmp_path / "pack"), digits(), reporters, CPU):
            told.append((position, len(reporters[0].reports)))
            yield position, outcome

    outcomes = ordered(train_pack())
    assert [outcome.state for outcome in outcomes] == ["complete", "stopped", "failed", "interrupted"]
    assert outcomes[2].error == "not-finite"
    assert [position for position, _ in told] == [2, 1, 3, 0]
    epochs = [epoch for _, epoch in told]  # how far the first had come; its last report may not be written yet
    assert all(
        least <= epoch <= most for epoch, (least, most) in zip(epochs, [(0, 0), (1, 2), (2, 3), (4, 4)], strict=True)
    )
    others = [Recorder(), Recorder(), Recorder(), StopsIn(4)]
    for number, (config, outcome) in enumerate(zip(configs, outcomes, strict=True)):
        assert outcome.details == {"pack_size": 4}
        assert_same(outcome, run(config, tmp_path / "alone" / str(number), others[number]), rel=IN_FLOAT32)


def test_a_reporter_that_raises_fails_its_own_training(tmp_path: Path) -> None:
    class Broken(Recorder):
        def report(self, report: EpochReport) -> None:
            raise OSError(f"no space left on device for epoch {report.epoch}")

    broken, good = pack(configurations({}, {}), tmp_path, [Broken(), Recorder()])
    assert (broken.state, broken.error) == ("failed", "exception")
    assert "no space left on device for epoch 1" in (broken.reason or "")
    assert good.state == "complete"


def test_a_folder_of_another_training_fails_its_own_training(tmp_path: Path) -> None:
    configs = configurations({}, {})
    run(configs[0].model_copy(update={"seed": 99}), tmp_path / "0")
    foreign, good = pack(configs, tmp_path)
    assert "belongs to another configuration" in (foreign.reason or "")
    assert good.state == "complete"


# --- memory ---


def limit_stacks(monkeypatch: pytest.MonkeyPatch, fits: Callable[[Sequence[Any]], bool]) -> list[int]:
    """Steps of stacks that do not fit run out of memory; the sizes of those that did."""
    learn, sizes = packed.learn, []

    def limited(batches: Sequence[Any], watch: Any) -> list[Tensor | Exception]:
        if not fits(batches):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        sizes.append(len(batches))
        return learn(batches, watch)

    monkeypatch.setattr(packed, "learn", limited)
    return sizes


def test_a_stack_that_does_not_fit_is_halved_until_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Alone
) -> None:
    sizes = limit_stacks(monkeypatch, lambda batches: len(batches) <= 2)
    configs = configurations(*RECIPES, {})
    outcomes = pack(configs, tmp_path)
    assert set(sizes) == {1, 2}
    for config, outcome in zip(configs, outcomes, strict=True):
        assert_same(outcome, alone(config)[0], rel=IN_FLOAT32)


def test_a_training_that_has_no_memory_even_alone_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_stacks(monkeypatch, lambda batches: all(batch.row.recipe.learning_rate < 1 for batch in batches))
    outcomes = pack(configurations({}, {"learning_rate": 2.0}, {}), tmp_path)
    assert [outcome.error for outcome in outcomes] == [None, "out-of-memory", None]
    assert [outcome.state for outcome in outcomes] == ["complete", "failed", "complete"]


@pytest.mark.usefixtures("one_thread")  # two threads would share the pack
def test_models_that_cannot_be_stacked_take_turns_and_the_log_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: Alone, caplog: pytest.LogCaptureFixture
) -> None:
    learn, sizes = packed.learn, []

    def limited(batches: Sequence[Any], watch: Any) -> list[Tensor | Exception]:
        sizes.append(len(batches))
        if len(batches) > 1:
            raise RuntimeError("no batching rule")
        return learn(batches, watch)

    monkeypatch.setattr(packed, "learn", limited)
    configs = configurations({}, {}, {})
    outcomes = pack(configs, tmp_path)
    assert sizes == [3] + [1] * (len(sizes) - 1)
    for config, outcome in zip(configs, outcomes, strict=True):
        assert_same(outcome, alone(config)[0], rel=IN_FLOAT32)
    (record,) = caplog.records
    assert "cannot be computed together, so they take turns: RuntimeError: no batching rule" in record.getMessage()


# --- what can be packed ---


def task(folder: str = "a", *, alone: bool = False, **changed: Any) -> TrainTask:
    configured = configuration(recipe=changed.pop("recipe", {})).model_copy(update=changed)
    return TrainTask(configuration=configured, folder=Path(folder), alone=alone)


PHASES = {"curriculum": {"name": "progressive-tokenization", "middle": 0.25}}


@pytest.mark.parametrize(
    "other",
    [
        {"recipe": RECIPES[1]},
        {"recipe": RECIPES[2]},
        {"recipe": RECIPES[3]},
        {"seed": 9},
        {"epochs": 99},
        {"stopping": PluginChoice(name="patience")},
    ],
)
def test_trainings_that_differ_in_numbers_can_be_packed(other: dict[str, Any]) -> None:
    assert can_be_packed(task(), task("b", **other)) is None


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"topology": TOPOLOGY.replace("16,4", "16,8")}, "their topologies differ"),
        ({"data": configuration().data.model_copy(update={"split_seed": 1})}, "their data differ"),
        ({"recipe": {"batch_size": 32}}, "their batch sizes differ: 16 and 32"),
        ({"recipe": PHASES}, "at different times"),
        ({"folder": "a"}, "both save their checkpoints in a"),
        ({"alone": True}, "one of them must be trained alone"),
    ],
)
def test_why_trainings_cannot_be_packed(other: dict[str, Any], why: str) -> None:
    second = task(**{"folder": "b", **other})
    assert why in (can_be_packed(task(), second) or "")
    assert can_be_packed(second, task()) is not None


def test_phases_can_be_packed_that_change_at_the_same_times() -> None:
    phased = task(recipe={**PHASES, "learning_rate": 1e-3})
    assert can_be_packed(phased, task("b", recipe=PHASES)) is None
    assert can_be_packed(phased, task("b", recipe=PHASES, epochs=9)) is not None


def test_tasks_that_cannot_be_packed_are_refused(tmp_path: Path) -> None:
    configs = configurations({}, {"batch_size": 32})
    with pytest.raises(ValueError, match="differ in numbers only, but their batch sizes differ: 24 and 32"):
        pack(configs, tmp_path)
    with pytest.raises(ValueError, match="one reporter per task, but got 1 tasks and 2 reporters"):
        pack(configs[:1], tmp_path, [Recorder(), Recorder()])


# --- the worker ---


def test_the_worker_trains_a_pack(tmp_path: Path) -> None:
    tasks = tuple(tasks_of(configurations({}, {"warmup": 0.3}, epochs=1), tmp_path))
    recorders = [Recorder(), Recorder()]
    outcomes = ordered(worker.run_packed(PackedTrainTask(tasks=tasks), recorders))
    assert [outcome.state for outcome in outcomes] == ["complete", "complete"]
    assert [len(recorder.reports) for recorder in recorders] == [1, 1]


def test_what_goes_wrong_with_the_data_is_the_outcome_of_all(tmp_path: Path) -> None:
    configs = configurations({}, {})
    data = configs[0].data.model_copy(update={"source": str(tmp_path / "nowhere")})
    tasks = tuple(tasks_of([config.model_copy(update={"data": data}) for config in configs], tmp_path))
    outcomes = ordered(worker.run_packed(PackedTrainTask(tasks=tasks), [Recorder(), Recorder()]))
    assert [outcome.error for outcome in outcomes] == ["exception", "exception"]
    assert [is_tried_alone(outcome) for outcome in outcomes] == [True, True]


def test_what_a_reporter_raises_is_no_outcome(tmp_path: Path) -> None:
    class Gone(Recorder):
        def report(self, report: EpochReport) -> None:
            raise LookupError(f"nobody waits for epoch {report.epoch}")

    tasks = tuple(tasks_of(configurations({}, {}, epochs=1), tmp_path))
    with pytest.raises(LookupError, match="nobody waits for epoch 1"):
        ordered(worker.run_packed(PackedTrainTask(tasks=tasks), [Recorder(), Gone()]))


def test_a_pack_that_nobody_waits_for_gives_its_threads_back(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        patience = PluginChoice(name="patience", settings={"epochs": 1, "min_delta": 100})
        first, second = configurations({}, {})
        tasks = tasks_of([first, second.model_copy(update={"stopping": patience})], tmp_path)
        reporters = [Recorder(), Recorder()]
        ended = train_packed(tasks, digits(), reporters, CPU)
        position, outcome = next(ended)
        assert (position, outcome.state, torch.get_num_threads()) == (1, "stopped", 3)
        ended.close()
        assert torch.get_num_threads() == 3
        assert len(reporters[0].reports) in (1, 2)  # the checkpoint of the second may not be written yet
    finally:
        torch.set_num_threads(before)


def test_what_others_may_be_to_blame_for_is_tried_alone() -> None:
    def failed(error: Any, pack_size: int | None) -> TaskOutcome:
        details = {} if pack_size is None else {"pack_size": pack_size}
        return TaskOutcome(state="failed", error=error, details=details)

    assert [is_tried_alone(failed("out-of-memory", size)) for size in (None, 1, 2)] == [False, False, True]
    assert [is_tried_alone(failed(error, 2)) for error in ("exception", "not-finite")] == [True, False]
    assert not is_tried_alone(TaskOutcome(state="complete", details={"pack_size": 2}))
