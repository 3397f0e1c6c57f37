"""A proxy in its own package is found by its entry point, and one command judges it and states its cost."""

import json
import os
import random
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from plugins import registry
from tests.tiny import start

SPACE = registry.create_space("as-vit", {"width": 8})
TIMEOUT_S = 900.0

MODULE = '''\
"""A score of one's own."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from my_helper import measure
from plugins.protocols import Candidate, PluginCard, ProxyScore


@dataclass(frozen=True, kw_only=True)
class MyScore:
    """Prefers what is wide."""

    card: ClassVar[PluginCard] = PluginCard(source="here", cost="nothing")
    direction: ClassVar[str] = "maximize"

    def score(self, candidate: Candidate) -> ProxyScore:
        print("this would make the JSON on stdout unreadable")
        with Path(os.environ["CALLS"]).open("a") as calls:
            print(type(self).__name__, file=calls)
        return ProxyScore(measure(candidate.topology))


@dataclass(frozen=True, kw_only=True)
class MyOther(MyScore):
    """The opposite."""

    def score(self, candidate: Candidate) -> ProxyScore:
        return ProxyScore(-super().score(candidate).value)
'''
HELPER = """\
def measure(topology):
    return float(sum(map(ord, topology.text)))
"""


class Package:
    """A folder with a module and its entry points, as pip leaves it; not installed, but on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder / "site", folder / "home"
        self.calls, self.table = folder / "calls.txt", folder / "small.json"
        metadata = self.folder / "my_score-0.1.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-score\nVersion: 0.1\n")
        (metadata / "entry_points.txt").write_text(
            "[vitsearch.proxies]\nmy-score = my_score:MyScore\nmy-other = my_score:MyOther\n"
        )
        (metadata / "top_level.txt").write_text("my_helper\nmy_score\n")
        (self.folder / "my_score.py").write_text(MODULE)
        (self.folder / "my_helper.py").write_text(HELPER)
        rng = random.Random(3)
        topologies = {topology.id: topology for topology in (SPACE.sample(rng) for _ in range(8))}.values()
        self.table.write_text(
            json.dumps([{"arch": one.model_dump(mode="json"), "acc": rng.random()} for one in topologies])
        )

    def correlate(self, *proxies: str) -> dict[str, Any]:
        """What the command prints."""
        words = ["correlate", "--table", self.table.name, "--space", "as-vit", "--target", "acc", "--image-size", "32"]
        words += ["--num-classes", "10", "--batch-size", "4", "--json", "--quiet", "--proxies", ",".join(proxies)]
        path = os.pathsep.join([str(self.folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = start(
            *words,
            home=self.home,
            cwd=self.table.parent,
            PYTHONPATH=path,
            CALLS=str(self.calls),
            MPLCONFIGDIR=str(self.home),
        )
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
        summary: dict[str, Any] = json.loads(out)
        return summary

    def called(self) -> Counter[str]:
        """How often each class scored since the last time."""
        found = Counter(self.calls.read_text().split() if self.calls.exists() else [])
        self.calls.unlink(missing_ok=True)
        return found

    def kept(self) -> Counter[str]:
        """Rows of the cache by proxy."""
        with closing(sqlite3.connect(self.home / "vitsearch.db")) as database:
            return Counter(name for (name,) in database.execute("SELECT proxy FROM proxy_scores"))


@pytest.fixture
def package(tmp_path: Path) -> Package:
    return Package(tmp_path)


@pytest.mark.slow
def test_a_proxy_of_another_package_is_judged_and_cached(package: Package) -> None:
    summary = package.correlate("my-score", "params")
    rows = {row["proxy"]: row for row in summary["correlation"]["proxies"]}
    assert rows["my-score"]["num_topologies"] == 8
    assert rows["my-score"]["minus"].keys() == {"params", "flops", "depth"}
    assert package.called() == {"MyScore": 9}  # the first topology is scored twice, to see that the score is repeatable

    # One more proxy of the same module is one more proxy to compute.
    other = package.correlate("my-score", "my-other", "params")
    assert package.called() == {"MyOther": 9}
    assert other["study"] != summary["study"]
    taus = {row["proxy"]: row["tau"]["value"] for row in other["correlation"]["proxies"]}
    assert taus["my-score"] == -taus["my-other"] == rows["my-score"]["tau"]["value"]

    # A change of what the module imports makes its scores out of date, and no others.
    before = package.kept()
    (package.folder / "my_helper.py").write_text(HELPER.replace("return float", "return 2 * float"))
    package.correlate("my-score", "params", "ntk-condition")
    assert package.called() == {"MyScore": 9}
    assert package.kept() - before == {"my-score": 8, "ntk-condition": 8}
