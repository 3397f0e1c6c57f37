"""Local Ray connects to nothing outside this machine: the connections of all its processes are watched."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

WITH_LOCAL_RAY = """
import subprocess, time
from orchestrator.engines.ray.cluster import RayCluster

cluster = RayCluster(num_cpus=1)
cluster.start()
import ray
assert ray.get(ray.remote(lambda: 7).remote()) == 7
time.sleep(3)  # for processes that take a while to ask
cluster.close()
print("ran")
"""
_ADDRESS = re.compile(r'(?:inet_addr\("|inet_pton\(AF_INET6, "(?:::ffff:)?)([0-9a-f.:]+)"')


@pytest.fixture
def strace() -> str:
    found = shutil.which("strace")
    if found is None:
        pytest.skip("strace is not installed; it watches the connections of processes")
    if subprocess.run([found, "-qq", "-o", "/dev/null", "true"], check=False, capture_output=True).returncode:
        pytest.skip("strace may not watch processes here")
    return found


def addresses(trace: str) -> set[str]:
    """The internet addresses to which something was sent or connected."""
    return set(_ADDRESS.findall(trace))


@pytest.mark.timeout(600)
def test_local_ray_connects_to_this_machine_only(strace: str, tmp_path: Path) -> None:
    # Without our settings, Ray asks 169.254.169.254 and a name server, also with usage statistics off.
    trace = tmp_path / "trace"
    calls = "trace=connect,sendto,sendmsg,sendmmsg"
    command = [strace, "-f", "-qq", "-e", calls, "-o", str(trace), sys.executable, "-c", WITH_LOCAL_RAY]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500)
    assert run.stdout.splitlines()[-1:] == ["ran"], run.stderr[-2000:]
    found = addresses(trace.read_text(encoding="utf-8", errors="replace"))
    assert "127.0.0.1" in found, "the connections of Ray's processes were seen"
    assert found <= {"127.0.0.1", "::1", "0.0.0.0", "::"}


def test_all_forms_of_addresses_are_seen() -> None:
    trace = """
    1 connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("169.254.169.254")}, 16) = 0
    2 sendto(3, "x", 1, 0, {sa_family=AF_INET6, sin6_port=htons(53), sin6_flowinfo=htonl(0), \
inet_pton(AF_INET6, "2001:db8::1", &sin6_addr), sin6_scope_id=0}, 28) = 1
    3 connect(3, {sa_family=AF_INET6, inet_pton(AF_INET6, "::ffff:127.0.0.1", &sin6_addr)}, 28) = 0
    4 connect(3, {sa_family=AF_UNIX, sun_path="/tmp/x"}, 16) = 0
    """
    assert addresses(trace) == {"169.254.169.254", "2001:db8::1", "127.0.0.1"}
