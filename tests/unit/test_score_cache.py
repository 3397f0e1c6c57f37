"""The score cache: a score is computed again only if topology, batch, seed, settings or code changes."""

import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, text

from orchestrator.engines.interfaces import Lost
from orchestrator.engines.pools.code_digest import code_digest
from orchestrator.engines.pools.inline import InlinePool
from orchestrator.engines.pools.score_cache import ScoreCache, ScoreCachingPool
from orchestrator.store import database
from orchestrator.store.records import ScoreKey, ScoreRecord
from orchestrator.store.repository import Store
from plugins.protocols import Candidate, ProxyScore
from plugins.proxies.flops import Flops
from plugins.proxies.params import Params
from tests.unit.training import Recorder
from trainers.config import DataConfig, ScoreTask, TaskOutcome

TEXT = "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"
NOISE = DataConfig(source="noise", image_size=32, max_images=20)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store.open(f"sqlite:///{tmp_path}/vitsearch.db")
    yield store
    store.close()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the proxies that are computed, as they are; flops fails where the list holds the word `broken`."""
    calls: list[str] = []

    def params(self: Params, candidate: Candidate) -> ProxyScore:
        calls.append("params")
        return ProxyScore(math.nan if "nan" in calls else candidate.costs.parameters / 3, 0.25)

    def flops(self: Flops, candidate: Candidate) -> ProxyScore:
        calls.append("flops")
        if "broken" in calls:
            raise OSError("no more file handles")
        return ProxyScore(1 / 3)

    monkeypatch.setattr(Params, "score", params)
    monkeypatch.setattr(Flops, "score", flops)
    return calls


def task(*proxies: Any, **fields: Any) -> ScoreTask:
    given = {"data": NOISE, "topology": TEXT, "proxies": proxies or ("params", "flops"), "batch_size": 4, "seed": 1}
    return ScoreTask.model_validate(given | fields)


def score(store: Store, given: ScoreTask) -> TaskOutcome:
    """Score as a new driver would."""
    pool = ScoreCachingPool(InlinePool(), ScoreCache(store.scores()))
    pool.submit(3, given, Recorder())
    assert pool.is_busy()
    key, outcome = pool.wait()
    assert (key, pool.is_busy()) == (3, False)
    assert isinstance(outcome, TaskOutcome)
    return outcome


def test_a_known_score_is_the_same_to_the_last_bit_and_is_not_computed(store: Store, computed: list[str]) -> None:
    first = score(store, task())
    assert computed == ["params", "flops"]
    again = score(store, task())
    assert computed == ["params", "flops"]
    assert again.state == "complete"
    assert {**again.metrics, "wall_time_s": 0} == {**first.metrics, "wall_time_s": 0}
    assert again.metrics["flops"] == 1 / 3
    assert again.metrics["params.spread"] == 0.25
    assert again.details == first.details


def test_one_more_proxy_costs_one_proxy(store: Store, computed: list[str]) -> None:
    score(store, task("flops"))
    outcome = score(store, task("params", "flops"))
    assert computed == ["flops", "params"]
    assert list(outcome.details["seconds"]) == ["flops", "params"]
    assert {"params", "flops", "parameters", "macs"} <= outcome.metrics.keys()


def test_the_work_of_a_known_score_that_trains_is_told_again(store: Store) -> None:
    few = task({"name": "few-step-loss", "steps": 1})
    metrics = [score(store, few).metrics for _ in range(2)]
    assert metrics[0]["few-step-loss.training_macs"] > 0
    assert {**metrics[0], "wall_time_s": 0} == {**metrics[1], "wall_time_s": 0}


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 2},
        {"batch_size": 5},
        {"num_classes": 20},
        {"topology": TEXT.removesuffix("8") + "16"},
        {"data": NOISE.model_copy(update={"split_seed": 1})},
        {"data": NOISE.model_copy(update={"image_size": 64})},
    ],
    ids=str,
)
def test_what_a_score_depends_on_is_part_of_its_key(store: Store, computed: list[str], changed: dict[str, Any]) -> None:
    score(store, task())
    score(store, task(**changed))
    assert computed == ["params", "flops"] * 2


def test_settings_are_compared_by_what_they_mean(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from plugins.proxies.ntk_condition import NtkCondition

    seen: list[int] = []

    def spy(self: NtkCondition, candidate: Candidate) -> ProxyScore:
        seen.append(self.repeats)
        return ProxyScore(1.0)

    monkeypatch.setattr(NtkCondition, "score", spy)
    default = NtkCondition().repeats
    score(store, task("ntk-condition"))
    score(store, task({"name": "ntk-condition", "repeats": default}))
    assert seen == [default]
    score(store, task({"name": "ntk-condition", "repeats": default + 1}))
    assert seen == [default, default + 1]


def test_a_score_that_is_not_finite_is_kept_with_its_reason(store: Store, computed: list[str]) -> None:
    computed.append("nan")
    first = score(store, task(need_all=False))
    again = score(store, task(need_all=False))
    assert computed == ["nan", "params", "flops"]
    for outcome in (first, again):
        assert outcome.state == "complete"
        assert "params" not in outcome.metrics
        assert outcome.details["failures"] == {"params": {"error": "not-finite", "reason": "the score is nan"}}
    strict = score(store, task())
    assert computed == ["nan", "params", "flops"]
    assert (strict.state, strict.error) == ("failed", "not-finite")


def test_an_exception_is_not_kept_and_the_other_scores_are(store: Store, computed: list[str]) -> None:
    computed.append("broken")
    outcome = score(store, task(need_all=False))
    assert outcome.state == "complete"
    assert outcome.metrics["params"] > 0
    failure = outcome.details["failures"]["flops"]
    assert failure["error"] == "exception"
    assert "OSError: no more file handles" in failure["reason"]
    computed.clear()
    assert score(store, task(need_all=False)).metrics["flops"] == 1 / 3
    assert computed == ["flops"]


def test_a_task_whose_worker_died_is_lost_and_nothing_is_kept(store: Store) -> None:
    class DeadPool(InlinePool):
        def wait(self) -> tuple[int, TaskOutcome | Lost]:
            super().wait()
            return 0, Lost("killed")

    pool = ScoreCachingPool(DeadPool(), ScoreCache(store.scores()))
    pool.submit(0, task(), Recorder())
    assert pool.wait() == (0, Lost("killed"))
    assert ScoreCache(store.scores()).find(task()) == {}


def test_two_that_write_the_same_score_do_not_disturb_each_other(store: Store) -> None:
    key = ScoreKey("params", "s", "c")
    first, second = (ScoreRecord(value=value, spread=0.0, reason=None, wall_time_s=0.0) for value in (1.0, 2.0))
    store.scores().add("t", "d", 1, [(key, first)])
    store.scores().add("t", "d", 1, [(key, second), (key._replace(proxy="flops"), second)])
    assert store.scores().find("t", "d", 1) == {key: first, key._replace(proxy="flops"): second}


def test_a_database_of_the_first_version_keeps_its_studies(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/old.db"
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    engine = create_engine(url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO studies (uid, name, spec, spec_digest, data_digest, state, owner, created_at, updated_at) "
                "VALUES ('u', 'old', '{}', 'a', 'b', 'complete', 'me', 1, 2)"
            )
        )
    engine.dispose()
    store = Store.open(url)
    assert [study.name for study in store.list_studies()] == ["old"]
    assert store.scores().find("t", "d", 1) == {}
    store.close()


# --- the version of the code ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a name of its own for each test: proxy -> helper -> deep, and a module that nothing imports."""
    name = re.sub(r"\W", "_", f"package_{tmp_path.name}")
    folder = tmp_path / name
    (folder / "inner").mkdir(parents=True)
    for file, content in {
        "__init__.py": "raise RuntimeError('executed')\n",
        "proxy.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import typing_only\n"
        "def score():\n    from .helper import value\n    return value\n",
        "helper.py": f"import json\nimport {name}.inner.deep\nvalue = 1\n",
        "inner/__init__.py": "",
        "inner/deep.py": "from plugins.protocols import Candidate\n",
        "other.py": "x = 1\n",
        "typing_only.py": "x = 1\n",
    }.items():
        (folder / file).write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def digest_now(folder: Path, *, roots: tuple[str, ...] = ("proxy",), **fields: Any) -> str:
    """The digest that a new process would find."""
    from orchestrator.engines.pools import code_digest as code_version

    for cached in (code_version._find, code_version._source, code_version._source_digest, code_version._imports):
        cached.cache_clear()
    return code_digest([f"{folder.name}.{root}" for root in roots], **fields)


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("proxy.py", True),
        ("helper.py", True),
        ("__init__.py", True),
        ("inner/__init__.py", True),
        ("inner/deep.py", True),
        ("other.py", False),
        ("typing_only.py", False),
    ],
)
def test_the_source_of_everything_imported_counts_and_nothing_else(package: Path, file: str, counts: bool) -> None:
    before = digest_now(package)
    assert digest_now(package) == before
    (package / file).write_text((package / file).read_text() + "# changed\n")
    assert (digest_now(package) != before) == counts


