"""References of a submitted file to other studies: own ones come first, private ones of others are refused."""

import pytest

from orchestrator.service.references import PrivateStudyError, with_own_references
from orchestrator.service.submitting import submit_study
from orchestrator.settings import Settings, load_settings
from orchestrator.spec.study_file import StudySpec, make_spec
from orchestrator.store.repository import Store
from orchestrator.store.study_names import home_owner


@pytest.fixture
def settings(tmp_path) -> Settings:
    return load_settings(home=tmp_path)


@pytest.fixture
def store(settings: Settings):
    store = Store.open(settings.database_url)
    for name in ("pets", "alice~pets", "public", "bob~open", "bob~hidden"):
        store.create_study(name, spec={}, digest="a", data_digest="d", stage_names=[])
    for owner, name in ((home_owner(), "public"), ("bob", "open")):
        store.queue().add(_submission(owner, name if owner != "bob" else f"bob~{name}", shared=True))
    store.queue().add(_submission("bob", "bob~hidden", shared=False))
    yield store
    store.close()


def _submission(owner: str, name: str, *, shared: bool):
    from orchestrator.store.service_records import NewSubmission, WantedDevices

    return NewSubmission(f"u{name}"[:32], owner, name, {}, "", WantedDevices(), "d", shared=shared)


def spec(**train: object) -> StudySpec:
    screen = {"stage": "screen", "space": "as-vit", "num_trials": 2, "proxies": ["params"]}
    stage = {"stage": "train", "num_trials": 2, "epochs": 1, "candidates": {"best": 1, "spread": 1}, **train}
    return make_spec({"study": "new", "data": {"source": "noise"}, "stages": [screen, stage]})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("pets", "alice~pets"),
        ("alice~pets", "alice~pets"),
        ("public", "public"),
        ("bob~open", "bob~open"),
        ("later", "alice~later"),
    ],
)
def test_a_name_means_an_own_study_first(store: Store, written: str, meant: str) -> None:
    stage = with_own_references(spec(weights=f"{written}@champion"), "alice", store).stages[1]
    assert stage.weights == f"{meant}@champion"  # type: ignore[attr-defined]
    stage = with_own_references(spec(warm_start={"study": written}), "alice", store).stages[1]
    assert stage.warm_start.study == meant  # type: ignore[attr-defined]
    stage = with_own_references(spec(warm_start={"model": f"{written}@champion"}), "alice", store).stages[1]
    assert stage.warm_start.model == f"{meant}@champion"  # type: ignore[attr-defined]


def test_paths_stay_as_they_are(store: Store) -> None:
    given = spec(weights="/models/pets.safetensors")
    assert with_own_references(given, "alice", store) == given


def test_a_private_study_of_another_owner_is_refused(store: Store) -> None:
    for name in ("bob~hidden", "bob~nowhere"):
        with pytest.raises(PrivateStudyError, match=r"stages\[1\].weights: must name one of alice's studies"):
            submit_study(store, spec(weights=f"{name}@champion"), "", owner="alice")
    store.create_study("private", spec={}, digest="a", data_digest="d", stage_names=[])
    with pytest.raises(PrivateStudyError):
        submit_study(store, spec(warm_start={"study": "private"}), "", owner="alice")
    submitted = submit_study(store, spec(weights="bob~hidden@champion"), "", owner=home_owner())
    assert submitted.state == "waiting"
