"""Studies that somebody sent: their paths, and where they may lead."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.spec import study_file
from orchestrator.spec.problems import Problem
from orchestrator.spec.study_file import parse_spec
from trainers.config import DataConfig
from trainers.yaml_source import SpecError

STUDY = """\
study: sent
data: {{source: {source}}}
stages:
  - {{stage: train, topologies: ["as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"], num_trials: 2, epochs: 1{more}}}
"""


def check(root: Path, source: str, more: str = "") -> str:
    text = STUDY.format(source=source, more=more)
    return parse_spec(text.encode(), "sent.yaml", folder=root, roots=[root]).data.source


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "photos" / name / f"{number}.png")
    return folder


def test_a_relative_path_is_relative_to_the_given_folder(root: Path) -> None:
    assert check(root, "photos") == str(root / "photos")
    assert check(root, str(root / "photos")) == str(root / "photos")
    assert check(root, "digits") == "digits"


@pytest.mark.parametrize("source", ["/etc", "../secret", "photos/../../secret", "~root", "link", "'/etc/passwd'"])
def test_a_path_out_of_the_roots_is_rejected_whether_or_not_it_exists(root: Path, source: str) -> None:
    (root / "link").symlink_to("/usr")
    with pytest.raises(SpecError, match=r"sent\.yaml:2: data\.source: must be inside a data folder") as one:
        check(root, source)
    assert one.value.others == ()


@pytest.mark.parametrize("more", ["", ", epoch: 3"])
def test_without_data_folders_no_file_is_looked_at(more: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = []

    def source_problems(data: DataConfig) -> Sequence[Problem]:
        looked_at.append(data)
        return ()

    monkeypatch.setattr(study_file, "source_problems", source_problems)
    with pytest.raises(SpecError, match=r"data\.source: must be inside a data folder of this server \(none\)"):
        parse_spec(STUDY.format(source=root / "photos", more=more).encode(), "sent.yaml", folder=root, roots=[])
    assert looked_at == []


@pytest.mark.parametrize(
    "more",
    [", weights: /etc/passwd", ", teacher: ../model", ", warm_start: {file: /etc/hosts}", ", recipe: {loss: /x}"],
)
def test_the_other_paths_of_a_study_are_checked_as_well(root: Path, more: str) -> None:
    with pytest.raises(SpecError, match=r"sent\.yaml:4: .*must be inside a data folder of this server"):
        check(root, "photos", more)


def test_all_mistakes_are_reported_with_the_lines_of_the_text(root: Path) -> None:
    with pytest.raises(SpecError) as caught:
        check(root, "photos", ", epoch: 3")
    assert str(caught.value).startswith("sent.yaml:4: stages[0].epoch: must be one of the keys")
