"""Model folders and formulas that somebody prepared to do harm, or that are damaged: each gives one clear error."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save

from plugins.proxies.saved_formulas import SavedFormulaError, load_formula
from plugins.regular_files import UnsuitableFileError, read_regular_file
from tests.unit.training import CPU, configuration, digits
from trainers.champion import ModelError, load_model, save_model
from trainers.models.building import build_model
from trainers.training.checkpoints import sha256_of
from trainers.weights.errors import WeightsError
from trainers.weights.reading import read_weights

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, config = tmp_path_factory.mktemp("model") / "model", configuration()
    weights = build_model(config.topology, digits().task, seed=0, device=CPU).state_dict()
    save_model(folder, weights, configuration=config, data=digits(), metrics={})
    return folder


@pytest.fixture
def folder(intact: Path, tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for path in intact.iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    return tmp_path / "model"


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = yaml.safe_load((folder / "model.yaml").read_text())
    change(card)
    (folder / "model.yaml").write_text(yaml.safe_dump(card))


def change_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    content = save(tensors)
    (folder / "model.safetensors").write_bytes(content)
    change_card(folder, lambda card: card.update(weights_sha256=sha256_of(content)))


def test_the_folder_that_the_others_are_made_from_is_read(folder: Path) -> None:
    change_tensors(folder, dict)
    assert load_model(folder, device=CPU).card.task == digits().task
    assert read_weights(folder, source="it").tensors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card["task"].update(image_size=100_000), "task.image_size: .*less than or equal to 1024"),
        (lambda card: card["task"].update(num_classes=10**9), "task.num_classes: .*100000"),
        (lambda card: card["task"].update(in_channels=2), "1 .grey. or 3"),
        (lambda card: card.update(class_names=["a", "b"]), "must have 10 names, but has 2"),
        (lambda card: card.update(std=[0.0]), "std.*above 0"),
        (lambda card: card.update(std=[float("inf")]), "std.*finite"),
        (lambda card: card.update(mean=[float("nan")]), "mean.*finite"),
        (lambda card: card.update(mean=[0.5, 0.5]), "mean.*per channel"),
        (lambda card: card.update(temperature=float("inf")), "temperature"),
        (lambda card: card.update(scales={"I;16": 0.0}), "scales.*above 0"),
        (lambda card: card["configuration"].update(topology="pit:9999,2|6,4|4,8|4,24,16"), "at most 1,000"),
        (lambda card: card["configuration"].update(topology="autoformer:3,9999|9999,9999,2"), "image size|patch"),
        (
            lambda card: card["configuration"].update(topology="autoformer:" + "1,9999|" * 1000 + "9999,2"),
            "at most 17,179,869,184 bytes",
        ),
        (lambda card: card["configuration"].update(topology="nonsense:1"), "nonsense"),
    ],
)
def test_values_of_a_card_are_checked_before_a_model_is_built(
    folder: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_card(folder, change)
    with pytest.raises(ModelError, match=rf"(?s)model\.yaml must describe a model.*{message}"):
        load_model(folder, device=CPU)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.clear(), "the file lacks it"),
        (lambda tensors: tensors.pop(min(tensors)), "the file lacks it"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "the file has extra"),
        (lambda tensors: tensors.update({name: value[None] for name, value in tensors.items()}), "must have the shape"),
        (
            lambda tensors: tensors.update({name: value.int() for name, value in tensors.items()}),
            "float32, but has int",
        ),
        (lambda tensors: tensors.update({name: value.half() for name, value in tensors.items()}), "but has float16"),
        (lambda tensors: min(tensors.values(), key=torch.numel).fill_(torch.nan), "NaN or infinity"),
        (lambda tensors: max(tensors.values(), key=torch.numel).view(-1)[-1:].fill_(-torch.inf), "NaN or infinity"),
    ],
)
def test_tensors_are_checked_before_a_model_is_built(
    folder: Path, change: Callable[[Tensors], object], message: str
) -> None:
    change_tensors(folder, change)
    with pytest.raises(ModelError, match=rf"model\.safetensors must have the weights.*{message}"):
        load_model(folder, device=CPU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 10}]\n" for n in range(1, 10)),
            "at most",
        ),
        ("&a\nb: [*a]\n", "must not contain itself"),
        ("a: " + "[" * 5000, "levels deep"),
        ("!!python/object/apply:os.system [echo]\n", "tag"),
        ("a: 2020-13-45\n", "plain value"),
        ("a: 2020-01-01\n", "text, a number"),
        ("a: " + "9" * 5000 + "\n", "plain value"),
        ("\x00", "must be YAML"),
    ],
)
def test_a_card_has_the_limits_of_a_study_file(folder: Path, text: str, message: str) -> None:
    (folder / "model.yaml").write_text(text)
    with pytest.raises(ModelError, match=message):
        load_model(folder, device=CPU)
    with pytest.raises(WeightsError, match=message):
        read_weights(folder, source="it")


@pytest.mark.parametrize("name", ["model.yaml", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "huge"])
def test_devices_pipes_and_huge_files_are_refused(folder: Path, name: str, kind: str) -> None:
    file = folder / name
    if kind == "huge":
        os.truncate(file, 2**34 + 1)  # sparse
    else:
        file.unlink()
        os.mkfifo(file) if kind == "pipe" else file.symlink_to("/dev/zero")
    with pytest.raises(ModelError, match="bytes" if kind == "huge" else "must be a regular file"):
        load_model(folder, device=CPU)
    with pytest.raises(WeightsError, match="bytes" if kind == "huge" else "must be a regular file"):
        read_weights(folder, source="it")


def test_weights_to_start_from_must_be_finite_numbers(folder: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({name: value.int() for name, value in tensors.items()}))
    with pytest.raises(WeightsError, match="whole numbers"):
        read_weights(folder, source="it")
    change_tensors(
        folder, lambda tensors: tensors.update({name: value.float() + torch.nan for name, value in tensors.items()})
    )
    with pytest.raises(WeightsError, match="NaN or infinity"):
        read_weights(folder, source="it")


def test_class_names_that_look_like_numbers_are_read_as_they_were_saved(folder: Path) -> None:
    names = ["1e5", "0x1F", "no", "null", "1:30", "010", ".nan", "~", "2020-01-01", ""]
    change_card(folder, lambda card: card.update(class_names=names))
    assert load_model(folder, device=CPU).card.class_names == tuple(names)


def test_a_saved_formula_must_be_a_small_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "large.txt").write_text("#" * 100_000)
    for name in ("pipe.txt", "large.txt"):
        with pytest.raises(SavedFormulaError, match=name):
            load_formula(tmp_path / name)


def test_a_path_with_a_null_byte_is_an_unsuitable_file() -> None:
    with pytest.raises(UnsuitableFileError, match="null byte"):
        read_regular_file(Path("a\0b"), max_bytes=1)


def test_a_folder_is_an_unsuitable_file_and_is_closed_again(tmp_path: Path) -> None:
    opened = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(UnsuitableFileError, match="is a folder"):
            read_regular_file(tmp_path, max_bytes=1)
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


def test_a_file_that_grows_while_it_is_read_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "growing"
    file.write_bytes(b"x" * 100_000)
    monkeypatch.setattr("plugins.regular_files.os.fstat", lambda _descriptor: os.stat_result((0o100644, *[0] * 9)))
    with pytest.raises(UnsuitableFileError, match="must not grow"):
        read_regular_file(file, max_bytes=1 << 20)


def test_a_small_file_takes_little_memory_whatever_its_largest_size(tmp_path: Path) -> None:
    file = tmp_path / "small"
    file.write_bytes(b"content")
    tracemalloc.start()
    try:
        assert read_regular_file(file, max_bytes=1 << 36) == b"content"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
