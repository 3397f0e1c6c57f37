"""The report on a model: classes, confusions, baseline and mistakes, and its files."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from orchestrator.cli.model_table import model_report, report_lines
from orchestrator.reports.model_files import draw_report, report_metrics, report_texts
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from plugins.registry import create
from search_spaces.recipes import PluginChoice
from trainers.data.images import ImageSplit
from trainers.results.measuring import MAX_MISTAKES, report_on
from trainers.results.model_report import ModelReport, describe_accuracy, describe_result
from trainers.training.evaluation import judge

pytestmark = pytest.mark.usefixtures("drawn_figures")

NAMES = ("cat", "dog", "a class with a name that is much too long", "never seen")
MEASURES = {
    "accuracy": lambda logits, labels: judge(logits, labels).accuracy,
    "loss": lambda logits, labels: judge(logits, labels).loss,
}


def logits_and_labels(count: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """A model that is often right on three of four classes, and never sees the fourth."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (count,), generator=generator)
    logits = torch.randn(count, 4, generator=generator) + 1.5 * torch.eye(4)[labels]
    logits[:, 3] -= 5
    return logits, labels


def report(count: int = 200, *, temperature: float = 2.0) -> ModelReport:
    logits, labels = logits_and_labels(count)
    return report_on(logits, labels, part="test", class_names=NAMES, measures=MEASURES, temperature=temperature)


def images(count: int, *, channels: int = 3) -> ImageSplit:
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, 32, 32), dtype=np.uint8)
    return ImageSplit(images=torch.from_numpy(pixels), labels=logits_and_labels(count)[1])


def shown(found: ModelReport) -> str:
    """The report as a terminal of 80 columns shows it."""
    file = io.StringIO()
    Console(file=file, width=80).print(model_report(found), crop=False)
    return file.getvalue()


def test_classes_and_confusions_equal_those_of_scikit_learn() -> None:
    logits, labels = logits_and_labels()
    found, answers = report(), logits.argmax(1).numpy()
    assert np.array_equal(found.confusion, confusion_matrix(labels.numpy(), answers, labels=range(4)))
    precision, recall, f1, support = precision_recall_fscore_support(
        labels.numpy(), answers, labels=range(4), zero_division=np.nan
    )
    for place, one in enumerate(found.per_class):
        assert one.name == NAMES[place]
        assert one.support == support[place]
        for mine, theirs in ((one.precision, precision), (one.recall, recall), (one.f1, f1)):
            assert mine == (None if np.isnan(theirs[place]) else pytest.approx(theirs[place]))


def test_the_baseline_is_the_most_frequent_class() -> None:
    _, labels = logits_and_labels()
    counts = torch.bincount(labels)
    found = report()
    assert found.baseline.name == NAMES[int(counts.argmax())]
    assert found.baseline.accuracy == int(counts.max()) / len(labels)
    assert found.beats_baseline


def test_a_model_that_always_gives_one_answer_does_not_beat_the_baseline() -> None:
    logits, labels = torch.eye(4)[torch.zeros(30, dtype=torch.long)], torch.tensor([0, 1, 0] * 10)
    found = report_on(logits, labels, part="test", class_names=NAMES, measures=MEASURES, temperature=1.0)
    assert not found.beats_baseline
    assert "NOT better" in shown(found)


def test_the_most_confident_mistakes_come_first_with_calibrated_probabilities() -> None:
    logits, labels = logits_and_labels()
    found = report()
    wrong = logits.argmax(1) != labels
    assert found.num_mistakes == int(wrong.sum()) > MAX_MISTAKES
    probabilities = [one.probability for one in found.mistakes]
    assert len(probabilities) == MAX_MISTAKES
    assert probabilities == sorted(probabilities, reverse=True)
    expected = (logits.double() / 2).softmax(1).max(1).values
    assert probabilities[0] == pytest.approx(float(expected[wrong].max()))
    for one in found.mistakes:
        assert one.truth == NAMES[int(labels[one.image])]
        assert one.prediction == NAMES[int(logits[one.image].argmax())] != one.truth


def test_the_temperature_changes_probabilities_and_nothing_else() -> None:
    warm, cold = report(temperature=2.0), report(temperature=1.0)
    assert warm.metrics == cold.metrics
    assert warm.confusion == cold.confusion
    assert warm.calibration.ece_uncalibrated == cold.calibration.ece
    assert warm.mistakes != cold.mistakes


def test_a_report_survives_json() -> None:
    found = report()
    assert ModelReport.model_validate_json(found.model_dump_json()) == found


