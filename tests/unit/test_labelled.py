"""Labelled images on which a model is evaluated: which part, which classes, and what is said about the rest."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from search_spaces.base import ImageTask
from tests.unit.training import CPU, DIGITS, configuration, digits
from trainers.champion import load_model, save_model
from trainers.config import DataConfig
from trainers.data.images import load_images, load_test_images
from trainers.data.labelled import ModelInput, load_labelled
from trainers.data.listing import DataError
from trainers.models.building import build_model

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def write_images(
    folder: Path, colour: str, count: int, *, name: str | None = None, size: tuple[int, int] = (20, 12)
) -> None:
    """Images of one colour, each of another brightness, in a class folder."""
    place = folder / (name or colour)
    place.mkdir(parents=True)
    for number in range(count):
        shade = tuple(channel * (255 - number) // 255 for channel in COLOURS[colour])
        Image.new("RGB", size, shade).save(place / f"{number:02d}.png")


def knowing(source: str | Path, *classes: str, **fields: object) -> ModelInput:
    """The input of a model of colour images, 16 x 16."""
    return ModelInput(
        data=DataConfig(source=str(source), image_size=16, resize="stretch", **fields),  # type: ignore[arg-type]
        data_digest="",
        task=ImageTask(image_size=16, in_channels=3, num_classes=len(classes)),
        class_names=classes,
        scales={},
    )


def colours_of(images: torch.Tensor) -> list[str]:
    return [list(COLOURS)[int(one.float().mean((1, 2)).argmax())] for one in images]


def test_classes_are_matched_by_name_whatever_their_order(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_images(tmp_path, colour, 4)
    found = load_labelled(str(tmp_path), knowing("elsewhere", "red", "green", "blue"))
    assert found.part == "all"
    assert found.split.images.shape == (12, 3, 16, 16)
    assert [("red", "green", "blue")[label] for label in found.split.labels] == colours_of(found.split.images)
    assert found.notes == ()


def test_unknown_and_missing_classes_are_told(tmp_path: Path) -> None:
    write_images(tmp_path, "green", 3)
    write_images(tmp_path, "red", 2, name="a stranger")
    found = load_labelled(str(tmp_path), knowing("elsewhere", "red", "green"))
    assert colours_of(found.split.images) == ["green"] * 3
    assert found.split.labels.tolist() == [1, 1, 1]
    assert found.notes == (
        "2 images left out, of classes that the model does not know: 'a stranger' (2)",
        "there are no images of 'red', which the model knows",
    )


def test_a_source_without_a_known_class_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "green", 3)
    with pytest.raises(DataError, match=r"model's classes \(cat, dog\), but are green\. Rename"):
        load_labelled(str(tmp_path), knowing("elsewhere", "cat", "dog"))


def test_the_test_part_is_the_default_and_others_are_evaluated_on_request(tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 4), ("test", 3)):
        for colour in COLOURS:
            write_images(tmp_path / part, colour, count)
    known = knowing("elsewhere", *COLOURS)
    found = load_labelled(str(tmp_path), known)
    assert (found.part, found.why, len(found.split)) == ("test", "the source has a test part", 9)
    sizes = {part: len(load_labelled(str(tmp_path), known, part=part).split) for part in ("train", "validation", "all")}
    assert sizes == {"train": 15, "validation": 12, "all": 36}


def test_a_part_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_images(tmp_path, colour, 3)
    with pytest.raises(DataError, match=r"must have a test part, .* has only train. Use `part: all`"):
        load_labelled(str(tmp_path), knowing("elsewhere", *COLOURS), part="test")


def test_the_models_own_source_is_split_as_for_its_training(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_images(tmp_path, colour, 20)
    known = knowing(tmp_path, *COLOURS)
    known = known._replace(data_digest=load_images(known.data).digest)
    for source in (None, str(tmp_path), str(tmp_path / "red" / "..")):
        found = load_labelled(source, known)
        assert found.part == "test"
        assert torch.equal(found.split.images, load_test_images(known.data).images)
        assert found.notes == ()
    assert "figures are too good" in load_labelled(None, known, part="train").notes[0]
    assert len(load_labelled(None, known, part="all").split) == 60


def test_a_warning_tells_that_the_models_own_source_has_changed(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_images(tmp_path, colour, 20)
    (note,) = load_labelled(None, knowing(tmp_path, *COLOURS)).notes
    assert "have changed since the model was trained" in note


def test_a_broken_image_is_named_or_left_out_and_counted(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_images(tmp_path, colour, 3)
    (tmp_path / "red" / "00.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"00\.png must be an image that Pillow can read"):
        load_labelled(str(tmp_path), knowing("elsewhere", *COLOURS))
    found = load_labelled(str(tmp_path), knowing("elsewhere", *COLOURS, skip_broken=True))
    assert len(found.split) == 8
    assert found.names is None
    assert any("broken" in note for note in found.notes)


def test_images_have_their_names(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_images(tmp_path, colour, 2)
    found = load_labelled(str(tmp_path), knowing("elsewhere", *COLOURS))
    assert found.names is not None
    names = [Path(name).relative_to(tmp_path) for name in found.names.of([5, 0])]
    assert [name.parts[0] for name in names] == colours_of(found.split.images[[5, 0]])


def test_a_table_and_a_parquet_file_are_read_like_a_folder(tmp_path: Path) -> None:
    for colour in COLOURS:
        write_images(tmp_path / "folder", colour, 3)
    files = sorted((tmp_path / "folder").rglob("*.png"))
    rows = [(str(file.relative_to(tmp_path)), file.parent.name) for file in files]
    (tmp_path / "labels.csv").write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    columns = {"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]}
    pq.write_table(pa.table({**columns, "label": [label for _, label in rows]}), tmp_path / "images.parquet")
    known = knowing("elsewhere", "green", "red", "blue")
    folder = load_labelled(str(tmp_path / "folder"), known)
    for other in ("labels.csv", "images.parquet"):
        found = load_labelled(str(tmp_path / other), known)
        assert torch.equal(found.split.images, folder.split.images)
        assert torch.equal(found.split.labels, folder.split.labels)
        assert found.names is not None
        assert len(set(found.names.of(range(9)))) == 9


def test_noise_is_refused() -> None:
    with pytest.raises(DataError, match="random labels"):
        load_labelled("noise", knowing("elsewhere", "0", "1"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of digits with random weights and a temperature."""
    folder, config = tmp_path_factory.mktemp("model") / "model", configuration()
    model = build_model(config.topology, digits().task, seed=0, device=CPU)
    save_model(folder, model.state_dict(), configuration=config, data=digits(), metrics={}, temperature=2.0)
    return folder


