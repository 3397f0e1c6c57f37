"""A model as a folder: trained, saved, loaded and asked."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from search_spaces.recipes import PluginChoice
from tests.rounding import rounded
from tests.unit.training import CPU, DIGITS, Recorder, configuration, digits, run
from trainers.champion import ModelError, load_model, save_model, train_configuration
from trainers.config import Configuration
from trainers.data.images import load_test_images
from trainers.data.sources import DataError
from trainers.tasks.averaging import ValidationJudge, average_checkpoints

LAWA = PluginChoice(name="lawa", settings={"window": 2, "spacing": 2})


def trained(folder: Path) -> tuple[Configuration, dict[str, torch.Tensor]]:
    config = configuration(epochs=4, averaging=LAWA)
    outcome, weights = train_configuration(config, folder, Recorder(), data=digits())
    assert outcome.state == "complete"
    assert weights is not None
    return config, weights


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model's folder."""
    folder = tmp_path_factory.mktemp("champion")
    config, weights = trained(folder / "checkpoints")
    save_model(folder / "model", weights, configuration=config, data=digits(), metrics={"val_accuracy": 0.5})
    return folder / "model"


def digit_file(path: Path, index: int = 0) -> Path:
    Image.fromarray(load_test_images(DIGITS).images[index, 0].numpy()).save(path)
    return path


def test_a_configuration_alone_gives_the_weights_of_the_search_again(tmp_path: Path) -> None:
    config = configuration(epochs=4, averaging=LAWA)
    searched = run(config.model_copy(update={"averaging": PluginChoice(name="last")}), tmp_path / "search", keep=4)
    judge = ValidationJudge(configuration(), digits(), CPU)
    expected, _ = average_checkpoints(LAWA, [record.path for record in searched.checkpoints], judge)
    _, weights = trained(tmp_path / "again")
    assert all(torch.equal(expected[name], value) for name, value in weights.items())


def test_an_interrupted_training_gives_no_weights(tmp_path: Path) -> None:
    class Impatient(Recorder):
        def should_stop(self) -> bool:
            return True

    outcome, weights = train_configuration(configuration(), tmp_path, Impatient(), data=digits())
    assert outcome.state == "interrupted"
    assert weights is None


def test_the_folder_holds_all_that_is_needed(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["model.safetensors", "model.yaml"]
    card = yaml.safe_load((saved / "model.yaml").read_text())
    assert Configuration.model_validate(card["configuration"]) == configuration(epochs=4, averaging=LAWA)
    assert card["class_names"] == list("0123456789")
    assert card["data_digest"] == digits().digest
    assert card["metrics"] == {"val_accuracy": 0.5}


def test_a_loaded_model_judges_as_the_trained_one_did(saved: Path) -> None:
    predictor = load_model(saved, device=CPU)
    first = predictor.evaluate(load_test_images(DIGITS))
    assert first == load_model(saved, device=CPU).evaluate(load_test_images(DIGITS))
    assert first.accuracy > 0.05


def test_predictions_come_with_probabilities_best_first(saved: Path, tmp_path: Path) -> None:
    paths = [digit_file(tmp_path / f"{index}.png", index) for index in range(3)]
    predictions = load_model(saved, device=CPU).predict(paths, top=10)
    assert [prediction.path for prediction in predictions] == paths
    for prediction in predictions:
        assert prediction.top[0] == (prediction.label, prediction.probability)
        assert {name for name, _ in prediction.top} == set("0123456789")
        probabilities = [probability for _, probability in prediction.top]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == rounded(1, 2 * 10, torch.float32)


def test_an_image_is_seen_as_the_test_part_is(saved: Path, tmp_path: Path) -> None:
    predictor, split = load_model(saved, device=CPU), load_test_images(DIGITS)
    paths = [digit_file(tmp_path / f"{index}.png", index) for index in range(20)]
    labels = [int(prediction.label) for prediction in predictor.predict(paths)]
    correct = sum(label == int(truth) for label, truth in zip(labels, split.labels[:20], strict=True))
    part = type(split)(images=split.images[:20], labels=split.labels[:20])
    assert correct / 20 == pytest.approx(predictor.evaluate(part).accuracy)


def test_images_of_any_size_and_colour_are_taken(saved: Path, tmp_path: Path) -> None:
    for name, mode, size in [("a.png", "RGB", (90, 50)), ("b.jpg", "L", (8, 8)), ("c.png", "RGBA", (33, 32))]:
        Image.new(mode, size).save(tmp_path / name)
    predictions = load_model(saved, device=CPU).predict(sorted(tmp_path.iterdir()))
    assert len(predictions) == 3
    assert len(predictions[0].top) == 3


def test_no_images_give_no_predictions(saved: Path) -> None:
    assert load_model(saved, device=CPU).predict([]) == []


@pytest.mark.parametrize("found", ["text", "nothing", "folder"])
def test_a_file_that_is_no_image_is_named(saved: Path, tmp_path: Path, found: str) -> None:
    if found == "text":
        (tmp_path / "x.png").write_text("hello")
    elif found == "folder":
        (tmp_path / "x.png").mkdir()
    with pytest.raises(DataError, match=r"x\.png must be an image"):
        load_model(saved, device=CPU).predict([tmp_path / "x.png"])


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.yaml and model\.safetensors"):
        load_model(tmp_path)


def copy_of(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_damaged_weights_are_found(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    (folder / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(ModelError, match="damaged"):
        load_model(folder)


@pytest.mark.parametrize("text", ["[", "format: 1", "- a list"])
def test_a_damaged_card_is_found(saved: Path, tmp_path: Path, text: str) -> None:
    folder = copy_of(saved, tmp_path)
    (folder / "model.yaml").write_text(text)
    with pytest.raises(ModelError, match=r"model\.yaml must describe a model"):
        load_model(folder)


def test_a_model_replaces_a_model_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    folder = copy_of(saved, tmp_path)
    config, weights = trained(tmp_path / "checkpoints")
    card = save_model(folder, weights, configuration=config, data=digits(), metrics={"val_accuracy": 0.9})
    assert load_model(folder, device=CPU).card == card
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "mine.png").write_bytes(b"")
    with pytest.raises(ModelError, match="Choose another name"):
        save_model(tmp_path / "photos", weights, configuration=config, data=digits(), metrics={})
    assert (tmp_path / "photos" / "mine.png").exists()
