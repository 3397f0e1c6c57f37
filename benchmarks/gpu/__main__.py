"""Measures on a GPU what no CPU can tell, in eight minutes, and writes the page about it.

    python -m benchmarks.gpu run FOLDER --wheels .gpu-wheels --data CIFAR10
    python -m benchmarks.gpu report FOLDER --page docs/performance.md

`run` needs Python 3.12 and PyTorch with CUDA, but no network, Ray or MLflow. Other packages that the machine lacks come
from the folder that `make gpu-wheels` fills on another machine. Each part is a process with a time limit. FOLDER
receives PART.json with its figures as soon as it ends, and PART.log with its output, so that a part that fails or takes
too long loses nothing of the others. CIFAR10 is a folder with train.parquet and test.parquet.
"""

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from benchmarks._timing import print_table
from benchmarks.gpu.parts import TOTAL_S, Part, parts_on_cpu, parts_on_gpu
from benchmarks.gpu.report import section, summary, write_section
from benchmarks.gpu.running import read_results, run_parts
from benchmarks.gpu.wheels import declare_plugins, unpack

_ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    options = _options()
    try:
        sys.exit({"run": _run, "report": _report}[options.command](options))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"stopped; the figures of finished parts are in {options.folder}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, part by part")
    run.add_argument("folder", type=Path, help="folder of the results")
    run.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse with tiny sizes (cuda)")
    run.add_argument("--data", type=Path, metavar="FOLDER", help="folder of CIFAR-10 (scikit-learn's digits)")
    run.add_argument("--wheels", type=Path, metavar="FOLDER", help="wheels of the packages that this machine lacks")
    run.add_argument("--parts", nargs="+", metavar="NAME", help="parts to run (all); the machine is always described")
    run.add_argument("--within", type=float, default=TOTAL_S, metavar="S", help=f"seconds for all ({TOTAL_S:.0f})")
    report = commands.add_parser("report", help="print the results as Markdown, or write them into a page")
    report.add_argument("folder", type=Path, help="folder of the results")
    report.add_argument("--page", type=Path, metavar="FILE", help="page whose section is replaced")
    return parser.parse_args()


def _run(options: argparse.Namespace) -> int:
    if options.data is not None and not options.data.is_dir():
        raise FileNotFoundError(f"--data must be a folder with train.parquet and test.parquet, but got {options.data}.")
    parts = _chosen(
        parts_on_cpu(options.data) if options.device == "cpu" else parts_on_gpu(options.data), options.parts
    )
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that the running part ends, too
    with tempfile.TemporaryDirectory() as place:
        packages = Path(place) / "packages"
        if options.wheels is not None:
            unpack(options.wheels, packages)
        declare_plugins(packages)
        paths = [str(packages), str(_ROOT), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        if options.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        done = run_parts(
            parts,
            options.folder,
            environment,
            total_s=options.within,
            device=options.device,
            say=lambda line: print(line, flush=True),
        )
    print_table("summary", summary(done), medians=False)
    return 0 if len(done) == len(parts) and all(one.state == "complete" for one in done) else 1


def _chosen(parts: list[Part], names: list[str] | None) -> list[Part]:
    known = [part.name for part in parts]
    for name in names or ():
        if name not in known:
            raise ValueError(f"--parts must be among {', '.join(known)}, but got {name}.")
    return [part for part in parts if names is None or part.name in {*names, known[0]}]


def _report(options: argparse.Namespace) -> int:
    if not options.folder.is_dir():
        raise FileNotFoundError(f"{options.folder} must be the folder of a run, but there is none.")
    if options.page is None:
        print(section(read_results(options.folder)))
    else:
        write_section(options.page, options.folder)
    return 0


if __name__ == "__main__":
    main()
