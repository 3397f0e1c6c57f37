"""The choice of engine and pool, its reasons, and what a study file may request."""

from pathlib import Path

import pytest

from orchestrator.engines.choice import ExecutionSetup, Machine, choose
from orchestrator.engines.interfaces import EngineUnavailableError
from orchestrator.engines.ray.placement import Node, can_hold, room
from orchestrator.spec import engine as engine_specs
from orchestrator.spec.study_file import StudySpec, differences, load_spec
from trainers.yaml_source import SpecError

STUDY = """\
study: tiny
data: {source: digits}
stages:
  - {stage: screen, num_trials: 8}
  - {stage: train, num_trials: 6, epochs: 1}
"""
LAPTOP = Machine(num_gpus=0, gpu_gib=0, num_cpus=8, ray_address=None, has_ray=True)


def load(folder: Path, text: str = "", **overrides: object) -> StudySpec:
    file = folder / "study.yaml"
    file.write_text(STUDY + text)
    return load_spec(file, overrides={key.replace("__", "."): value for key, value in overrides.items()})


def chosen(folder: Path, text: str = "", **machine: object) -> ExecutionSetup:
    return choose(load(folder, text), LAPTOP._replace(**machine))


@pytest.mark.parametrize(
    ("text", "machine", "engine", "pool", "reason"),
    [
        ("", {}, "optuna", "auto", "8 CPU cores, no GPU: running up to 8 trials at a time, and one at a time if"),
        ("", {"num_cpus": 1}, "optuna", "inline", "1 CPU core, no GPU: running one trial at a time"),
        ("", {"memory_gib": 3.5}, "optuna", "auto", "8 CPU cores, no GPU: running up to 3 trials at a time"),
        ("", {"memory_gib": 1.5}, "optuna", "inline", "8 CPU cores, no GPU: running one trial at a time"),
        ("", {"has_ray": False}, "optuna", "inline", "but Ray is not installed (pip install 'ray[tune]'): running one"),
        ("resources: {cpus_per_trial: 3}", {}, "optuna", "auto", "running up to 2 trials at a time"),
        ("resources: {cpus_per_trial: 8}", {}, "optuna", "inline", "running one trial at a time"),
        ("resources: {trials_per_pack: 4}", {}, "optuna", "inline", "no GPU: running packs of up to 4 trials"),
        ("", {"has_mps": True}, "optuna", "auto", "8 CPU cores, and an Apple GPU for trainings"),
        ("", {"ray_address": "h:1"}, "optuna", "ray", "RAY_ADDRESS names the cluster h:1"),
        ("", {"num_gpus": 2, "gpu_gib": 8.0}, "optuna", "ray", "2 GPUs: running several"),
        ("", {"num_gpus": 1, "gpu_gib": 24.0}, "optuna", "ray", "images of 32 px fit on a GPU of 24 GiB"),
        ("", {"num_gpus": 1, "gpu_gib": 4.0}, "optuna", "inline", "1 GPU: running one"),
        ("resources: {gpus_per_trial: 0.25}", {"num_gpus": 1, "gpu_gib": 4.0}, "optuna", "ray", "0.25 of a GPU"),
        (
            "resources: {gpus_per_trial: 1}",
            {"num_gpus": 1, "gpu_gib": 24.0},
            "optuna",
            "inline",
            "1 GPU: running one",
        ),
        ("resources: {gpus_per_trial: 0}", {"num_gpus": 4}, "optuna", "inline", "4 GPUs: running one trial at a time"),
        ("resources: {max_concurrent: 3}", {}, "optuna", "auto", "no GPU: running up to 3 trials at a time"),
        ("resources: {max_concurrent: 1}", {}, "optuna", "inline", "no GPU: running one trial at a time"),
        (
            "resources: {max_concurrent: 3}",
            {"num_gpus": 1, "gpu_gib": 4.0},
            "optuna",
            "ray",
            "allows 3 concurrent trials",
        ),
        ("resources: {max_concurrent: 1}", {"num_gpus": 4}, "optuna", "inline", "4 GPUs: running one trial at a time"),
        (
            "resources: {trials_per_pack: 8}",
            {"num_gpus": 1, "gpu_gib": 24.0},
            "optuna",
            "inline",
            "packs of up to 8 trials",
        ),
        (
            "resources: {trials_per_pack: 8}",
            {"num_gpus": 2, "gpu_gib": 24.0},
            "optuna",
            "ray",
            "2 GPUs: running several",
        ),
        ("", {"num_gpus": 2, "has_ray": False}, "optuna", "inline", "2 GPUs, but Ray is not installed"),
        ("pool: inline", {"ray_address": "h:1"}, "optuna", "inline", "the study file asks for pool `inline`"),
        ("pool: ray", {}, "optuna", "ray", "the study file asks for pool `ray`"),
        ("engine: ray", {}, "ray", "ray", "the study file asks for engine `ray`"),
        ("engine: {scheduler: asha}", {}, "ray", "ray", "scheduler `asha`, which runs on Ray Tune"),
    ],
)
def test_auto_picks_by_the_machine_and_says_why(
    text: str, machine: dict, engine: str, pool: str, reason: str, tmp_path: Path
) -> None:
    setup = chosen(tmp_path, text, **machine)
    assert (setup.engine, setup.pool) == (engine, pool)
    assert reason in setup.reason


