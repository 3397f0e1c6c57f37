"""The run of all measurements on a GPU: parts that fail or overrun, wheels, the report, and a rehearsal on a CPU."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks._gpu_use import GpuUse, watch_by_name, watch_gpu
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.parts import TOTAL_S, Part, parts_on_cpu, parts_on_gpu
from benchmarks.gpu.report import BEGIN, END, NEVER_RUN, section, write_section
from benchmarks.gpu.running import Finished, read_results, run_parts
from benchmarks.gpu.wheels import LEFT_OUT, USUAL, declare_plugins, needed_packages, read_pins, unpack

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
FIGURES = ROOT / "benchmarks" / "gpu" / "figures"

WRITES = """
import json, pathlib, sys
file = pathlib.Path(sys.argv[sys.argv.index("--json") + 1])
file.write_text(json.dumps({"found": 1}))
"""
FAILS = WRITES + "print('so far so good')\nsys.exit('error: the disk is on fire')\n"
OVERRUNS = (
    WRITES
    + """
import subprocess, time
child = subprocess.Popen(["sleep", "600"])
(file.parent / "child").write_text(str(child.pid))
print("measuring for ever", flush=True)
time.sleep(600)
"""
)


def part(name: str, code: str, *, limit_s: float = 60.0) -> Part:
    return Part(name=name, title=name, command=(sys.executable, "-c", code), limit_s=limit_s)


def run(parts: list[Part], folder: Path, *, total_s: float = 100.0) -> tuple[list[Finished], list[str]]:
    said: list[str] = []
    return run_parts(parts, folder, dict(os.environ), total_s=total_s, device="cpu", say=said.append), said


def test_a_part_that_fails_loses_nothing_and_its_reason_is_kept(tmp_path: Path) -> None:
    done, said = run([part("machine", WRITES), part("bad", FAILS), part("good", WRITES)], tmp_path)
    assert [one.state for one in done] == ["complete", "failed", "complete"]
    assert [one.figures for one in done] == [{"found": 1}] * 3
    assert done[1].reason == "exit status 1; its last line: error: the disk is on fire"
    assert "bad: failed" in said[1]
    assert json.loads((tmp_path / "bad.json").read_text())["figures"] == {"found": 1}
    assert "so far so good" in (tmp_path / "bad.log").read_text()
    assert sorted(read_results(tmp_path)) == sorted(done)


def test_a_part_that_overruns_ends_with_its_children_and_keeps_what_it_had_measured(tmp_path: Path) -> None:
    done, _ = run([part("endless", OVERRUNS, limit_s=10), part("good", WRITES)], tmp_path)
    assert done[0].state == "out of time"
    assert done[0].reason == "it must end within 10 s; its last line: measuring for ever"
    assert done[0].figures == {"found": 1}
    child = int((tmp_path / "child").read_text())
    for _ in range(100):
        if not _runs(child):
            break
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process: int) -> bool:
    try:
        status = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return status != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_running_part_with_its_children(number: signal.Signals, tmp_path: Path) -> None:
    endless = part("endless", OVERRUNS, limit_s=300)
    code = (
        "import sys; from benchmarks.gpu import __main__ as program; from benchmarks.gpu.parts import Part; "
        f"program.parts_on_cpu = lambda _: [{endless!r}]; "
        f"sys.argv[1:] = ['run', {str(tmp_path)!r}, '--device', 'cpu']; program.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True) as program:
        while not (child := tmp_path / "child").exists() or not child.read_text():
            assert program.poll() is None
            time.sleep(0.05)
        program.send_signal(number)
        _, told = program.communicate(timeout=60)
        assert program.returncode == 128 + number
    assert "Traceback" not in told
    assert not _runs(int(child.read_text()))


def test_the_machine_must_be_usable_for_the_other_parts_to_run(tmp_path: Path) -> None:
    done, said = run([part("machine", FAILS), part("good", WRITES)], tmp_path)
    assert [one.part for one in done] == ["machine"]
    assert said[-1] == "the other parts need the same machine, so they are not run"


def test_time_that_a_part_leaves_is_given_to_the_next_and_the_whole_is_limited(tmp_path: Path) -> None:
    done, _ = run([part("machine", WRITES, limit_s=50), part("next", WRITES, limit_s=7)], tmp_path)
    assert done[1].limit_s == pytest.approx(57 - done[0].seconds)
    done, _ = run([part("late", WRITES)], tmp_path, total_s=0.5)
    assert (done[0].state, done[0].reason) == ("out of time", "the parts before it took all of the 0.5 s")


def test_a_part_without_figures_has_failed(tmp_path: Path) -> None:
    done, _ = run([part("silent", "")], tmp_path)
    assert (done[0].state, done[0].reason) == ("failed", "it ended without figures")


def test_the_parts_take_eight_minutes_and_are_rehearsed_under_the_same_names() -> None:
    assert sum(one.limit_s for one in parts_on_gpu(None)) == TOTAL_S == 480
    assert [one.name for one in parts_on_cpu(None)] == [one.name for one in parts_on_gpu(None)]


@pytest.mark.parametrize("one", parts_on_gpu(Path("cifar10")), ids=lambda one: one.name)
def test_every_program_knows_the_arguments_that_it_gets_on_a_gpu(one: Part, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are parsed as on a machine with a GPU, and then refused because there is none, or begin to run."""
    module = __import__(one.command[2], fromlist=["main"])
    monkeypatch.setattr(sys, "argv", [one.name, *one.command[3:], "--json", "figures.json"])
    monkeypatch.setattr("argparse.ArgumentParser.parse_args", _parse_and_stop)
    with pytest.raises(_ParsedError):
        module.main()


