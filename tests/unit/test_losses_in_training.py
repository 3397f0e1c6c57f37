"""Losses inside trainings: what they read, their state in checkpoints, packs, and the costs that they add."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.losses.cross_split import label_divergence
from plugins.protocols import LossInput, StatefulLoss, can_pack
from plugins.registry import available, create
from search_spaces.recipes import PluginChoice, Recipe
from tests.unit.test_loop import InterruptedInside, equal, weights_of, without_time
from tests.unit.training import CPU, TOPOLOGY, Recorder, configuration, digits, run
from trainers.config import Configuration, InitialWeights, TrainTask
from trainers.models.building import build_model, topology_costs
from trainers.tasks.dry_run import dry_run
from trainers.training import companions
from trainers.training import step as step_module
from trainers.training.batch import prepare
from trainers.training.batch_loss import loss_of
from trainers.training.checkpoints import OPTIMIZER, configuration_digest, read_manifest, read_tensors
from trainers.training.companions import Teacher, has_fixed_images, load_teacher
from trainers.training.continuing import reason_to_retrain
from trainers.training.course import Course
from trainers.training.evaluation import Normalizer, evaluate, logits_of
from trainers.training.loss_needs import inputs_of
from trainers.training.packed import train_packed
from trainers.training.packing import can_be_packed
from trainers.training.set_up import make_row, training_images
from trainers.training.step import learn
from trainers.weights.errors import WeightsError
from trainers.weights.prepared import write_prepared
from trainers.weights.reading import SourceWeights

SPACES = {"as-vit": TOPOLOGY, "autoformer": "autoformer:2,2|2,2|16,8", "pit": "pit:1,1|1,2|1,2|2,4,8"}
NAMES = sorted(available("losses"))
TOGETHER = {"name": "mutual", "together": True}
SPLIT_TOGETHER = {"name": "cross-split", "together": True, "warmup": 0.0}
LOSSES: dict[str, Any] = {
    **{name: {"name": name} for name in NAMES},
    "mutual-together": TOGETHER,
    "cross-split-together": SPLIT_TOGETHER,
}
CASES = [(name, space) for name in LOSSES for space in SPACES]
TEACHER = SPACES["autoformer"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> InitialWeights:
    """A small model with random weights, which knows all digits in its way."""
    return write_prepared(tmp_path_factory.mktemp("teacher"), teacher_weights())


def teacher_weights(**changed: Any) -> SourceWeights:
    data = digits()
    model = build_model(TEACHER, data.task, seed=9, device=CPU)
    known = SourceWeights(
        source="somewhere",
        sha256="ab" * 32,
        tensors=dict(model.state_dict()),
        topology=TEACHER,
        task=data.task,
        class_names=data.class_names,
        mean=data.mean,
        std=data.std,
    )
    return replace(known, **changed)


def config_of(
    loss: Any, teacher: InitialWeights | None, *, space: str = "as-vit", seed: int = 5, **recipe: Any
) -> Configuration:
    made = configuration(epochs=2, recipe={"batch_size": 45, "loss": loss, **recipe}, teacher=teacher)
    return made.model_copy(update={"topology": SPACES[space], "seed": seed})


_plain: dict[str, Recorder] = {}


def plain_training(space: str, folder: Path) -> Recorder:
    """The reports of a training with cross-entropy, computed once in each space."""
    if space not in _plain:
        _plain[space] = Recorder()
        run(config_of("cross-entropy", None, space=space), folder, _plain[space])
    return _plain[space]


@pytest.mark.parametrize(("name", "space"), CASES)
def test_a_loss_gives_the_same_training_alone_interrupted_and_in_a_pack(
    name: str, space: str, teacher: InitialWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.training.packed._SMALL_STEP_MACS", 1 << 40)  # stacked, however large
    loss = PluginChoice.model_validate(LOSSES[name])
    config, straight, resumed = config_of(LOSSES[name], teacher, space=space), Recorder(), Recorder()
    expected = run(config, tmp_path / "straight", straight)
    assert expected.state == "complete", expected.reason
    for epoch in (1, 2):
        run(config, tmp_path / "broken", InterruptedInside(epoch))
    outcome = run(config, tmp_path / "broken", resumed)
    assert equal(weights_of(outcome), weights_of(expected))
    assert without_time(resumed.reports) == without_time(straight.reports)
    plain = plain_training(space, tmp_path / "plain")
    # Classes with equal numbers of images make the balanced softmax the usual one.
    is_plain = name in ("cross-entropy", "balanced-softmax")
    assert is_plain or straight.reports[0].train_loss != plain.reports[0].train_loss

    both = [config, config_of("cross-entropy", None, space=space, seed=6)]
    tasks = [TrainTask(configuration=one, folder=tmp_path / f"pack-{number}") for number, one in enumerate(both)]
    problem = can_be_packed(*tasks)
    if not can_pack(create("losses", loss.name, loss.settings)):
        assert problem == f"loss {name!r} cannot be computed with stacked weights"
        return
    recorders = [Recorder(), Recorder()]
    outcomes = dict(train_packed(tasks, digits(), recorders, CPU))
    assert outcomes[0].state == "complete", outcomes[0].reason
    for found, wanted in zip(recorders[0].reports, straight.reports, strict=True):
        assert found.train_loss == pytest.approx(wanted.train_loss, rel=2e-3, abs=1e-3)
        assert found.val_loss == pytest.approx(wanted.val_loss, rel=2e-3)
        assert found.training_macs == wanted.training_macs


# --- state ---


def test_the_state_of_a_loss_is_kept_in_the_newest_checkpoints(tmp_path: Path) -> None:
    outcome = run(config_of("early-learning", None), tmp_path)
    path = outcome.checkpoints[-1].path
    saved = read_tensors(path / OPTIMIZER, read_manifest(path).files[OPTIMIZER])
    targets = saved["loss.targets"]
    assert targets.shape == (len(digits().train), 10)
    # After two visits, the running averages add up to 1 - 0.7^2.
    torch.testing.assert_close(targets.sum(1), torch.full((len(targets),), 0.51), rtol=1e-5, atol=1e-5)


def test_an_optimizer_with_two_gradients_updates_the_state_once_per_step(tmp_path: Path) -> None:
    outcome = run(config_of("early-learning", None, optimizer="sam"), tmp_path)
    path = outcome.checkpoints[-1].path
    saved = read_tensors(path / OPTIMIZER, read_manifest(path).files[OPTIMIZER])
    assert float(saved["loss.targets"].sum(1).mean()) == pytest.approx(0.51, rel=1e-4)


def test_a_loss_with_a_state_of_each_image_refuses_mixed_images(tmp_path: Path) -> None:
    assert isinstance(create("losses", "early-learning"), StatefulLoss)
    with pytest.raises(ValueError, match=r"recipe.mixing must be none with the loss `early-learning`.* is cutmix"):
        run(config_of("early-learning", None, mixing="cutmix"), tmp_path)


# --- the teacher ---


def test_a_loss_that_needs_a_teacher_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`hard-distillation` needs a trained model to learn from"):
        run(config_of("hard-distillation", None), tmp_path)


@pytest.mark.parametrize(
    ("recipe", "is_fixed"),
    [
        ({}, True),
        ({"label_smoothing": 0.1, "dropout": 0.1}, True),
        ({"augmentation": "shift"}, False),
        ({"mixing": "mixup"}, False),
        ({"image_size": 16}, False),
    ],
)
def test_a_teacher_sees_each_image_once_only_if_nothing_changes_it(recipe: dict[str, Any], is_fixed: bool) -> None:
    assert has_fixed_images(Recipe.model_validate(recipe)) == is_fixed


def test_the_table_of_a_teacher_gives_the_training_of_its_single_answers(
    teacher: InitialWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of("soft-distillation", teacher)
    tabled, answered = Recorder(), Recorder()
    run(config, tmp_path / "tabled", tabled)
    monkeypatch.setattr(companions, "has_fixed_images", lambda _: False)
    run(config, tmp_path / "answered", answered)
    for one, other in zip(tabled.reports, answered.reports, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
    data = digits()
    plain = 3 * topology_costs(TOPOLOGY, data.task).macs * len(data.train)
    once = topology_costs(TEACHER, data.task).macs * len(data.train)
    assert [report.training_macs for report in tabled.reports] == [plain + once, plain]
    assert [report.training_macs for report in answered.reports] == [plain + once, plain + once]


def test_the_macs_of_the_other_networks_are_counted(teacher: InitialWeights, tmp_path: Path) -> None:
    data = digits()
    own, its = topology_costs(TOPOLOGY, data.task).macs, topology_costs(TEACHER, data.task).macs
    cases = {
        "first weights": (
            {"name": "soft-distillation", "only_where_better": True},
            {"augmentation": "shift"},
            own + its,
        ),
        "guide of its kind": ("guidance", {}, own),
        "two models": ("mutual", {}, 5 * own),
        "two models and two gradients": ("mutual", {"optimizer": "sam"}, 11 * own),  # 2 x 6 and 2, less the 3 below
        "another guide": ({"name": "guidance", "guide": TEACHER}, {}, its),
    }
    for name, (loss, recipe, beside) in cases.items():
        recorder = Recorder()
        run(config_of(loss, teacher, **recipe), tmp_path / name, recorder)
        assert [report.training_macs for report in recorder.reports] == [(3 * own + beside) * len(data.train)] * 2, name


def test_a_teacher_answers_in_the_order_of_the_classes_and_at_its_own_size(tmp_path: Path) -> None:
    data = digits()
    pixels = data.train.images[:5].float() / 255
    reversed_names = tuple(reversed(data.class_names))
    prepared = write_prepared(tmp_path, teacher_weights(class_names=reversed_names))
    found = load_teacher(prepared, data.class_names, 1, CPU).logits(pixels)
    model = build_model(TEACHER, data.task, seed=9, device=CPU)
    (expected,) = logits_of(model, data.train.images[:5], Normalizer(data.mean, data.std, CPU))
    torch.testing.assert_close(found, expected.flip(1), rtol=1e-5, atol=1e-5)
    assert not found.is_inference()

    smaller = replace_size(16)
    (own,) = logits_of(smaller, data.train.images[:5, :, ::2, ::2], Normalizer(data.mean, data.std, CPU))
    teaching = Teacher(smaller, Normalizer(data.mean, data.std, CPU), torch.arange(10), 16)
    torch.testing.assert_close(teaching.logits(pixels[..., ::2, ::2]), own, rtol=1e-5, atol=1e-5)
    assert teaching.logits(pixels).shape == (5, 10)


def test_a_teacher_with_auxiliary_heads_is_read_with_and_without_them(tmp_path: Path) -> None:
    topology = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4|deep_supervision"
    tensors = build_model(topology, digits().task, seed=9, device=CPU).state_dict()
    heads = {name for name in tensors if name.startswith("auxiliary.")}
    assert heads
    pixels, names = digits().train.images[:5].float() / 255, digits().class_names
    given = teacher_weights(topology=topology, tensors=tensors)
    exported = teacher_weights(topology=topology, tensors={k: v for k, v in tensors.items() if k not in heads})
    one, other = (
        load_teacher(write_prepared(tmp_path / place, weights), names, 1, CPU).logits(pixels)
        for place, weights in (("whole", given), ("exported", exported))
    )
    assert one.shape == (5, 10)
    assert torch.equal(one, other)


def replace_size(size: int) -> torch.nn.Module:
    task = digits().task.model_copy(update={"image_size": size})
    return build_model(TEACHER, task, seed=9, device=CPU).eval()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"topology": None}, "must be a whole model, but only weights were found"),
        ({"mean": ()}, "must be a whole model, but only weights were found"),
        ({"class_names": tuple("abcdefghij")}, "must know all 10 classes of the data, but lacks 0, 1, 2, 3, 4, ..."),
    ],
)
def test_a_model_that_cannot_teach_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    prepared = write_prepared(tmp_path, teacher_weights(**changed))
    with pytest.raises(WeightsError, match=message):
        load_teacher(prepared, digits().class_names, 1, CPU)


def test_a_teacher_of_colour_images_does_not_teach_grey_ones(teacher: InitialWeights) -> None:
    with pytest.raises(WeightsError, match="must see images with 3 channels, as the data have, but sees 1"):
        load_teacher(teacher, digits().class_names, 3, CPU)


def test_the_content_of_a_teacher_identifies_a_training_and_its_place_does_not(teacher: InitialWeights) -> None:
    config = config_of("soft-distillation", teacher)
    moved = teacher.model_copy(update={"source": "elsewhere", "file": Path("elsewhere")})
    other = teacher.model_copy(update={"sha256": "cd" * 32})
    digest = configuration_digest(config)
    assert configuration_digest(config.model_copy(update={"teacher": moved})) == digest
    assert configuration_digest(config.model_copy(update={"teacher": other})) != digest


def test_only_a_loss_whose_teacher_fades_must_be_trained_again_for_more_epochs() -> None:
    lasting = {"schedule": "constant", "warmup": 0.0}
    for loss, is_kept in (
        ("cross-entropy", True),
        ("early-learning", True),
        ("soft-distillation", True),
        ({"name": "soft-distillation", "decay": "cosine"}, False),
    ):
        reason = reason_to_retrain(Recipe.model_validate({**lasting, "loss": loss}), before=2, epochs=4)
        assert (reason is None) == is_kept, reason


# --- two models ---


def test_the_second_model_is_kept_with_the_first_and_differs_from_it(tmp_path: Path) -> None:
    outcome = run(config_of("mutual", None), tmp_path)
    path = outcome.checkpoints[-1].path
    saved = read_tensors(path / OPTIMIZER, read_manifest(path).files[OPTIMIZER])
    weights = weights_of(outcome)
    peer = {name.removeprefix("peer.weights."): value for name, value in saved.items() if "peer.weights." in name}
    assert peer.keys() == weights.keys()
    assert not any(
        torch.equal(value, peer[name]) for name, value in weights.items() if "weight" in name and "norm" not in name
    )
    assert any(name.startswith("peer.optimizer.0.exp_avg") for name in saved)


def test_the_second_model_learns(tmp_path: Path) -> None:
    config = config_of("mutual", None, learning_rate=4e-3).model_copy(update={"epochs": 5})
    outcome = run(config, tmp_path)
    path = outcome.checkpoints[-1].path
    saved = read_tensors(path / OPTIMIZER, read_manifest(path).files[OPTIMIZER])
    data = digits()
    model = build_model(TOPOLOGY, data.task, seed=0, device=CPU)
    normalizer = Normalizer(data.mean, data.std, CPU)

    def training_loss(weights: dict[str, torch.Tensor]) -> float:
        model.load_state_dict(weights)
        return evaluate(model, data.train, normalizer).loss

    prefix = "peer.weights."
    peer = {name.removeprefix(prefix): value for name, value in saved.items() if name.startswith(prefix)}
    untrained = evaluate(build_model(TOPOLOGY, data.task, seed=1, device=CPU), data.train, normalizer).loss
    assert training_loss(peer) < 0.95 * untrained
    assert training_loss(peer) == pytest.approx(training_loss(weights_of(outcome)), rel=0.2)


def test_two_models_of_a_pack_learn_from_each_other_in_the_same_forward_pass() -> None:
    config = config_of({**TOGETHER, "weight": 0.5, "temperature": 2.0}, None, dropout=0.0)
    row = make_row(config, digits(), CPU)
    course = Course.lay_out(config, digits(), row.model, CPU)
    (batch,) = prepare([row], [next(course.steps(1, None, ()))], training_images(digits(), CPU))
    assert row.peer is not None
    assert batch.mate is not None
    models = [copy.deepcopy(one.model).train() for one in (row, row.peer)]
    logits = [model(batch.images) for model in models]
    assert not torch.equal(logits[0], logits[1])
    expected, gradients = [], []
    for model, own, other in zip(models, logits, reversed(logits), strict=True):
        taught, learned = (other.detach() / 2).softmax(1), (own / 2).log_softmax(1)
        divergence = (taught * (taught.log() - learned)).sum(1)
        loss = (torch.nn.functional.cross_entropy(own, batch.labels, reduction="none") + 0.5 * 4 * divergence).mean()
        expected.append(loss.detach())
        gradients.append(torch.autograd.grad(loss, [dict(model.named_parameters())[name] for name in row.names]))
    computed = step_module._gradients([batch, batch.mate], [row.values, row.peer.values])
    torch.testing.assert_close(computed.losses.detach(), torch.stack(expected), rtol=1e-5, atol=1e-6)
    for found, wanted in zip(computed.gradients, gradients, strict=True):
        for one, other in zip(row.layout.views(found), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    before = [one.values.clone() for one in (row, row.peer)]
    (answer,) = learn([batch])
    torch.testing.assert_close(answer, expected[0], rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(one.values, old) for one, old in zip((row, row.peer), before, strict=True))


def test_two_models_that_are_computed_together_remember_how_far_the_other_one_is_from_the_labels() -> None:
    config = config_of(SPLIT_TOGETHER, None, dropout=0.0)
    row = make_row(config, digits(), CPU)
    course = Course.lay_out(config, digits(), row.model, CPU)
    (batch,) = prepare([row], [next(course.steps(1, None, ()))], training_images(digits(), CPU))
    assert row.peer is not None
    targets = torch.nn.functional.one_hot(batch.labels, 10).float()
    models = (row, row.peer)
    expected = [label_divergence(targets, one.model.train()(batch.images).detach().softmax(1)) for one in models]
    assert not torch.allclose(*expected)
    learn([batch])
    for one, wanted in zip(models, reversed(expected), strict=True):
        torch.testing.assert_close(one.loss_state["divergence"][batch.step.indices], wanted, rtol=1e-4, atol=1e-6)


def test_two_models_that_are_computed_together_cost_no_further_passes(tmp_path: Path) -> None:
    reports = {}
    for name, loss in (("plain", "cross-entropy"), ("turns", "mutual"), ("together", TOGETHER)):
        recorder = Recorder()
        run(config_of(loss, None), tmp_path / name, recorder)
        reports[name] = recorder.reports[0].training_macs
    assert reports["together"] == 2 * reports["plain"]
    assert 3 * reports["turns"] == 8 * reports["plain"]


# --- first weights and guides ---


def test_a_copy_of_the_first_weights_stays_as_it_is_while_the_model_learns(
    teacher: InitialWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    original = companions.Companions.outputs

    def watched(self: Any, *arguments: Any) -> Any:
        found = original(self, *arguments)
        seen.append(found.start[arguments[2].argsort()])
        return found

    monkeypatch.setattr(companions.Companions, "outputs", watched)
    loss = {"name": "soft-distillation", "only_where_better": True}
    run(config_of(loss, teacher, batch_size=len(digits().train)), tmp_path)
    assert len(seen) == 2
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=1e-5)


def test_guides_with_other_seeds_and_topologies_give_other_trainings(tmp_path: Path) -> None:
    guides = [{"guide_seed": 0}, {"guide_seed": 1}, {"guide": SPACES["autoformer"]}]
    found = [
        run(config_of({"name": "guidance", **guide}, None), tmp_path / str(number)).metrics["train_loss"]
        for number, guide in enumerate(guides)
    ]
    assert len(set(found)) == len(guides)


def test_a_guide_that_does_not_fit_the_images_is_refused(tmp_path: Path) -> None:
    for guide, reason in (("autoformer:2,2|2,2|16,5", "must fit the images"), ("as-vit:1", "must be a topology")):
        loss = {"name": "guidance", "guide": guide}
        assert inputs_of(PluginChoice.model_validate(loss)) == {LossInput.LAYERS}
        with pytest.raises(ValueError, match=f"guide.* of recipe.loss `guidance` {reason}"):
            run(config_of(loss, None), tmp_path)


# --- label smoothing by progress ---


def test_two_stage_label_smoothing_is_smoothed_and_then_plain_cross_entropy() -> None:
    """TSLA: `(1 - 0.4) CE(label) + 0.4 CE(uniform)` in the first part of the training, `CE(label)` afterwards."""
    config = configuration(
        epochs=4, recipe={"label_smoothing": {"from": 0.4, "to": 0.0, "until": 0.5, "shape": "step"}, "batch_size": 45}
    )
    data = digits()
    model = build_model(TOPOLOGY, data.task, seed=0, device=CPU)
    course = Course.lay_out(config, data, model, CPU)
    row = make_row(config, data, CPU)
    generator = torch.Generator().manual_seed(0)
    for epoch in range(1, 5):
        for step in course.steps(epoch, None, []):
            (batch,) = prepare([row], [step], training_images(data, CPU))
            logits = torch.randn(len(step.indices), 10, dtype=torch.float64, generator=generator)
            expected = 0.0
            for scores, label in zip(logits.tolist(), batch.labels.tolist(), strict=True):
                logs = [score - math.log(sum(map(math.exp, scores))) for score in scores]
                plain = -logs[label]
                expected += 0.6 * plain - 0.4 * sum(logs) / 10 if epoch <= 2 else plain
            found = loss_of(batch, logits)
            assert float(found) == pytest.approx(expected / len(logits), rel=1e-6)


def test_a_dry_run_has_the_networks_that_the_loss_reads(
    teacher: InitialWeights, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    original = companions.load_teacher

    def watched(*arguments: Any) -> Teacher:
        made.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(companions, "load_teacher", watched)
    memory = dry_run(config_of("soft-distillation", teacher), digits().task, CPU)
    assert memory.process_gib > 0
    assert len(made) == 1
