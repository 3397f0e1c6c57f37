"""Each stage of a finished study: its trials, its choice, and whether the choice follows from the trials."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

from orchestrator.spec.study_file import StudySpec, load_spec
from orchestrator.stages.averaging import AveragingStage
from orchestrator.stages.screen import ScreenStage
from orchestrator.stages.stopping import StoppingStage
from orchestrator.stages.train_spec import TrainStage
from orchestrator.store.records import TrialRecord
from plugins import registry
from search_spaces.base import ImageTask
from search_spaces.recipes import base_point
from tests.fakes import RecordingProgress, Switch, Told
from tests.tiny import FinishedStudy, read_rows, run_here
from trainers.champion import load_model
from trainers.config import Configuration
from trainers.data.images import load_images, load_test_images
from trainers.data.sources import list_source
from trainers.data.splits import split_indices
from trainers.models.building import build_model
from trainers.results.model_report import ModelReport

TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
CPU = torch.device("cpu")
PROXIES = ("length-distortion", "ntk-condition", "params", "flops")
RANKING = ("length-distortion", "ntk-condition")


@pytest.fixture(scope="module")
def spec(tiny: FinishedStudy) -> StudySpec:
    return load_spec(tiny.file)


def dense_ranks(trials: list[TrialRecord], proxy: str) -> np.ndarray:
    values = np.array([trial.metrics[proxy] for trial in trials])
    sign = -1 if registry.load("proxies", proxy).direction == "maximize" else 1
    return stats.rankdata(sign * values, method="dense") - 1


def ranking(trials: list[TrialRecord]) -> list[str]:
    sums = sum(dense_ranks(trials, proxy) for proxy in RANKING)
    return [trials[place].details["topology"] for place in np.argsort(sums, kind="stable")]


def accuracy_of(model: torch.nn.Module, mean: tuple[float, ...], std: tuple[float, ...], split) -> float:
    """Accuracy, without the code under test: plain normalisation, one forward pass."""
    shape = (1, -1, 1, 1)
    pixels = (split.images.float() / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    with torch.no_grad():
        return float((model.eval()(pixels).argmax(1) == split.labels).double().mean())


def test_the_study_is_complete_with_every_stage_in_order(tiny: FinishedStudy, spec: StudySpec) -> None:
    assert tiny.rows.study.state == "complete"
    assert {name: stage.state for name, stage in tiny.rows.stages.items()} == {
        stage.name: "complete" for stage in spec.stages
    }
    ended = [told.stage for told in tiny.progress.of("stage ended")]
    assert ended == [stage.name for stage in spec.stages]
    times = [stage.ended_at for stage in tiny.rows.stages.values()]
    assert times == sorted(times)
    assert tiny.rows.executions == ["complete"]


def test_every_trial_is_numbered_from_zero_and_ended(tiny: FinishedStudy) -> None:
    for trials in tiny.rows.trials.values():
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert all(trial.state == "complete" and trial.ended_at >= trial.started_at for trial in trials)
        assert len({trial.seed for trial in trials}) == len(trials)


# --- screen ---


def test_screen_scores_different_topologies_within_the_limits(tiny: FinishedStudy, spec: StudySpec) -> None:
    trials = tiny.rows.trials["screen"]
    stage = spec.stages[0]
    assert isinstance(stage, ScreenStage)
    assert len(trials) == stage.num_trials
    topologies = [stage.search_space.decode(trial.point) for trial in trials]
    assert [topology.id for topology in topologies] == [trial.details["topology"] for trial in trials]
    assert len(set(topologies)) == len(topologies)
    for topology, trial in zip(topologies, trials, strict=True):
        model = build_model(topology.id, TASK, seed=0, device=CPU)
        assert trial.metrics["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert trial.metrics["params"] == trial.metrics["parameters"] <= stage.limits.max_params
        assert all(np.isfinite(trial.metrics[proxy]) for proxy in PROXIES)


def test_screen_ranks_by_the_sum_of_ranks(tiny: FinishedStudy) -> None:
    trials, result = tiny.rows.trials["screen"], tiny.rows.stages["screen"].result
    expected = ranking(trials)
    assert [row["topology"] for row in result["top"]] == expected[:10]
    assert result["best"] == result["top"][0]
    assert (result["num_topologies"], result["num_failed"]) == (len(trials), 0)


# --- grow ---


def test_grow_reaches_its_target_one_block_at_a_time(tiny: FinishedStudy) -> None:
    result, trials = tiny.rows.stages["grow"].result, tiny.rows.trials["grow"]
    assert result["start"] == tiny.rows.stages["screen"].result["best"]["topology"]
    before = registry.parse_topology(result["start"])
    for row in result["family"]:
        topology = registry.parse_topology(row["topology"])
        assert sum(topology.depths) == sum(before.depths) + 1
        assert topology.width == row["width"] == round(before.width * 1.25)
        model = build_model(topology.id, TASK, seed=0, device=CPU)
        assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        before = topology
    sizes = [row["parameters"] for row in result["family"]]
    assert sizes == sorted(sizes)
    assert len(sizes) > 1
    assert all(size < 200_000 for size in sizes[:-1])
    assert 200_000 <= sizes[-1] <= 1.375 * 200_000
    assert result["selected"] == [result["final"]["topology"]]
    assert {trial.point["step"] for trial in trials} == set(range(1, len(sizes) + 1))


def test_each_growth_step_takes_the_lowest_sum_of_ranks(tiny: FinishedStudy) -> None:
    for row in tiny.rows.stages["grow"].result["family"]:
        tried = [trial for trial in tiny.rows.trials["grow"] if trial.point["step"] == row["step"]]
        sums = sum(dense_ranks(tried, proxy) for proxy in RANKING)
        chosen = next(place for place, trial in enumerate(tried) if trial.point["topology"] == row["topology"])
        assert sums[chosen] == min(sums)


# --- train ---


def test_train_begins_with_the_base_recipe_of_every_candidate(tiny: FinishedStudy, spec: StudySpec) -> None:
    stage = spec.stages[2]
    assert isinstance(stage, TrainStage)
    trials, result = tiny.rows.trials["train"], tiny.rows.stages["train"].result
    candidates = result["candidates"]
    ranked = ranking(tiny.rows.trials["screen"])
    assert candidates[0] == tiny.rows.stages["grow"].result["final"]["topology"]
    assert candidates[1:3] == ranked[:2]
    assert ranked[-1] in candidates
    assert len(set(candidates)) == len(candidates) == 6
    base = base_point(stage.recipe_space.dimensions)
    for trial, candidate in zip(trials, candidates, strict=False):
        assert trial.point == {"topology": candidate, **base}
    assert len(trials) == stage.num_trials
    sampled = [trial.point for trial in trials[6:]]
    assert sampled
    assert all(point["topology"] in candidates for point in sampled)
    assert len({str(trial.point) for trial in trials}) == len(trials)


def test_every_curve_is_whole_and_ends_in_the_trials_metrics(tiny: FinishedStudy) -> None:
    for trial, curve in zip(tiny.rows.trials["train"], tiny.rows.curves["train"], strict=True):
        assert [report.epoch for report in curve] == [1, 2, 3, 4]
        assert sum(report.num_images for report in curve) == 4 * 90
        assert trial.metrics["val_accuracy"] == curve[-1].val_accuracy
        assert trial.metrics["val_loss"] == curve[-1].val_loss
        assert trial.metrics["val_accuracy_best"] == max(report.val_accuracy for report in curve)


def test_the_newest_checkpoint_of_every_trial_is_kept_and_is_what_was_measured(tiny: FinishedStudy) -> None:
    data = load_images(load_spec(tiny.file).data)
    for trial, kept in zip(tiny.rows.trials["train"], tiny.rows.checkpoints["train"], strict=True):
        assert kept[-1].epoch == 4
        assert all((record.path / "model.safetensors").stat().st_size == record.num_bytes for record in kept)
        model = build_model(str(trial.point["topology"]), TASK, seed=0, device=CPU)
        model.load_state_dict(load_file(kept[-1].path / "model.safetensors"))
        assert accuracy_of(model, data.mean, data.std, data.validation) == trial.metrics["val_accuracy"]


def test_the_leaderboard_is_in_the_order_of_validation_accuracy(tiny: FinishedStudy) -> None:
    result = tiny.rows.stages["train"].result
    order = sorted(
        tiny.rows.trials["train"], key=lambda trial: (-trial.metrics["val_accuracy"], trial.metrics["val_loss"])
    )
    assert [row["trial"] for row in result["leaderboard"]] == [trial.number for trial in order]
    assert result["best"]["trial"] == order[0].number


# --- stopping ---


def test_stopping_replays_every_curve_and_chooses_within_its_limit(tiny: FinishedStudy, spec: StudySpec) -> None:
    stage = spec.stages[3]
    assert isinstance(stage, StoppingStage)
    curves = [[report.point for report in curve] for curve in tiny.rows.curves["train"]]
    trials, result = tiny.rows.trials["stopping"], tiny.rows.stages["stopping"].result
    for trial in trials:
        choice = stage.decode(trial.point)
        criterion = registry.create("stopping", choice.name, choice.settings)
        trained, best = [], []
        for curve in curves:
            length = 1
            while length < len(curve) and criterion.reason_to_stop(curve[:length]) is None:
                length += 1
            trained.append(length / len(curve))
            best.append(max(p.val_accuracy for p in curve) - max(p.val_accuracy for p in curve[:length]))
        assert trial.metrics["epochs_saved"] == pytest.approx(1 - np.mean(trained))
        assert trial.metrics["accuracy_lost"] == pytest.approx(np.mean(best))
    assert any(trial.metrics["epochs_saved"] > 0 for trial in trials)
    within = [trial.metrics for trial in trials if trial.metrics["accuracy_lost"] <= stage.max_accuracy_lost]
    if within:
        assert result["within_limit"]
        assert result["epochs_saved"] == max(metrics["epochs_saved"] for metrics in within)
    else:
        assert not result["within_limit"]
        assert result["accuracy_lost"] == min(trial.metrics["accuracy_lost"] for trial in trials)
    names = [stage.decode(trials[row["trial"]].point).name for row in result["best_of_each"]]
    assert sorted(names) == sorted({stage.decode(trial.point).name for trial in trials})
    assert result["criterion"]["name"] in names


# --- averaging ---


def test_averaging_chooses_on_validation_and_is_never_worse_than_the_last_checkpoint(
    tiny: FinishedStudy, spec: StudySpec
) -> None:
    stage = spec.stages[4]
    assert isinstance(stage, AveragingStage)
    result, trials = tiny.rows.stages["averaging"].result, tiny.rows.trials["averaging"]
    source = tiny.rows.trials["train"][result["averaged_from"]]
    assert result["averaged_from"] == tiny.rows.stages["train"].result["best"]["trial"]
    assert result["val_accuracy"] == max(trial.metrics["val_accuracy"] for trial in trials)
    last = next(trial for trial in trials if stage.decode(trial.point).name == "last")
    assert last.metrics["val_accuracy"] == source.metrics["val_accuracy"]
    assert result["val_accuracy"] >= source.metrics["val_accuracy"]
    assert result["gain"] == pytest.approx(result["val_accuracy"] - source.metrics["val_accuracy"])
    assert {stage.decode(trial.point).name for trial in trials} == {"last", "lawa"}


def test_an_average_is_the_mean_of_the_newest_weights(tiny: FinishedStudy, spec: StudySpec) -> None:
    stage = spec.stages[4]
    assert isinstance(stage, AveragingStage)
    data = load_images(spec.data)
    source = tiny.rows.stages["averaging"].result["averaged_from"]
    kept = [load_file(record.path / "model.safetensors") for record in tiny.rows.checkpoints["train"][source]]
    topology = str(tiny.rows.trials["train"][source].point["topology"])
    for trial in tiny.rows.trials["averaging"]:
        choice = stage.decode(trial.point)
        if choice.name != "lawa":
            continue
        newest = kept[-choice.settings["window"] :]
        mean = {name: torch.stack([weights[name] for weights in newest]).double().mean(0) for name in newest[0]}
        model = build_model(topology, TASK, seed=0, device=CPU)
        model.load_state_dict(mean)
        assert accuracy_of(model, data.mean, data.std, data.validation) == trial.metrics["val_accuracy"]


# --- correlate ---


def test_the_taus_are_scipys_over_all_candidates_with_the_base_recipe(tiny: FinishedStudy) -> None:
    scores = {trial.details["topology"]: trial for trial in tiny.rows.trials["correlate"]}
    candidates = tiny.rows.stages["train"].result["candidates"]
    used = tiny.rows.trials["train"][: len(candidates)]
    assert len(used) == 6  # the grown one is scored too
    result = tiny.rows.stages["correlate"].result
    rows = {row["proxy"]: row for row in result["proxies"] if not row["is_combination"]}
    assert set(rows) == {*PROXIES, "depth"}
    assert result["truth"]["target"] == "val_accuracy"
    accuracy = [trial.metrics["val_accuracy"] for trial in used]
    for proxy, row in rows.items():
        values = [scores[str(trial.point["topology"])].metrics[proxy] for trial in used]
        sign = 1 if registry.load("proxies", proxy).direction == "maximize" else -1
        tau = stats.kendalltau([sign * value for value in values], accuracy, variant="b").statistic
        assert row["tau"]["value"] == pytest.approx(tau)
        assert row["num_topologies"] == 6
        if proxy != "params":
            gain = row["tau"]["value"] - rows["params"]["tau"]["value"]
            assert row["minus"]["params"]["value"] == pytest.approx(gain)
    assert set(rows["params"]["minus"]) == {"flops", "depth"}


def test_the_scores_of_the_screen_are_not_computed_again(tiny: FinishedStudy) -> None:
    screened = {trial.details["topology"]: trial for trial in tiny.rows.trials["screen"]}
    again = [trial for trial in tiny.rows.trials["correlate"] if trial.details["topology"] in screened]
    assert len(again) == 5
    for trial in again:
        first = screened[trial.details["topology"]]
        assert {name: trial.metrics[name] for name in PROXIES} == {name: first.metrics[name] for name in PROXIES}
        taken = {name: trial.details["seconds"][name] for name in PROXIES}
        assert taken == {name: first.details["seconds"][name] for name in PROXIES}  # of the one time it was computed


def test_how_early_trials_can_be_judged_is_told_from_all_curves(tiny: FinishedStudy) -> None:
    early = tiny.rows.stages["correlate"].result["early"]
    final = [curve[-1].val_accuracy for curve in tiny.rows.curves["train"]]
    for agreement in early["epochs"]:
        then = [curve[agreement["epoch"] - 1].val_accuracy for curve in tiny.rows.curves["train"]]
        assert agreement["tau"]["value"] == pytest.approx(
            stats.kendalltau(then, final, variant="b").statistic, abs=1e-6
        )
    assert [agreement["epoch"] for agreement in early["epochs"]] == [1, 2, 3, 4]
    assert early["advice"]


# --- promote ---


def test_the_test_part_is_read_once_and_by_promote_only(tiny: FinishedStudy, spec: StudySpec) -> None:
    assert [told.stage for told in tiny.progress.of("test images")] == ["promote"]
    listing = list_source(spec.data).train
    train, validation, test = split_indices(listing.labels, spec.data, own_test=False)
    assert not set(test) & (set(train) | set(validation))
    assert not set(train) & set(validation)
    data, held_out = load_images(spec.data), load_test_images(spec.data)
    pixels = {image.numpy().tobytes() for part in (data.train, data.validation) for image in part.images}
    assert not pixels & {image.numpy().tobytes() for image in held_out.images}
    assert len(held_out) == 60


def test_the_champions_test_accuracy_is_that_of_the_saved_model(tiny: FinishedStudy, spec: StudySpec) -> None:
    folder = Path(tiny.champion["folder"])
    predictor = load_model(folder)
    card = predictor.card
    weights = load_file(folder / "model.safetensors")
    model = build_model(card.configuration.topology, TASK, seed=3, device=CPU)
    model.load_state_dict(weights)
    assert accuracy_of(model, card.mean, card.std, load_test_images(spec.data)) == tiny.champion["test_accuracy"]
    assert card.metrics["test_accuracy"] == tiny.champion["test_accuracy"]
    assert tiny.champion["val_accuracy"] == tiny.rows.stages["averaging"].result["val_accuracy"]
    assert card.configuration == Configuration.model_validate(tiny.champion["configuration"])
    best = tiny.rows.trials["train"][tiny.champion["trial"]]
    assert card.configuration.topology == best.point["topology"]
    assert card.configuration.seed == best.seed


def test_the_test_result_has_intervals_classes_calibration_and_figures(tiny: FinishedStudy, spec: StudySpec) -> None:
    report = ModelReport.model_validate(tiny.champion["test"])
    held_out = load_test_images(spec.data)
    assert report.num_images == len(held_out)
    assert report.metrics["accuracy"].value == tiny.champion["test_accuracy"]
    assert report.metrics["loss"].value == tiny.champion["test_loss"]
    assert [one.support for one in report.per_class] == held_out.labels.bincount(minlength=10).tolist()
    predictor = load_model(Path(tiny.champion["folder"]))
    assert predictor.card.temperature == report.calibration.temperature != 1.0
    assert {one.name for one in report.mistakes} <= {f"digit {number}" for number in range(1797)}
    drawn = {path.name for path in Path(tiny.champion["folder"]).parent.iterdir()}
    assert drawn == {"champion", "confusion-matrix.png", "reliability.png", "mistakes.png"}


def test_the_champion_predicts_image_files_as_it_predicts_the_test_part(
    tiny: FinishedStudy, spec: StudySpec, tmp_path: Path
) -> None:
    predictor, held_out = load_model(Path(tiny.champion["folder"])), load_test_images(spec.data)
    paths = []
    for number, image in enumerate(held_out.images):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(image[0].numpy()).save(paths[-1])
    found = predictor.predict(paths)
    hits = [one.label == str(int(label)) for one, label in zip(found, held_out.labels, strict=True)]
    assert np.mean(hits) == tiny.champion["test_accuracy"]
    for one in found:
        assert one.probability == max(probability for _, probability in one.top)
        assert 0 < one.probability <= 1


# --- other studies ---

TOPOLOGY = "as-vit:4,4,2,1|2,4,2,1|2,2,2,1|2,1,2,1|16,4"
SHORT = f"""\
study: short
data: {{source: digits, max_images: 120, max_test_images: 60}}
stages:
  - stage: train
    topologies: ["{TOPOLOGY}"]
    num_trials: 2
    epochs: 4
    keep_checkpoints: 3
    stopping: {{name: patience, epochs: 1, min_delta: 5.0}}
    recipe: {{batch_size: 32, learning_rate: [0.002, 0.004]}}
  - stage: averaging
    num_trials: 2
    methods: [last, {{name: lawa, window: 3, spacing: 1}}]
  - stage: promote
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "short.yaml"
    file.write_text(text)
    return file