class _ParsedError(Exception):
    pass


def _parse_and_stop(parser: Any) -> None:
    namespace, left = parser.parse_known_args()
    assert left == []
    assert namespace.json == Path("figures.json")
    raise _ParsedError


# --- the use of a GPU ---


def test_idle_time_and_memory_are_those_between_two_times(monkeypatch: pytest.MonkeyPatch) -> None:
    use, clock = GpuUse(), iter([1.0, 2.0, 3.0, 9.0])
    monkeypatch.setattr("benchmarks._gpu_use.time.monotonic", lambda: next(clock))
    for line in ("100, 1024", "50, 3072", "No devices were found", "30, 2048", "0, 4096"):
        use.read(line + "\n")
    found = use.between(1.0, 3.0)
    assert found is not None
    assert found.idle_s == pytest.approx(2.0 * 0.6)
    assert found.memory_gib == 3.0
    assert use.memory_gib() == 4.0
    assert use.between(3.0, 3.2) is None


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a program of that name first on the PATH."""

    def install(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return install


def test_nvidia_smi_is_read_while_something_runs_and_ended_then(nvidia_smi: Any, tmp_path: Path) -> None:
    nvidia_smi(f'echo "$@" > {tmp_path}/asked; while true; do echo "25, 2048"; sleep 0.05; done')
    with watch_by_name("GPU-1") as use:
        assert use is not None
        start = time.monotonic()
        time.sleep(0.6)
        found = use.between(start, time.monotonic())
    assert found is not None
    assert found.memory_gib == 2.0
    assert "--id=GPU-1 --query-gpu=utilization.gpu,memory.used" in (tmp_path / "asked").read_text()


def test_it_is_said_why_the_use_is_not_measured(
    nvidia_smi: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks._gpu_use._START_S", 0.5)
    nvidia_smi("echo No devices were found")
    with watch_by_name("GPU-1") as use:
        assert use is None
    assert "says: No devices were found" in capsys.readouterr().out
    with watch_gpu(torch.device("cpu")) as use:
        assert use is None
    assert "not measured on cpu" in capsys.readouterr().out


# --- what the machine lacks ---


def test_the_wheels_are_the_pinned_dependencies_without_what_the_machine_has() -> None:
    found = needed_packages(PROJECT, PINS, has={*USUAL, *LEFT_OUT})
    assert found["optuna"] == PINS["optuna"]
    assert {"kornia-rs", "sqlalchemy", "pydantic-core", "pytest-xdist", "annotated-types"} <= set(found)
    assert not {"torch", "ray", "mlflow", "numpy", "flask", "triton", "cuda-bindings", "nvidia-nccl-cu13"} & set(found)
    with pytest.raises(ValueError, match=r"constraints.txt must give the version of optuna, which the wheels need"):
        needed_packages(PROJECT, {name: PINS[name] for name in PINS if name != "optuna"}, has={*USUAL, *LEFT_OUT})


WITHOUT_OTHERS = """
import importlib, sys
from importlib.metadata import packages_distributions

