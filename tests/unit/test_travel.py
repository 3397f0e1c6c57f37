"""The benchmark of scores on tables that are left out: score files, order and reading of tables."""

import json
import math
import time
from pathlib import Path

import pytest
import torch

from benchmarks._travel_scores import ScoreFile, Scoring, natural_batch, noise_batch, score_missing
from benchmarks.travel import (
    TABLE_TASK,
    main,
    read_tables,
    scoring_order,
    travel_table,
)
from plugins.registry import load, parse_topology
from search_spaces.recipes import PluginChoice

SMALL = TABLE_TASK.model_copy(update={"image_size": 32})
CHOICES = [PluginChoice(name=name) for name in ("params", "weight-norm")]
TOPOLOGIES = [f"pit:1,1|1,{heads}|1,2|2,{width},16" for heads in (1, 2) for width in (4, 8)]


def _scoring(seed: int = 0) -> Scoring:
    return Scoring(batch=noise_batch(num_images=2, image_size=32), num_classes=100, seed=seed)


def _score(file: ScoreFile, topologies: list[str], scoring: Scoring) -> list[str]:
    found = score_missing(topologies, CHOICES, scoring, file, deadline=time.monotonic() + 600)
    return [topology for topology, _ in found]


def test_an_interrupted_scoring_goes_on_and_damaged_lines_are_scored_again(tmp_path: Path) -> None:
    scoring = _scoring()
    file = ScoreFile(tmp_path / "new", scoring)
    assert _score(file, TOPOLOGIES[:2], scoring) == TOPOLOGIES[:2]
    text = file.path.read_text(encoding="utf-8")
    file.path.write_text(text[: len(text) - 20], encoding="utf-8")
    again = ScoreFile(tmp_path / "new", scoring)
    assert again.find(TOPOLOGIES[0], CHOICES[1]) is not None
    assert _score(again, TOPOLOGIES, scoring) == TOPOLOGIES[1:]
    assert _score(ScoreFile(tmp_path / "new", scoring), TOPOLOGIES, scoring) == []


def test_scores_of_another_seed_or_code_are_unknown_unless_any_code_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scoring = _scoring()
    _score(ScoreFile(tmp_path, scoring), TOPOLOGIES[:1], scoring)
    assert ScoreFile(tmp_path, _scoring(seed=1)).find(TOPOLOGIES[0], CHOICES[1]) is None
    monkeypatch.setattr("benchmarks._travel_scores.scoring_code", lambda proxy, space: "other")  # noqa: ARG005
    assert ScoreFile(tmp_path, scoring).find(TOPOLOGIES[0], CHOICES[1]) is None
    assert ScoreFile(tmp_path, scoring, any_code=True).find(TOPOLOGIES[0], CHOICES[1]) is not None
    other = PluginChoice(name="weight-norm", settings={"repeats": 2})
    assert ScoreFile(tmp_path, scoring, any_code=True).find(TOPOLOGIES[0], other) is None


def test_nothing_is_begun_after_the_deadline(tmp_path: Path) -> None:
    scoring = _scoring()
    file = ScoreFile(tmp_path, scoring)
    assert list(score_missing(TOPOLOGIES, CHOICES, scoring, file, deadline=time.monotonic() - 1)) == []


def test_topologies_are_scored_alternately_from_each_space_in_random_order() -> None:
    spaces = {"a": [f"a:{number}" for number in range(9)], "b": ["b:0", "b:1"]}
    order = scoring_order(spaces, None, seed=0)
    assert [name[0] for name in order[:4]] == ["a", "b", "a", "b"]
    assert sorted(order) == sorted([*spaces["a"], *spaces["b"]])
    assert scoring_order(spaces, 2, seed=0) == order[:4]
    assert order != scoring_order(spaces, None, seed=1)


