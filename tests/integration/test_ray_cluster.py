"""Attaching to a Ray cluster: wrong addresses, and nodes that cannot run trials."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.engines.interfaces import EngineUnavailableError
from orchestrator.engines.ray import cluster as ray_cluster
from orchestrator.engines.ray import connection as ray_address
from orchestrator.engines.ray import node_checks as ray_nodes
from orchestrator.engines.ray.cluster import RayCluster
from orchestrator.engines.ray.connection import refusal
from plugins.registry import FORMULA_FOLDER_VARIABLE
from tests.unit.test_data import config, make_folder
from trainers.data.cache_settings import CACHE_VARIABLE, use_cache
from trainers.data.images import load_images

pytest.importorskip("ray", reason="Ray is not installed (pip install 'ray[tune]')")

# What Python runs first in every process of a node that is to be worse than it is.
WITHOUT_VITSEARCH = """\
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "orchestrator":
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
"""
WITHOUT_THE_FOLDER = """\
import os
from_disk = os.stat
def stat(path, *arguments, **named):
    if str(path).startswith({folder!r}):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return from_disk(path, *arguments, **named)
os.stat = stat
"""


@contextmanager
def another_node(address: str, *, modules: Path) -> Iterator[None]:
    """A further node, as a machine of its own would be one; its processes find Python modules in a folder first."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={address}", "--num-cpus=1", "--block"]
    process = subprocess.Popen(
        [*command, f"--object-store-memory={80 * 2**20}"],
        env={**os.environ, "PYTHONPATH": str(modules)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)  # with `--block`, it ends what it has started
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_nodes(count: int) -> None:
    import ray

    deadline = time.monotonic() + 300
    while sum(node["Alive"] for node in ray.nodes()) != count:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("customization", "told"),
    [
        pytest.param(
            WITHOUT_VITSEARCH, "has no vitsearch for .*: install version", id="vitsearch", marks=pytest.mark.slow
        ),
        pytest.param(WITHOUT_THE_FOLDER, "does not see .*VITSEARCH_ARTIFACT_ROOT .* all nodes share", id="folder"),
    ],
)
def test_a_node_that_cannot_run_trials_is_named_when_it_comes_and_when_it_was_there_before(
    customization: str, told: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_cluster, "_REFRESH_S", 0.0)
    monkeypatch.setattr(ray_nodes, "_APPEAR_S", 0.5)
    shared, images = tmp_path / "shared" / "ray", tmp_path / "images"
    images.mkdir()
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(customization.format(folder=str(shared)))
    cluster = RayCluster(address=address, shared=shared, sources=[images])
    try:
        cluster.start()
        wait_for_nodes(1)
        assert [node.num_cpus for node in cluster.nodes()] == [2]
        with another_node(address, modules=tmp_path / "modules"):
            wait_for_nodes(2)
            with pytest.raises(EngineUnavailableError, match=rf"1 of 1 cannot: .* {told}"):
                cluster.nodes()
            again = RayCluster(address=address, shared=shared, sources=[images])
            cluster.close()
            try:
                with pytest.raises(EngineUnavailableError, match=rf"1 of 2 cannot: .* {told}"):
                    again.nodes()
            finally:
                again.close()
        assert list((tmp_path / "shared").iterdir()) == []
    finally:
        cluster.close()


def test_nodes_that_lack_the_images_are_named_together(address: str, tmp_path: Path) -> None:
    cluster = RayCluster(address=address, sources=[tmp_path / "photos"])
    try:
        with pytest.raises(EngineUnavailableError, match=r"cannot read .*photos, which every node needs under that"):
            cluster.room_for(1, 0)
    finally:
        cluster.close()


def test_a_trial_that_no_node_is_large_enough_for_ends_the_study_after_a_while(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = RayCluster(address=address)
    try:
        assert cluster.room_for(64, 0) == 0
        monkeypatch.setattr(ray_cluster, "_NO_ROOM_S", 0.0)
        with pytest.raises(EngineUnavailableError, match=r"asks for 64 CPU cores and 0 GPUs.*2 cores and 0 GPUs"):
            cluster.room_for(64, 0)
    finally:
        cluster.close()


def test_the_workers_of_a_cluster_know_saved_formulas_and_see_no_gpu_without_a_share(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FORMULA_FOLDER_VARIABLE, str(tmp_path))
    cluster = RayCluster(address=address)
    try:
        cluster.start()
        import ray

        found = ray.get(ray.remote(lambda: dict(os.environ)).remote())
    finally:
        cluster.close()
    assert (found[FORMULA_FOLDER_VARIABLE], found["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"]) == (str(tmp_path), "1")


def test_the_workers_of_a_cluster_use_the_images_that_the_driver_has_decoded(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "")
    use_cache(tmp_path / "cache", 1.0)
    given = config(make_folder(tmp_path / "pets"))
    expected = load_images(given).digest

    def load() -> tuple[str, int]:
        from PIL import Image

        from trainers.data.images import load_images

        opened = []
        begin = Image.open
        Image.open = lambda *these, **options: opened.append(1) or begin(*these, **options)
        return load_images(given).digest, len(opened)

    cluster = RayCluster(address=address)
    try:
        cluster.start()
        import ray

        found = ray.get(ray.remote(load).remote())
    finally:
        cluster.close()
    assert found == (expected, 0)


def test_a_file_that_a_dying_process_adds_while_files_are_removed_is_removed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, remove = tmp_path / "ray", shutil.rmtree
    folder.mkdir()
    late = [folder / "last.log"]
    monkeypatch.setattr(
        shutil, "rmtree", lambda *given, **named: late.pop().touch() if late else remove(*given, **named)
    )
    ray_cluster._remove_files(folder)
    assert not folder.exists()


# --- addresses ---


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:{port}", "does not answer: Connection refused"),
        ("nowhere.invalid:6379", r"'nowhere\.invalid:6379' does not answer"),
        ("127.0.0.1:99999999999", "does not answer"),
        ("nonsense", "does not answer: Invalid address format"),
        ("ray://127.0.0.1:10001", "HOST:PORT.*another Ray service"),
        ("http://127.0.0.1:8265", "HOST:PORT.*another Ray service"),
    ],
)
def test_an_address_without_a_cluster_fails_at_once(address: str, told: str) -> None:
    cluster = RayCluster(address=address.format(port=closed_port()))
    with pytest.raises(EngineUnavailableError, match=rf"RAY_ADDRESS.*{told}"):
        cluster.start()
    cluster.close()


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("RPC error: InvalidAuthToken: Authentication token is missing or incorrect", "RAY_AUTH_MODE=token"),
        (
            "Version mismatch: The cluster was started with:\n    Ray: 2.50.0\n",
            "started with: Ray: 2.50.0. Install the",
        ),
        ("anything else", "'h:1' does not answer: Failed to connect to Ray cluster at h:1"),
    ],
)
def test_why_ray_refuses_to_attach_is_told(cause: str, told: str) -> None:
    refused = ConnectionError("Failed to connect to Ray cluster at h:1")
    refused.__cause__ = RuntimeError(cause)
    assert told in str(refusal("h:1", refused))


def test_the_error_on_a_machine_that_is_no_node_says_how_to_join(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray._private.services.find_node_ids", set)
    monkeypatch.setattr(ray_address, "_NODE_S", 0.0)
    cluster = RayCluster(address=address)
    with pytest.raises(EngineUnavailableError, match=rf"must be a node .*`ray start --address={address}`"):
        cluster.start()
    cluster.close()
