"""Weights in files: model folders, safetensors, torch checkpoints with timm's names, and the copy for a training."""

import dataclasses
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from search_spaces.base import ImageTask
from tests.rounding import assert_rounded
from tests.unit.training import CPU, configuration, digits, run
from trainers.champion import load_model, save_model, train_configuration
from trainers.config import Configuration, InitialWeights, TrainTask
from trainers.export_formats import ExportFormat
from trainers.exporting import export_model
from trainers.models.building import build_model
from trainers.training.checkpoints import accepted_digests, configuration_digest, load_weights
from trainers.training.loop import train
from trainers.training.packed import train_packed
from trainers.training.reporting import SilentReporter
from trainers.weights.errors import WeightsError
from trainers.weights.fitting import load_initial
from trainers.weights.prepared import read_prepared, write_prepared
from trainers.weights.reading import read_weights

WIDTH, HEADS, DEPTH, PATCH, SIZE = 12, 3, 2, 8, 32
PLAIN = f"autoformer:{HEADS},2|{HEADS},2|{WIDTH},{PATCH}"
TASK = ImageTask(image_size=SIZE, in_channels=3, num_classes=5)


def timm_state(*, scales: bool = False, prefix: int = 1) -> dict[str, Tensor]:
    """Random weights of a plain vision transformer under timm's names."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    state = {
        "cls_token": draw(1, 1, WIDTH),
        "pos_embed": draw(1, prefix + (SIZE // PATCH) ** 2, WIDTH),
        "patch_embed.proj.weight": draw(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
    }
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        state |= {
            f"{block}.norm1.weight": draw(WIDTH),
            f"{block}.norm1.bias": draw(WIDTH),
            f"{block}.attn.qkv.weight": draw(3 * WIDTH, WIDTH),
            f"{block}.attn.qkv.bias": draw(3 * WIDTH),
            f"{block}.attn.proj.weight": draw(WIDTH, WIDTH),
            f"{block}.attn.proj.bias": draw(WIDTH),
            f"{block}.norm2.weight": draw(WIDTH),
            f"{block}.norm2.bias": draw(WIDTH),
            f"{block}.mlp.fc1.weight": draw(2 * WIDTH, WIDTH),
            f"{block}.mlp.fc1.bias": draw(2 * WIDTH),
            f"{block}.mlp.fc2.weight": draw(WIDTH, 2 * WIDTH),
            f"{block}.mlp.fc2.bias": draw(WIDTH),
        }
        if scales:
            state |= {f"{block}.ls1.gamma": draw(WIDTH), f"{block}.ls2.gamma": draw(WIDTH)}
    state |= {"norm.weight": draw(WIDTH), "norm.bias": draw(WIDTH)}
    return state | {"head.weight": draw(7, WIDTH), "head.bias": draw(7)}


def timm_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """timm's forward pass up to the mean of the normed patch tokens, written from its definition."""

    def norm(tokens: Tensor, name: str) -> Tensor:
        return F.layer_norm(tokens, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def linear(tokens: Tensor, name: str) -> Tensor:
        return F.linear(tokens, state[f"{name}.weight"], state[f"{name}.bias"])

    grid = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=PATCH)
    tokens = grid.flatten(2).transpose(1, 2)
    tokens = torch.cat([state["cls_token"].expand(len(images), -1, -1), tokens], 1) + state["pos_embed"]
    for block in (f"blocks.{index}" for index in range(DEPTH)):
        shape = (*tokens.shape[:2], 3, HEADS, WIDTH // HEADS)
        query, key, value = (
            linear(norm(tokens, f"{block}.norm1"), f"{block}.attn.qkv").view(shape).permute(2, 0, 3, 1, 4)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        branch = linear(mixed, f"{block}.attn.proj")
        tokens = tokens + branch * state.get(f"{block}.ls1.gamma", torch.ones(1))
        hidden = F.gelu(linear(norm(tokens, f"{block}.norm2"), f"{block}.mlp.fc1"))
        tokens = tokens + linear(hidden, f"{block}.mlp.fc2") * state.get(f"{block}.ls2.gamma", torch.ones(1))
    return norm(tokens, "norm")[:, 1:].mean(1)


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("form", ["file.safetensors", "file.pth"])
def test_timms_weights_give_timms_features(tmp_path: Path, form: str, scales: bool) -> None:
    state = timm_state(scales=scales)
    path = tmp_path / form
    if form.endswith("pth"):
        saved(path, {"model": {f"module.{name}": value for name, value in state.items()}, "epoch": 3})
    else:
        save_file(state, path)
    model = build_model(PLAIN, TASK, seed=0, device=CPU)
    found = load_initial(model, read_weights(path, source=form), PLAIN, tuple("abcde"))
    assert found.text == "starts from 30 of 32 tensors; a new last layer for 5 classes"
    images = torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    ours = model.eval().get_submodule("norm")(model._tokens(images, None, None))[:, 1:].mean(1)  # type: ignore[operator]
    assert_rounded(ours.detach(), timm_features(state, images), 4 * WIDTH * DEPTH, condition=8)


def test_tokens_and_positions_that_our_model_lacks_are_ignored(tmp_path: Path) -> None:
    state = timm_state(prefix=2) | {"dist_token": torch.zeros(1, 1, WIDTH), "head_dist.bias": torch.zeros(7)}
    found = read_weights(saved(tmp_path / "deit.pth", state), source="deit.pth")
    assert found.ignored == ("dist_token", "head_dist.bias")
    assert found.ignored_text == "dist_token, head_dist.bias"
    assert dataclasses.replace(found, ignored=tuple("abcdefg")).ignored_text == "a, b, c, d, e and 2 more"
    assert torch.equal(found.tensors["position"][0, 0], state["pos_embed"][0, 0])
    assert torch.equal(found.tensors["position"][0, 1:], state["pos_embed"][0, 2:])


def test_a_model_without_a_class_token_has_no_position_for_it(tmp_path: Path) -> None:
    state = timm_state(prefix=0)
    del state["cls_token"]
    found = read_weights(saved(tmp_path / "gap.pth", state), source="gap.pth")
    assert torch.equal(found.tensors["position"][0, 1:], state["pos_embed"][0])
    assert not found.tensors["position"][0, 0].any()


class _Harm:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("executed",)


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "harm.pth"
    path.write_bytes(pickle.dumps({"model": _Harm()}))
    with pytest.raises(WeightsError, match="without executing code"):
        read_weights(path, source="harm.pth")
    with pytest.raises(WeightsError, match="without executing code"):
        read_weights(saved(tmp_path / "again.pth", {"model": _Harm()}), source="again.pth")
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("missing.safetensors", None, "must be a readable file or a model folder, but .*No such file"),
        ("weights.txt", b"x", r"ending in .safetensors, .pth, .pt, .bin, but got weights.txt"),
        ("short.safetensors", b"x", "must be a safetensors file"),
        ("short.pth", b"x", "must be a checkpoint that torch reads"),
    ],
)
def test_unusable_files_are_refused(tmp_path: Path, name: str, content: bytes | None, problem: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=problem):
        read_weights(tmp_path / name, source=name)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"must contain a state dict .*but contains list"):
        read_weights(saved(tmp_path / "list.pth", [1, 2]), source="list.pth")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained model."""
    folder = tmp_path_factory.mktemp("weights")
    config = configuration(epochs=2)
    _, weights = train_configuration(config, folder / "checkpoints", SilentReporter(), data=digits())
    assert weights is not None
    save_model(folder / "model", weights, configuration=config, data=digits(), metrics={})
    return folder / "model"


def started(model: Path, folder: Path, **fields: Any) -> Configuration:
    """A configuration that starts from a model."""
    return configuration(weights=write_prepared(folder, read_weights(model, source=str(model))), **fields)


def test_a_model_folder_tells_topology_and_classes(model: Path) -> None:
    found = read_weights(model, source="model")
    assert found.topology == configuration().topology
    assert found.class_names == digits().class_names
    assert found.task == digits().task
    assert read_weights(model / "model.safetensors", source="file").class_names == digits().class_names


def test_an_exported_file_tells_topology_and_classes(model: Path, tmp_path: Path) -> None:
    file, _ = export_model(load_model(model, device=CPU), tmp_path / "model.safetensors", ExportFormat.safetensors)
    found = read_weights(file, source="file")
    assert (found.topology, found.class_names) == (configuration().topology, digits().class_names)
    assert found.task == digits().task
    save_file(dict(found.tensors), tmp_path / "plain.safetensors", metadata={"input": "3", "class_names": "[]"})
    assert read_weights(tmp_path / "plain.safetensors", source="file").topology is None


def test_a_damaged_model_folder_is_refused(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    (copy / "model.yaml").write_bytes((model / "model.yaml").read_bytes())
    save_file({"x": torch.zeros(2)}, copy / "model.safetensors")
    with pytest.raises(WeightsError, match="must have the sha256"):
        read_weights(copy, source="copy")
    (copy / "model.yaml").unlink()
    with pytest.raises(WeightsError, match=r"must have an intact model\.yaml"):
        read_weights(copy, source="copy")


def test_the_copy_for_a_training_holds_all_that_is_needed(model: Path, tmp_path: Path) -> None:
    original = read_weights(model, source="photos@champion")
    found = read_prepared(write_prepared(tmp_path, original))
    assert {**vars(found), "tensors": 0} == {**vars(original), "tensors": 0}
    assert all(torch.equal(value, original.tensors[name]) for name, value in found.tensors.items())


def test_a_training_refuses_weights_that_are_not_those_of_its_configuration(model: Path, tmp_path: Path) -> None:
    weights = write_prepared(tmp_path, read_weights(model, source="m"))
    with pytest.raises(WeightsError, match="sha256 1111"):
        read_prepared(weights.model_copy(update={"sha256": "1111"}))
    with pytest.raises(WeightsError, match="must be read before the training begins"):
        read_prepared(InitialWeights(source="m"))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_prepared(weights.model_copy(update={"file": tmp_path / "gone"}))


def test_a_training_starts_from_the_weights(model: Path, tmp_path: Path) -> None:
    plain = run(configuration(epochs=1), tmp_path / "plain")
    warm = run(started(model, tmp_path, epochs=1), tmp_path / "warm")
    assert warm.metrics["train_loss"] < plain.metrics["train_loss"]


def test_a_training_from_weights_resumes_exactly(model: Path, tmp_path: Path) -> None:
    config = started(model, tmp_path, epochs=3)
    whole = run(config, tmp_path / "whole")

    class Stopping(SilentReporter):
        asked = 0

        def should_stop(self) -> bool:
            self.asked += 1
            return self.asked > 8

    task = TrainTask(configuration=config, folder=tmp_path / "cut")
    assert train(task, digits(), Stopping(), CPU).state == "interrupted"
    cut = run(config, tmp_path / "cut")
    first, second = (load_weights(outcome.checkpoints[-1].path) for outcome in (whole, cut))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_weights_are_part_of_the_identity_of_a_training_but_not_their_place() -> None:
    plain = configuration()
    one, other = (
        plain.model_copy(update={"weights": InitialWeights(source=source, sha256=sha256, file=Path(source))})
        for source, sha256 in (("a", "1"), ("b", "2"))
    )
    moved = one.model_copy(update={"weights": InitialWeights(source="elsewhere", sha256="1")})
    assert len({configuration_digest(config) for config in (plain, one, other)}) == 3
    assert configuration_digest(moved) == configuration_digest(one)
    assert configuration_digest(Configuration.model_validate(plain.model_dump(mode="json"))) == configuration_digest(
        plain
    )
    assert len(accepted_digests(plain)) == 2
    assert len(accepted_digests(one)) == 1


def test_each_training_of_a_pack_starts_from_its_weights(model: Path, tmp_path: Path) -> None:
    configs = [started(model, tmp_path, epochs=1), configuration(epochs=1)]
    alone = [run(config, tmp_path / f"alone-{index}") for index, config in enumerate(configs)]
    tasks = [
        TrainTask(configuration=config, folder=tmp_path / f"packed-{index}") for index, config in enumerate(configs)
    ]
    packed = dict(train_packed(tasks, digits(), [SilentReporter()] * 2, CPU))
    for index, one in enumerate(alone):
        assert packed[index].metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], rel=1e-4)