def test_a_cluster_without_ray_here_is_refused_with_the_extra(tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailableError, match=r"RAY_ADDRESS.*not installed.*pip install 'ray\[tune\]'"):
        chosen(tmp_path, ray_address="h:1", has_ray=False)


def test_a_file_that_asks_for_ray_where_it_is_not_installed_is_told_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_specs, "ray_is_installed", lambda: False)
    for text in ("engine: ray", "pool: ray"):
        with pytest.raises(SpecError, match=r"study\.yaml:6.*not installed.*pip install 'ray\[tune\]'"):
            load(tmp_path, text)


def test_the_record_of_an_execution_tells_the_schedulers_settings(tmp_path: Path) -> None:
    record = chosen(tmp_path, "engine: {name: ray, scheduler: {name: asha, grace_epochs: 2}}").record()
    assert record["scheduler"] == {"name": "asha", "grace_epochs": 2, "reduction_factor": 3.0, "brackets": 1}
    assert (record["engine"], record["pool"]) == ("ray", "ray")


@pytest.mark.parametrize("text", ["engine: ray", "pool: ray", "resources: {max_concurrent: 2, trials_per_pack: 4}"])
def test_how_a_study_is_run_does_not_make_it_another_study(text: str, tmp_path: Path) -> None:
    plain, other = load(tmp_path), load(tmp_path, text)
    assert plain.digest == other.digest
    assert differences(plain, other) == []
    assert StudySpec.model_validate(other.model_dump(mode="json")) == other