def test_a_model_is_evaluated_on_its_test_part_by_default(model_folder: Path) -> None:
    predictor = load_model(model_folder, device=CPU)
    report = predictor.evaluate_on()
    expected = predictor.evaluate(load_test_images(DIGITS))
    assert report.part == "test"
    assert {name: one.value for name, one in report.metrics.items()} == expected.metrics
    assert report.calibration.temperature == 2.0
    assert report.source == "digits"


def test_a_model_is_evaluated_on_a_folder_as_it_predicts_its_files(model_folder: Path, tmp_path: Path) -> None:
    test = load_test_images(DIGITS)
    for number in range(24):
        place = tmp_path / str(int(test.labels[number]))
        place.mkdir(exist_ok=True)
        Image.fromarray(test.images[number, 0].numpy()).save(place / f"{number}.png")
    predictor = load_model(model_folder, device=CPU)
    report = predictor.evaluate_on(tmp_path)
    predictions = predictor.predict(sorted(tmp_path.rglob("*.png")))
    wrong = {str(one.path): one for one in predictions if one.path and one.label != one.path.parent.name}
    assert report.num_images == 24
    assert report.num_mistakes == len(wrong) > 0
    for one in report.mistakes:
        assert one.name is not None
        assert one.prediction == wrong[one.name].label
        assert one.probability == pytest.approx(wrong[one.name].probability, rel=1e-5)
    assert np.sum(report.confusion) == 24
