"""Labels replaced on purpose: which, how many, and where they are told of."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from orchestrator.spec.study_file import SpecError, make_spec
from plugins.protocols import Signal
from tests.unit.training import DIGITS, Recorder, configuration, digits, run
from trainers.config import DataConfig
from trainers.data.describing import describe_data
from trainers.data.fitting import load_for_training
from trainers.data.images import ImageData, load_images
from trainers.data.label_noise import memorized_fraction, noisy_labels

LABELS = torch.arange(1000) % 10


def noisy(**changed: object) -> DataConfig:
    return DIGITS.model_copy(update={"label_noise": 0.4, **changed})


@pytest.fixture(scope="module")
def data() -> ImageData:
    return load_images(noisy())


def test_the_given_fraction_of_the_labels_is_wrong_and_every_other_class_takes_part() -> None:
    found = noisy_labels(LABELS, noisy(), 10)
    is_wrong = found != LABELS
    assert int(is_wrong.sum()) == 400
    steps = ((found - LABELS) % 10)[is_wrong].bincount(minlength=10)
    assert steps[0] == 0
    assert int(steps[1:].min()) > 20


def test_pairs_replace_each_class_with_the_next() -> None:
    found = noisy_labels(LABELS, noisy(label_noise_kind="pairs"), 10)
    is_wrong = found != LABELS
    assert int(is_wrong.sum()) == 400
    assert torch.equal(found[is_wrong], (LABELS[is_wrong] + 1) % 10)


def test_the_split_seed_alone_decides_which_labels_are_wrong() -> None:
    first = noisy_labels(LABELS, noisy(), 10)
    torch.rand(5)
    assert torch.equal(first, noisy_labels(LABELS, noisy(), 10))
    assert not torch.equal(first, noisy_labels(LABELS, noisy(split_seed=1), 10))


def test_only_training_labels_are_replaced_and_the_true_ones_are_kept(data: ImageData) -> None:
    plain = digits()
    assert data.train.true_labels is not None
    assert torch.equal(data.train.true_labels, plain.train.labels)
    assert torch.equal(data.train.as_in_source().labels, plain.train.labels)
    assert int((data.train.labels != plain.train.labels).sum()) == round(0.4 * len(plain.train))
    assert torch.equal(data.train.images, plain.train.images)
    assert torch.equal(data.validation.labels, plain.validation.labels)
    assert plain.train.true_labels is None
    assert torch.equal(data.train.to(torch.device("cpu")).true_labels, plain.train.labels)


def test_the_noise_is_a_part_of_the_identity_of_the_data(data: ImageData) -> None:
    digests = {digits().digest, data.digest, load_images(noisy(label_noise=0.2)).digest}
    digests.add(load_images(noisy(label_noise_kind="pairs")).digest)
    assert len(digests) == 4


def test_the_report_says_how_many_labels_are_wrong() -> None:
    report = describe_data(noisy()).report
    (warning,) = [one.message for one in report.warnings if one.kind == "label-noise"]
    assert warning == "36 of the 90 training labels are replaced by another class at random, as data.label_noise asks"
    assert warning in report.lines()[1]
    assert not [one for one in report.warnings if one.kind == "two-classes"]


def test_a_training_on_all_images_keeps_the_true_labels_of_both_parts(data: ImageData) -> None:
    config = configuration(train_on="train+validation").model_copy(update={"data": noisy()})
    joined = load_for_training(config).train
    assert joined.true_labels is not None
    assert len(joined.true_labels) == len(joined.labels) == 120
    assert int((joined.labels != joined.true_labels).sum()) == 36


def test_a_model_learns_the_labels_that_it_is_given(data: ImageData, tmp_path: Path) -> None:
    noisy_loss = run(configuration(epochs=1), tmp_path / "noisy", data=data).metrics["train_loss"]
    assert noisy_loss != run(configuration(epochs=1), tmp_path / "plain").metrics["train_loss"]


def test_memorized_images_are_those_predicted_as_their_wrong_label() -> None:
    true_labels, labels = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([0, 2, 3, 4, 4])
    predicted = torch.tensor([0, 2, 2, 0, 1])  # the second memorized, the third right in spite of its label
    assert memorized_fraction(predicted, labels, true_labels) == pytest.approx(1 / 3)
    assert memorized_fraction(predicted, labels, labels) is None


def test_the_signal_of_memorized_labels_is_recorded_if_there_are_wrong_labels(data: ImageData, tmp_path: Path) -> None:
    recorders = [Recorder(), Recorder()]
    for number, (images, recorder) in enumerate(zip((data, digits()), recorders, strict=True)):
        config = configuration(epochs=1)
        run(config, tmp_path / str(number), recorder, data=images, signals=(Signal.MEMORIZED_LABELS,))
    assert 0 <= recorders[0].reports[0].signals["memorized_labels"] <= 1
    assert recorders[1].reports[0].signals == {}


def test_a_study_that_asks_for_the_signal_without_wrong_labels_is_refused() -> None:
    study = {
        "study": "noisy",
        "data": {"source": "digits", "image_size": 32},
        "stages": [
            {
                "stage": "train",
                "topologies": ["autoformer:2,2|2,2|16,8"],
                "num_trials": 1,
                "epochs": 1,
                "signals": ["memorized_labels"],
            }
        ],
    }
    with pytest.raises(SpecError, match=r"the signal memorized_labels needs wrong labels, but data.label_noise is 0"):
        make_spec(study)
    assert make_spec(study, overrides={"data.label_noise": 0.2}).data.label_noise == 0.2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_noise": 1.0}, "less than 1"),
        ({"label_noise": -0.1}, "greater than or equal to 0"),
        ({"source": "noise", "label_noise": 0.4}, "needs a source with real labels"),
        ({"label_noise_kind": "pairs"}, "needs a `label_noise` above 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataConfig.model_validate({"source": "digits", **given})
