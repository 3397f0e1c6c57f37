"""The report on a study: complete for a finished study, for one of an older version, and for one without results."""

import shutil
from pathlib import Path

import pytest

from orchestrator.settings import load_settings
from orchestrator.store.repository import Store
from orchestrator.study.report import ReportNotWrittenError, html_report, save_report
from tests.golden.test_homes import HOMES
from tests.tiny import CommandLine, FinishedStudy, write_tiny
from tests.unit.test_page import read

SECTIONS = ("data", "way", "spent", "champion", "mistakes", "trials", "curves", "methods", "scores", "reuse")


@pytest.fixture(scope="module")
def html(tiny: FinishedStudy) -> str:
    return html_report("tiny", tiny.settings)


def test_the_report_tells_the_story_of_a_finished_study(html: str, tiny: FinishedStudy) -> None:
    champion = tiny.champion
    assert [section for section in SECTIONS if f'<section id="{section}">' not in html] == []
    for told in (
        f"{champion['parameters']:,.0f} parameters",
        f"{100 * champion['test_accuracy']:.2f} %",
        "7 topologies scored without training and 9 trained models",
        "networks grown",
        "warm_start: {study: tiny, top: 5}",
        "vitsearch predict tiny photo.jpg",
        champion["configuration"]["topology"],
    ):
        assert told in html, told
    reader = read(html)
    assert html.count("<title>trial ") >= 9, "points have titles"
    assert html.count('src="data:image/png;base64,') == len(list(tiny.home.rglob("mistakes.png")))
    assert not {"link", "iframe", "object"} & set(reader.tags)


def test_the_report_of_an_older_version_leaves_out_what_was_not_recorded(command_line: CommandLine) -> None:
    shutil.copytree(HOMES / "0.1.0" / "home", command_line.home)
    done = command_line("report", "finished", "--format", "json")
    assert done.status == 0, done.err
    html = Path(done.json()["file"]).read_text(encoding="utf-8")
    assert done.json()["num_bytes"] == len(html.encode())
    assert 'id="mistakes"' not in html
    assert [section for section in SECTIONS if f'<section id="{section}">' not in html] == ["data", "mistakes"]


def test_a_file_that_exists_is_refused_before_the_report_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    monkeypatch.setattr("orchestrator.study.report.html_report", lambda name, _: made.append(name) or "<html>")
    settings = load_settings(home=tmp_path / "home")
    (tmp_path / "old.html").write_text("old")
    with pytest.raises(ReportNotWrittenError, match="must not exist yet"):
        save_report("tiny", tmp_path / "old.html", settings)
    with pytest.raises(ReportNotWrittenError, match="No such file or directory"):
        save_report("tiny", tmp_path / "no" / "new.html", settings)
    assert made == []
    assert save_report("tiny", tmp_path / "old.html", settings, overwrite=True).read_text() == "<html>"


def test_a_study_that_has_only_begun_has_a_report(tmp_path: Path, command_line: CommandLine) -> None:
    from orchestrator.spec.study_file import load_spec

    spec = load_spec(write_tiny(tmp_path))
    settings = load_settings(home=command_line.home)
    command_line.home.mkdir()
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    names = [(stage.name, stage.stage) for stage in spec.stages]
    content = spec.model_dump(mode="json")
    store.create_study("tiny", spec=content, digest=spec.digest, data_digest="d", stage_names=names)
    store.close()
    assert command_line("report", "tiny", "--out", "begun.html").status == 0
    html = Path("begun.html").read_text(encoding="utf-8")
    assert "The study is waiting." in html
    assert [section for section in SECTIONS if f'<section id="{section}">' in html] == ["reuse"]
    again = command_line("report", "tiny", "--out", "begun.html")
    assert (again.status, again.err) == (
        1,
        "vitsearch: begun.html must not exist yet, but does. Add --overwrite, or name another.\n",
    )
    assert command_line("report", "tiny", "--out", "begun.html", "--overwrite").status == 0
    assert command_line("report", "tiny", "--out", "no/folder.html").status == 1
    assert command_line("report", "tini").status == 2
