"""A study that an earlier version began keeps the defaults of its scores, so that all of them can be compared."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.engines.pools.score_cache import resolved_settings
from orchestrator.settings import load_settings
from orchestrator.spec.proxy_choices import with_former_defaults
from orchestrator.stages.context import StageContext
from orchestrator.store.repository import Store
from search_spaces.recipes import PluginChoice
from tests.golden.test_homes import HOMES

DSS = PluginChoice(name="dss")


@pytest.mark.parametrize(("version", "expected"), [("0.1.0", False), ("0.2.0", True)])
def test_dss_counts_square_layers_since_0_2(version: str, expected: bool) -> None:
    params, dss = with_former_defaults([PluginChoice(name="params"), DSS], version)
    assert params == PluginChoice(name="params")
    assert resolved_settings(dss)["square_layers"] is expected


def test_a_named_setting_counts_in_every_version() -> None:
    named = PluginChoice(name="dss", settings={"square_layers": True, "repeats": 2})
    assert with_former_defaults([named], "0.1.0") == (named,)


def test_a_resumed_study_of_0_1_0_is_scored_as_it_began(tmp_path: Path) -> None:
    """The stages ask for the version of the first execution, which homes of 0.1.0 have recorded."""
    home = Path(shutil.copytree(HOMES / "0.1.0" / "home", tmp_path / "home"))
    settings = load_settings(home=home)
    store = Store.open(settings.database_url, artifact_root=settings.artifact_root)
    try:
        study = store.find_study("interrupted")
        context = SimpleNamespace(store=store, study=study)
        (dss,) = StageContext.as_begun(context, [DSS])  # type: ignore[arg-type]
    finally:
        store.close()
    assert dss.settings == {"square_layers": False}
