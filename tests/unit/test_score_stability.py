"""The benchmark that compares scores with those of other weights, images and resolutions."""

import json
import math
from pathlib import Path

import pytest

from benchmarks.score_stability import agreement, main
from search_spaces.recipes import PluginChoice

CHOICE = PluginChoice(name="snip")


class Known:
    """Scores by topology."""

    def __init__(self, values: list[float]) -> None:
        self._values = {f"pit:{number}": (value, 0.0) for number, value in enumerate(values)}

    def find(self, topology: str, choice: PluginChoice) -> tuple[float, float] | None:
        assert choice == CHOICE
        return self._values.get(topology)


def test_the_agreement_is_tau_over_the_topologies_with_both_scores() -> None:
    names = [f"pit:{number}" for number in range(6)]
    files = {"first": Known([1, 2, 3, 4, 5, 6]), "same": Known([2, 4, 6, 8, math.nan]), "turned": Known([4, 3, 2, 1])}
    found = agreement(names, [CHOICE], files)  # type: ignore[arg-type]
    assert found == {"snip": {"same": (1.0, 4), "turned": (-1.0, 4)}}
    assert agreement(names[:3], [CHOICE], files) == {}  # type: ignore[arg-type]


def test_scores_are_compared_with_those_of_other_weights_images_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"arch": f"1,1|1,{heads}|1,2|2,{width},16", "c100_base_acc": 50 + heads + width}
        for heads in (1, 2)
        for width in (4, 8, 12)
    ]
    (tmp_path / "pit-cifar100.json").write_text(json.dumps(rows), encoding="utf-8")
    given = ["--tables", tmp_path, "--cache", tmp_path / "cache", "--proxies", "params", "snip", "--topologies", 5]
    more = ["--size", 32, "--other-sizes", 48, "--batch-size", 2, "--threads", 1, "--json", tmp_path / "out.json"]
    monkeypatch.setattr("sys.argv", ["score_stability", *map(str, [*given, *more])])
    main()
    report = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    names = ["other weights", "other images", "48 px"]
    assert list(report["images"]) == list(report["seconds"]) == ["first", *names]
    assert report["images"]["48 px"] == "2 noise images at 48 px"
    found = report["agreement"]["pit"]
    assert [found["params"][name] for name in names] == [[1.0, 5]] * 3  # the size of the images does not matter to it
    assert all(found["snip"][name][1] == 5 for name in names)
    lines = [json.loads(file.read_text().splitlines()[0]) for file in (tmp_path / "cache").glob("*.jsonl")]
    assert len({line["scores"]["snip"][2] for line in lines}) == len({line["topology"] for line in lines}) * 4 == 4
    assert "pit: tau between the first scores" in capsys.readouterr().out
    assert main() is None
    assert "first:" not in capsys.readouterr().out  # all scores are known