@pytest.mark.parametrize(
    ("text", "path", "told"),
    [
        ("engine: rya", "engine", "Did you mean 'ray'?"),
        ("engine: {nme: ray}", "engine.nme", "Did you mean 'name'?"),
        ("engine: {name: ray, scheduler: ahsa}", "engine.scheduler", "Did you mean 'asha'?"),
        ("engine: {name: ray, scheduler: {name: asha, grace: 2}}", "engine.scheduler.grace", "grace_epochs"),
        ("engine: {name: ray, scheduler: {name: pbt, quantile: 0.7}}", "engine.scheduler.quantile", "at most 0.5"),
        ("engine: {name: optuna, scheduler: asha}", "engine", "needs engine `ray`"),
        ("engine: ray\npool: inline", "pool", "needs pool `ray`"),
        ("resources: {gpus_per_trial: 1.5}", "resources", "a whole number"),
        ("pool: inline\nresources: {gpus_per_trial: 2}", "pool", "`gpus_per_trial: 2` needs pool `ray`"),
        (
            "resources: {gpus_per_trial: 2, trials_per_pack: 4}",
            "resources.trials_per_pack",
            "must be 1 with `gpus_per_trial: 2`",
        ),
        ("resources: {trials_per_pack: 0}", "resources.trials_per_pack", "at least 1"),
        ("engine: ray\nresources: {trials_per_pack: 4}", "resources.trials_per_pack", "must be 1 with engine `ray`"),
        ("engine: {scheduler: asha}\nresources: {trials_per_pack: 4}", "resources.trials_per_pack", "but got 4"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_what_is_meant(text: str, path: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, text)
    assert caught.value.path == path
    assert told in caught.value.message
    assert caught.value.line is not None


def test_the_command_line_replaces_the_engine_and_keeps_the_scheduler(tmp_path: Path) -> None:
    text = "engine: {name: auto, scheduler: asha}"
    assert load(tmp_path, text, engine__name="ray").engine.scheduler.name == "asha"
    assert load(tmp_path, engine__name="ray").engine.name == "ray"
    with pytest.raises(SpecError, match="an override of the file"):
        load(tmp_path, engine__name="rya")


@pytest.mark.parametrize(
    ("shares", "fit"),
    [
        ([(4, 0)] * 3, True),
        ([(4, 0)] * 4, False),
        ([(1, 0.5)] * 4, True),
        ([(1, 0.5)] * 5, False),
        ([(1, 0.3)] * 6, True),
        ([(1, 0.3)] * 7, False),
        ([(1, 0.6), (1, 0.6), (1, 0.4), (1, 0.4)], True),
        ([(1, 0.6), (1, 0.6), (1, 0.6)], False),
        ([(1, 2), (1, 0)], True),
        ([(1, 2), (1, 0.1)], False),
        ([(2, 3)], False),
    ],
)
def test_a_share_of_a_gpu_is_of_one_gpu(shares: list[tuple[float, float]], fit: bool) -> None:
    assert can_hold([Node(8, 2), Node(4, 0)], shares) == fit


@pytest.mark.parametrize(
    ("nodes", "share", "count"),
    [
        ([Node(8, 2)], (2, 2), 1),
        ([Node(8, 4)], (2, 2), 2),
        ([Node(8, 1), Node(8, 1)], (2, 2), 1),  # on two nodes
        ([Node(16, 3), Node(16, 3)], (2, 2), 3),
        ([Node(1, 4)], (2, 2), 0),  # each process needs a core
        ([Node(1, 4)], (1, 3), 1),
        ([Node(8, 1)], (2, 2), 0),
        ([Node(8, 2), Node(4, 0)], (1, 0.5), 4),
        ([Node(8, 2), Node(4, 0)], (4, 0), 3),
    ],
)
def test_the_gpus_of_a_trial_may_be_on_several_nodes(nodes: list[Node], share: tuple[float, float], count: int) -> None:
    assert room(nodes, *share) == count
    assert can_hold(nodes, [share] * count)
    assert not can_hold(nodes, [share] * (count + 1))


@pytest.mark.parametrize(
    ("wanted", "machine", "found"),
    [
        ("1", {}, "no GPU that can be used"),
        ("0.5", {"has_mps": True}, "no GPU that can be used"),
        ("2", {"num_gpus": 1, "gpu_gib": 24.0}, "1 GPU"),
        ("1\npool: ray", {}, "no GPU that can be used"),
        ("1\npool: inline", {"ray_address": "h:1"}, "no GPU that can be used"),
    ],
)
def test_gpus_that_do_not_exist_are_refused(
    wanted: str, machine: dict[str, object], found: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineUnavailableError, match=found) as caught:
        chosen(tmp_path, f"resources:\n  gpus_per_trial: {wanted}", **machine)
    assert "resources.gpus_per_trial" in str(caught.value)


def test_trials_with_several_gpus_run_on_ray(tmp_path: Path) -> None:
    text = "resources: {gpus_per_trial: 2, max_concurrent: 1}"
    found = chosen(tmp_path, text, num_gpus=2, gpu_gib=24.0)
    assert found.pool == "ray"
    assert found.reason == "each trial trains on 2 GPUs, with a process for each on Ray"
    with pytest.raises(EngineUnavailableError, match=r"each trial trains on 2 GPUs.* but Ray is not installed"):
        chosen(tmp_path, text, num_gpus=2, gpu_gib=24.0, has_ray=False)


def test_a_cluster_may_still_get_gpus(tmp_path: Path) -> None:
    assert chosen(tmp_path, "resources: {gpus_per_trial: 1}", ray_address="h:1").pool == "ray"