def test_a_terminal_shows_metrics_classes_confusions_and_mistakes() -> None:
    text = shown(report())
    assert max(map(len, text.splitlines())) <= 80
    for part in ("accuracy", "Wilson", "never seen", "'dog' taken for 'cat'", "instead of", "temperature 2.00"):
        assert part in text


def test_accuracy_is_described_with_its_interval() -> None:
    found = report()
    low, high = found.metrics["accuracy"].low, found.metrics["accuracy"].high
    assert low is not None
    assert high is not None
    value = found.metrics["accuracy"].value
    assert describe_accuracy(found) == f"{100 * value:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"


def test_tables_are_complete() -> None:
    found = report()
    tables = {name: list(csv.reader(io.StringIO(text))) for name, text in report_texts(found).items()}
    assert [row[0] for row in tables["per-class.csv"][1:]] == list(NAMES)
    assert tables["per-class.csv"][-1] == ["never seen", "0", "", "", ""]
    assert [list(map(int, row[1:])) for row in tables["confusion-matrix.csv"][1:]] == [list(r) for r in found.confusion]
    assert len(tables["mistakes.csv"]) == 1 + len(found.mistakes)
    assert [row[0] for row in tables["metrics.csv"][1:]] == ["accuracy", "loss"]


def test_metrics_for_mlflow_have_intervals() -> None:
    found = report_metrics(report())
    assert found["test_accuracy_low"] < found["test_accuracy"] < found["test_accuracy_high"]
    assert found["test_loss_low"] < found["test_loss"] < found["test_loss_high"]
    assert {"test_ece", "test_baseline_accuracy", "temperature"} <= found.keys()


@pytest.mark.parametrize("channels", [1, 3])
def test_figures_are_drawn(tmp_path: Path, channels: int) -> None:
    files = draw_report(report(), images(200, channels=channels), tmp_path / "new")
    assert [file.name for file in files] == ["confusion-matrix.png", "reliability.png", "mistakes.png"]
    assert sorted(tmp_path.glob("new/*")) == sorted(files)
    for file in files:
        with Image.open(file) as picture:
            assert min(picture.size) > 300


def test_without_mistakes_no_mistakes_are_drawn(tmp_path: Path) -> None:
    labels = torch.arange(30) % 3
    found = report_on(torch.eye(4)[labels], labels, part="test", class_names=NAMES, measures=MEASURES, temperature=1.0)
    assert [file.name for file in draw_report(found, images(30), tmp_path)] == [
        "confusion-matrix.png",
        "reliability.png",
    ]


def test_a_report_with_many_classes_shows_the_weakest(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 60
    logits = torch.randn(120, 60, generator=generator)
    found = report_on(
        logits,
        labels,
        part="all",
        class_names=[f"class {number}" for number in range(60)],
        measures=MEASURES,
        temperature=1.0,
    )
    split = ImageSplit(images=torch.zeros(120, 1, 8, 8, dtype=torch.uint8), labels=labels)
    assert len(draw_report(found, split, tmp_path)) == 3
    assert "30 weakest of 60" in shown(found)


def test_a_model_is_compared_with_the_most_frequent_class_by_its_own_metric() -> None:
    labels = torch.tensor([0] * 9 + [1])
    always_first = torch.tensor([[5.0, 0.0, 0.0, 0.0]]).repeat(10, 1)
    f1 = DecidingMetric.of(PluginChoice(name="macro-f1"))

    measures = {**MEASURES, "macro-f1": create("metrics", "macro-f1").measure}

    def judged(logits: torch.Tensor, metric: DecidingMetric) -> ModelReport:
        return report_on(
            logits, labels, part="test", class_names=NAMES, measures=measures, temperature=1.0, metric=metric
        )

    blind = judged(always_first, f1)
    assert blind.baselines["accuracy"] == 0.9
    assert blind.baselines["macro-f1"] == blind.metrics["macro-f1"].value
    assert not blind.beats_baseline
    assert describe_result(blind).startswith("macro F1 47.4 %, accuracy 90.0 %")
    assert describe_result(blind).endswith(f"NOT better than always answering {NAMES[0]!r}")
    finds_both = always_first.clone()
    finds_both[9] = torch.tensor([0.0, 5.0, 0.0, 0.0])
    finds_both[:2] = torch.tensor([0.0, 5.0, 0.0, 0.0])
    found = judged(finds_both, f1)
    assert found.metrics["accuracy"].value < found.baselines["accuracy"]
    assert found.beats_baseline
    assert not judged(finds_both, ACCURACY).beats_baseline
    assert any(name == "metric" and "macro F1" in text for name, text in report_lines(found))