def test_images_are_read_from_a_parquet_file_and_normalised(tmp_path: Path) -> None:
    import io

    import pyarrow
    import pyarrow.parquet as parquet
    from PIL import Image

    def png(value: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (value, 2 * value, 3 * value)).save(file, "PNG")
        return file.getvalue()

    rows = {"image": [png(value) for value in (10, 20, 60)], "label": [0, 1, 2]}
    parquet.write_table(pyarrow.table(rows), tmp_path / "train.parquet")
    batch = natural_batch(tmp_path / "train.parquet", num_images=3, image_size=16)
    assert batch.images.shape == (3, 3, 16, 16)
    assert batch.images.mean((0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert batch.images.std((0, 2, 3)).tolist() == pytest.approx([1, 1, 1], rel=1e-6)
    means = batch.images.mean((1, 2, 3))
    assert means.argsort().tolist() == batch.labels.tolist() == [0, 1, 2]
    assert len({batch.digest, noise_batch(num_images=3, image_size=16).digest}) == 2
    assert torch.isfinite(batch.images).all()


def _write_table(folder: Path, count: int) -> None:
    rows = [
        {"arch": topology.partition(":")[2], "c100_base_acc": 50 + number, "c100_kd_acc": 60 - number}
        for number, topology in enumerate(TOPOLOGIES[:count])
    ]
    (folder / "pit-cifar100.json").write_text(json.dumps(rows), encoding="utf-8")


def test_a_file_has_one_table_per_target_with_the_facts_of_its_data(tmp_path: Path) -> None:
    _write_table(tmp_path, 4)
    spaces, tables = read_tables(tmp_path)
    assert spaces == {"pit": TOPOLOGIES}
    assert [table.table.title for table in tables] == ["pit, cifar100, scratch", "pit, cifar100, distilled"]
    assert [table.facts.is_distilled for table in tables] == [False, True]
    assert tables[1].table.accuracies == [60, 59, 58, 57]
    (tmp_path / "pit-unknown.json").write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="IMAGES_PER_CLASS"):
        read_tables(tmp_path)
    with pytest.raises(ValueError, match="must have tables"):
        read_tables(tmp_path / "missing")


def test_a_table_of_too_few_scored_topologies_is_an_error(tmp_path: Path) -> None:
    _write_table(tmp_path, 4)
    _, tables = read_tables(tmp_path)
    scoring = _scoring()
    file = ScoreFile(tmp_path, scoring)
    file.keep(TOPOLOGIES[0], CHOICES, {"params": (1.0, 0.0), "weight-norm": (math.nan, 0.0)})
    with pytest.raises(ValueError, match="at least 10 topologies with all scores, but has 1"):
        travel_table(tables[0], CHOICES, file, TOPOLOGIES)


def _few_step_arguments(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give `main` a table of ten topologies, returned as text, and the option of a training step."""
    texts = [f"1,1|1,{heads}|1,2|2,{width},16" for heads in (1, 2) for width in (4, 8, 12, 16, 20)]
    rows = [
        {"arch": text, "c100_base_acc": 50 + number, "c100_kd_acc": 60 - number} for number, text in enumerate(texts)
    ]
    (folder / "pit-cifar100.json").write_text(json.dumps(rows), encoding="utf-8")
    monkeypatch.setattr("benchmarks.travel.FEW_STEP", PluginChoice(name="few-step-loss", settings={"steps": 1}))
    given = ["--tables", folder, "--cache", folder / "cache", "--proxies", "weight-norm", "--size", 32]
    more = ["--batch-size", 4, "--resamples", 100, "--few-step", 10, "--threads", 1, "--json", folder / "out.json"]
    monkeypatch.setattr("sys.argv", ["travel", *map(str, [*given, *more])])
    monkeypatch.setattr("benchmarks.travel.RULES", {})
    return texts


def test_the_loss_after_a_few_steps_is_judged_apart_with_its_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = _few_step_arguments(tmp_path, monkeypatch)
    main()
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    apart = report["few_step"]
    assert {row["proxy"] for row in apart["verdicts"]} >= {"few-step-loss", "params", "flops", "depth"}
    assert "few-step-loss" not in {row["proxy"] for row in report["verdicts"]}
    assert apart["topologies"] == {"pit": 10}
    macs = [load("spaces", "pit").costs(parse_topology(f"pit:{text}"), SMALL).macs for text in texts]
    assert apart["training_macs"] == pytest.approx(sum(macs) / 10 * (3 * 1 * 2 + 4))  # a step of 2 images, a pass of 4
    assert "after 1 training steps" in capsys.readouterr().out


def test_the_report_is_written_before_the_training_steps_which_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _few_step_arguments(tmp_path, monkeypatch)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("made-up failure")

    monkeypatch.setattr("benchmarks.travel._few_step", fails)
    with pytest.raises(RuntimeError, match="made-up"):
        main()
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert {row["proxy"] for row in report["verdicts"]} >= {"weight-norm", "params"}
    assert "few_step" not in report