@pytest.mark.parametrize(
    "code",
    [
        "try:\n    pass\nexcept OSError:\n    IMPORT",
        "try:\n    pass\nexcept* OSError:\n    pass\nelse:\n    IMPORT",
        "try:\n    pass\nfinally:\n    IMPORT",
        "for _ in ():\n    pass\nelse:\n    IMPORT",
        "while True:\n    IMPORT",
        "with open(0):\n    IMPORT",
        "match 1:\n    case _:\n        IMPORT",
        "if 0:\n    pass\nelif 1:\n    pass\nelse:\n    IMPORT",
        "class Outer:\n    async def inner():\n        async with outer:\n            IMPORT",
    ],
)
def test_an_import_in_any_statement_counts(package: Path, code: str) -> None:
    (package / "proxy.py").write_text(code.replace("IMPORT", "from . import other"))
    before = digest_now(package)
    (package / "other.py").write_text("x = 2\n")
    assert digest_now(package) != before


def test_nothing_is_executed(package: Path) -> None:
    digest_now(package)
    assert not any(name.startswith(package.name) for name in sys.modules)


def test_a_version_of_a_distribution_counts(package: Path) -> None:
    assert digest_now(package, distributions=("pydantic",)) != digest_now(package, distributions=("typer",))
    assert digest_now(package, distributions=("torch",)) != digest_now(package)


def test_a_module_that_is_not_there_is_an_error(package: Path) -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        digest_now(package, roots=("nowhere",))
