"""Champions as folders: training, saving, loading and prediction."""

from pathlib import Path
from typing import Any

import numpy as np
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
from trainers.data.listing import DataError
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


# --- images that are not files ---


def photo(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A picture with a different value in every pixel and channel, so that any turn or swap shows."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_an_image_is_predicted_alike_as_a_file_an_array_and_a_pillow_image(
    saved: Path, tmp_path: Path, mode: str
) -> None:
    predictor, image, file = load_model(saved, device=CPU), photo(mode), tmp_path / "photo.png"
    image.save(file)
    given = [str(file), file, file.read_bytes(), np.asarray(image), image]
    predictions = predictor.predict(given, top=10)
    assert [one.path for one in predictions] == [file, file, None, None, None]
    assert [one.top for one in predictions] == [predictions[0].top] * 5
    alone = [predictor.predict(one, top=10) for one in given]
    assert [len(found) for found in alone] == [1, 1, 1, 1, 1]
    assert len({found[0].top for found in alone}) == 1


def test_a_camera_that_was_turned_is_noticed_in_a_pillow_image(saved: Path, tmp_path: Path) -> None:
    file, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6  # the orientation: turn it by 90 degrees
    photo().save(file, exif=exif)
    predictor = load_model(saved, device=CPU)
    with Image.open(file) as opened:
        turned = predictor.predict([opened, file, photo()], top=10)
    assert turned[0].top == turned[1].top != turned[2].top


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_array_of_four_dimensions_is_several_images(saved: Path, channels: int) -> None:
    batch = np.random.default_rng(1).integers(0, 256, (5, 12, 9, channels), dtype=np.uint8)
    predictor = load_model(saved, device=CPU)
    together = predictor.predict(batch, top=10)
    assert together == predictor.predict(list(batch), top=10) == predictor.predict((one for one in batch), top=10)
    assert len({one.top for one in together}) == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((8, 8)), r"the image must be an array of uint8.*has the type float64.*\.astype"),
        ([np.zeros((8, 8), np.uint8), np.zeros((8, 8), bool)], r"images\[1\] must be an array of uint8.*type bool"),
        (np.zeros((2, 8, 8, 3), np.float32), r"images must be an array of uint8.*has the type float32"),
        (
            np.zeros((3, 8, 8), np.uint8),
            r"must have the shape \(H, W\).*has \(3, 8, 8\)\. Move the channels to the end",
        ),
        (np.zeros((7, 8, 8), np.uint8), r"has \(7, 8, 8\)\. Give several grey images as \(N, H, W, 1\)"),
        (np.zeros(8, np.uint8), r"has \(8,\)\. Give several images as a list"),
        (np.zeros((2, 8, 8, 2), np.uint8), r"images\[0\] must have the shape .*has \(8, 8, 2\)"),
        ([np.zeros((2, 8, 8, 3), np.uint8)], r"images\[0\] must have the shape .*has \(2, 8, 8, 3\)"),
        (np.zeros((8, 0), np.uint8), "the image must have at least one pixel, but has 8 x 0"),
        ([Image.new("L", (0, 4))], r"images\[0\] must have at least one pixel, but has 0 x 4"),
        ([torch.zeros(8, 8)], r"images\[0\] must be the path or the bytes of a file, .* but got Tensor"),
        (7, "images must be the path or the bytes of a file, .* but got int"),
        (b"new.png", "the image must be an image that Pillow can read, but: it is empty, or not an image"),
    ],
)
def test_what_is_not_an_image_is_named(saved: Path, given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        load_model(saved, device=CPU).predict(given)


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