known, modules = set(sys.argv[1].split(",")), sys.argv[2].split(",")
hidden = {
    module
    for module, packages in packages_distributions().items()
    if not {name.lower().replace("_", "-").replace(".", "-") for name in packages} & known
}


class Hides:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            raise ModuleNotFoundError(f"{name} is hidden", name=name)


sys.meta_path.insert(0, Hides())
for module in modules:
    importlib.import_module(module)
print(*sorted({"ray", "mlflow"} & set(sys.modules)))
"""


def test_the_parts_import_nothing_but_the_wheels_and_what_the_machine_has() -> None:
    own = {"vitsearch", "setuptools"}
    with_torch = {"torch", "sympy", "mpmath", "networkx", "jinja2", "fsspec", "filelock"}
    of_usual = needed_packages({**PROJECT, "dependencies": list(USUAL)}, PINS, has=LEFT_OUT)
    known = {*needed_packages(PROJECT, PINS, has={*USUAL, *LEFT_OUT}), *of_usual, *own, *with_torch}
    modules = [one.command[2] for one in parts_on_gpu(None)]
    modules += ["tests.conftest", "tests.device_cases", "tests.contracts.test_training_step", "tests.unit.test_saving"]
    modules += [
        "orchestrator.study.driver",
        *(f"orchestrator.stages.{name}" for name in ("screen", "train", "promote")),
    ]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_OTHERS, ",".join(known), ",".join(modules)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_plugins_are_declared_where_vitsearch_is_not_installed(tmp_path: Path) -> None:
    declare_plugins(tmp_path)
    code = """
import importlib.metadata, sys
found = importlib.metadata.distribution("vitsearch")
print(sorted((one.group, one.name, one.value) for one in found.entry_points))
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    points = PROJECT["entry-points"]
    assert done.stdout.strip() == str(
        sorted((group, name, value) for group, own in points.items() for name, value in own.items())
    )


def test_a_folder_without_wheels_is_refused_with_the_command_that_fills_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must hold the wheels that `make gpu-wheels` downloads, but has none"):
        unpack(tmp_path, tmp_path / "packages")


# --- the report ---


def finished(name: str, figures: dict[str, Any], *, state: str = "complete", reason: str | None = None) -> Finished:
    return Finished(name, f"Title of {name}", ["python"], state, reason, 10.0, 60.0, figures)  # type: ignore[arg-type]


RESULTS = [
    finished("machine", {"device": "Fast GPU", "cores": 16, "torch": "2.11.0", "bfloat16_tflops": 790.4}),
    finished(
        "tests",
        {"passed": 2, "failed": 1, "skipped": 0, "failures": [{"test": "a::b[c]", "reason": "1 | 2"}]},
        state="failed",
        reason="exit status 1",
    ),
    finished("scoring-224", {"screen against literal": {"ours per s": 7.4, "literal per s": 0.1, "faster": 74.0}}),
    finished("packing", {"trials": 16, "8,2": [{"way": "packed", "times as fast": 9.26, "s": 1.0}]}),
    finished("training", {}, state="out of time", reason="it must end within 60 s"),
]


