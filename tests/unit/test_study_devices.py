"""Which GPUs a submitted study gets, and why it waits."""

import pytest

from orchestrator.service.devices import (
    CLUSTER,
    DevicePool,
    Placing,
    detect_pool,
    device_environment,
    num_gpus_needed,
    wanted_devices,
)
from orchestrator.settings import load_settings
from orchestrator.spec.study_file import make_spec
from orchestrator.store.service_records import Placement, PoolFull, SubmissionRecord, WantedDevices

BOX = DevicePool("box", num_gpus=2, max_studies=4)


def submission(wants: WantedDevices, devices: dict[str, float] | None = None, name: str = "s") -> SubmissionRecord:
    empty = dict.fromkeys(SubmissionRecord.model_fields)
    given = {"id": 1, "uid": "u", "owner": "o", "name": name, "request_digest": "d", "state": "running"}
    zeros = {"priority": 0, "lease": 1, "num_deaths": 0, "progress": 0, "device_time_s": 0, "created_at": 0}
    flags = dict.fromkeys(("retry_failed", "shared", "cancel_requested", "has_webhook"), False)
    return SubmissionRecord(**{**empty, **given, **zeros, **flags, "wants": wants, "devices": devices})


def wants(gpus_per_trial: float | None = None, num_trials: int | None = None) -> WantedDevices:
    return WantedDevices(gpus_per_trial=gpus_per_trial, num_trials=num_trials)


@pytest.mark.parametrize(
    ("asked", "needed"),
    [
        (wants(), 4),  # the driver uses the whole machine
        (wants(gpus_per_trial=0), 0),
        (wants(gpus_per_trial=0, num_trials=3), 0),
        (wants(num_trials=1), 1),
        (wants(num_trials=9), 4),
        (wants(gpus_per_trial=0.25, num_trials=2), 0.5),
        (wants(gpus_per_trial=0.5, num_trials=2), 1),
        (wants(gpus_per_trial=0.1, num_trials=10), 1),
        (wants(gpus_per_trial=0.5, num_trials=3), 2),
        (wants(gpus_per_trial=2, num_trials=1), 2),
        (wants(gpus_per_trial=8, num_trials=1), 8),
        (wants(gpus_per_trial=8), 8),
    ],
)
def test_a_study_needs_the_gpus_of_its_concurrent_trials(asked: WantedDevices, needed: float) -> None:
    assert num_gpus_needed(asked, 4) == needed


def test_the_study_file_says_what_it_wants() -> None:
    stage = {"stage": "screen", "space": "as-vit", "num_trials": 1, "proxies": ["params"]}
    content = {"study": "s", "data": {"source": "noise"}, "stages": [stage]}
    on_cluster = {"needs_cluster": True}
    assert wanted_devices(make_spec(content)) == wants().model_copy(update=on_cluster)
    assert wanted_devices(make_spec(content | {"pool": "inline"})) == wants(num_trials=1)
    limited = {"resources": {"gpus_per_trial": 0.5, "max_concurrent": 3}}
    assert wanted_devices(make_spec(content | limited)) == wants(0.5, 3).model_copy(update=on_cluster)


def test_studies_wait_for_a_cluster_that_does_not_answer_unless_they_do_without() -> None:
    placing = Placing(DevicePool("head:6379", None, 4, is_cluster=True), "waits for the Ray cluster head:6379")
    there = WantedDevices(needs_cluster=True)
    assert placing(submission(there), []) == "waits for the Ray cluster head:6379"
    assert placing(submission(wants(num_trials=1)), []) == Placement({})


def test_shares_fill_one_gpu_and_whole_gpus_stay_free() -> None:
    half = wants(gpus_per_trial=0.5, num_trials=1)
    running = [submission(half, {"1": 0.5})]
    assert Placing(BOX)(submission(half), running) == Placement({"1": 0.5})
    assert Placing(BOX)(submission(wants(num_trials=1)), running) == Placement({"0": 1.0})
    reason = Placing(BOX)(submission(wants()), running)
    assert reason == "waits for 2 GPUs on box, of which 1.5 of 2 are free"


def test_ten_tenths_fit_one_gpu() -> None:
    tenth = wants(gpus_per_trial=0.1, num_trials=1)
    pool = DevicePool("box", num_gpus=1, max_studies=20)
    running: list[SubmissionRecord] = []
    for _ in range(10):
        placed = Placing(pool)(submission(tenth), running)
        assert placed == Placement({"0": 0.1})
        running.append(submission(tenth, {"0": 0.1}))
    assert isinstance(Placing(pool)(submission(tenth), running), str)


def test_a_study_that_waits_for_gpus_is_not_overtaken_except_by_those_without() -> None:
    placing = Placing(BOX)
    running = [submission(wants(num_trials=1), {"0": 1.0})]
    assert isinstance(placing(submission(wants(), name="big"), running), str)
    assert placing(submission(wants(num_trials=1)), running) == "waits for GPUs behind study big"
    assert placing(submission(wants(gpus_per_trial=0)), running) == Placement({})


def test_a_study_that_never_fits_waits_with_the_reason_and_holds_up_no_other() -> None:
    placing = Placing(BOX)
    assert placing(submission(wants(gpus_per_trial=8, num_trials=1)), []) == "waits for 8 GPUs, but box has 2"
    assert placing(submission(wants(num_trials=1)), []) == Placement({"0": 1.0})


def test_the_number_of_studies_is_limited() -> None:
    pool = DevicePool("box", num_gpus=0, max_studies=1)
    assert Placing(pool)(submission(wants()), []) == Placement({})
    reason = Placing(pool)(submission(wants()), [submission(wants(), {})])
    assert reason == PoolFull("box", 1)


def test_gpus_of_a_cluster_are_counted_and_chosen_by_ray() -> None:
    cluster = DevicePool("ray:1", num_gpus=8, max_studies=9, is_cluster=True)
    placed = Placing(cluster)(submission(wants(num_trials=6)), [])
    assert placed == Placement({CLUSTER: 6.0})
    assert isinstance(Placing(cluster)(submission(wants(num_trials=6)), [submission(wants(), {CLUSTER: 6.0})]), str)
    assert device_environment({CLUSTER: 6.0}, cluster, {}) == {}
    uncounted = cluster._replace(num_gpus=None)
    assert Placing(uncounted)(submission(wants()), [submission(wants(), {})]) == Placement({})


def test_a_driver_sees_its_gpus_only() -> None:
    assert device_environment({"1": 1.0, "0": 1.0}, BOX, {}) == {"CUDA_VISIBLE_DEVICES": "0,1"}
    given = {"CUDA_VISIBLE_DEVICES": "4,7"}
    assert device_environment({"1": 0.5}, BOX, given) == {"CUDA_VISIBLE_DEVICES": "7"}
    assert device_environment({}, BOX, given) == {"CUDA_VISIBLE_DEVICES": ""}
    assert device_environment({}, BOX._replace(num_gpus=0), {}) == {}


def test_the_pool_is_this_machine_or_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.service.devices._num_gpus", lambda: 4)
    assert detect_pool(load_settings()).max_studies == 4
    assert detect_pool(load_settings(max_studies=1)).max_studies == 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert detect_pool(load_settings()) == DevicePool("10.0.0.1:6379", None, 1, is_cluster=True)
    assert detect_pool(load_settings(cluster_gpus=16)) == DevicePool("10.0.0.1:6379", 16, 16, is_cluster=True)