def test_named_topologies_whose_training_stops_early_become_a_champion(tmp_path: Path) -> None:
    progress = RecordingProgress()
    assert run_here(write(tmp_path, SHORT), tmp_path / "home", progress=progress).state == "complete"
    rows = read_rows(tmp_path / "home", "short")
    assert [trial.state for trial in rows.trials["train"]] == ["stopped", "stopped"]
    assert all("patience is 1" in str(trial.reason) for trial in rows.trials["train"])
    assert [len(curve) for curve in rows.curves["train"]] == [2, 2]
    (last,) = rows.trials["averaging"]  # two checkpoints are no window of three
    assert last.state == "complete"
    notes = [told.value for told in progress.of("note")]
    assert "stage 'averaging' has 2 checkpoints to average, so it leaves out lawa (needs at least 3)" in notes
    assert rows.stages["promote"].result["configuration"]["averaging"] == "last"


def test_a_checkpoint_that_is_damaged_fails_the_study_with_its_name(tmp_path: Path) -> None:
    home, file, switch = tmp_path / "home", write(tmp_path, SHORT), Switch()

    def stop_before_promote(told: Told) -> None:
        switch.on = told[:2] == ("stage ended", "averaging")

    assert run_here(file, home, progress=RecordingProgress(stop_before_promote), control=switch).state == "interrupted"
    rows = read_rows(home, "short")
    best = rows.stages["train"].result["best"]["trial"]
    damaged = rows.checkpoints["train"][best][-1].path / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-8])
    study = run_here(file, home)
    assert study.state == "failed"
    assert str(damaged) in str(study.reason)
    assert read_rows(home, "short").stages["promote"].state == "failed"