def test_the_report_compares_with_the_goals_and_says_what_is_missing() -> None:
    text = section(RESULTS)
    assert "Fast GPU with 16 CPU cores, torch 2.11.0" in text
    assert "790 TFLOP/s in bfloat16" in text
    assert "| screening at 224 px: 20 times the two CPU cores (0.37/s) | 20.0 times |" in text
    assert "| packed trials: 8 times one after the other | 9.3 times |" in text
    assert "| training: 1.0 of the plain loop | not measured |" in text
    assert "This part is not complete (out of time: it must end within 60 s)" in text
    assert r"| a::b[c] | 1 \| 2 |" in text


def test_the_section_of_a_page_is_replaced(tmp_path: Path) -> None:
    page, folder = tmp_path / "page.md", tmp_path / "results"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    folder.mkdir()
    write_section(page, folder)
    assert page.read_text() == f"before\n{BEGIN}\n\n{NEVER_RUN}\n\n{END}\nafter\n"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="must have one place between"):
        write_section(page, folder)


def save(folder: Path, one: Finished) -> None:
    (folder / f"{one.part}.json").write_text(json.dumps(one._asdict()))


def test_parts_are_read_in_their_order_and_those_of_two_runs_are_refused(tmp_path: Path) -> None:
    for name in ("study", "tests", "machine"):
        save(tmp_path, finished(name, {})._replace(run="first", device="cuda"))
    assert [one.part for one in read_results(tmp_path)] == ["machine", "tests", "study"]
    save(tmp_path, finished("tests", {})._replace(run="second", device="cuda"))
    with pytest.raises(ValueError, match="but holds first: machine, study; second: tests"):
        read_results(tmp_path)


def test_a_rehearsal_on_a_cpu_is_not_written_into_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\nold\n{END}\n")
    save(tmp_path, finished("machine", {})._replace(run="first", device="cpu"))
    with pytest.raises(ValueError, match="must hold a run on a GPU, but holds a rehearsal on a CPU"):
        write_section(page, tmp_path)
    assert "old" in page.read_text()
    save(tmp_path, finished("machine", {})._replace(run="first", device="cuda"))
    write_section(page, tmp_path)
    assert "old" not in page.read_text()


def test_the_page_shows_the_figures_of_the_repository() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert f"{BEGIN}\n\n{section(read_results(FIGURES))}\n\n{END}" in page


def test_other_files_in_the_folder_of_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other.json must be what `python -m benchmarks.gpu run` wrote"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "results", "--parts", "nonsense"], "--parts must be among machine, tests"),
        (["run", "results", "--data", "nowhere"], "--data must be a folder"),
        (["report", "nowhere"], "nowhere must be the folder of a run"),
    ],
)
def test_mistakes_on_the_command_line_are_told(
    arguments: list[str], told: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gpu", *arguments])
    with pytest.raises(SystemExit, match=told):
        main()


# --- the whole ---


@pytest.mark.slow
def test_the_run_is_rehearsed_on_the_cpu(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "run", str(tmp_path), "--device", "cpu", "--within", "1000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    results = read_results(tmp_path)
    logs = "\n".join((tmp_path / f"{one.part}.log").read_text() for one in results if one.state != "complete")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{logs}"
    figures = {one.part: one.figures for one in results}
    assert figures["tests"]["skipped"] > 100
    assert figures["scoring-32"]["screen against literal"]["faster"] > 0
    (packs,) = (rows for rows in figures["packing"].values() if isinstance(rows, list))
    assert [row["way"] for row in packs] == ["packed", "one after the other", "2 parallel processes"]
    assert figures["training"]["plain"][0]["parameters"] == figures["compile"]["compile"][0]["parameters"] == "25 k"
    assert {row["proxy"] for row in figures["proxies"]["autoformer"]["alone"]} == {"snip", "synflow"}
    assert figures["sharing"]["rows"][0]["run"] == 2
    assert [row["stage"] for row in figures["study"]["stages"]] == [
        "screen",
        "train",
        "stopping",
        "averaging",
        "promote",
    ]
    assert figures["study"]["champion"]["test_accuracy"] > 0
    text = section(results)
    assert all(f"### {one.title}" in text for one in results[1:])
    assert "not complete" not in text
