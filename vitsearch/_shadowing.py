"""Finds folders and files of the caller that hide our packages, which have common names such as `plugins`."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

PACKAGES = ("orchestrator", "plugins", "search_spaces", "trainers")
"""Our other packages. They lie beside this one, wherever it is installed."""


def check_packages() -> None:
    """Make sure that `import plugins` and the like find our packages; none of them is imported for it.

    Raises:
        ImportError: Something else of that name is found first.
    """
    for name in PACKAGES:
        ours = Path(__file__).resolve().parents[1] / name
        found = _place(name)
        if found is not None and found.resolve() != ours:
            kind = "folder" if found.is_dir() else "file"
            raise ImportError(
                f"vitsearch must find its own package {name!r} in {ours}, but Python finds the {kind} {found} first. "
                f"Rename that {kind}, or run Python where it is not on the path (sys.path, PYTHONPATH).",
                name=name,
                path=str(found),
            )


def _place(name: str) -> Path | None:
    """The folder or file that `import name` finds; `None` if there is none."""
    spec = _spec(name)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    if folders:
        return Path(folders[0])
    return Path(spec.origin) if spec.origin and spec.has_location else None


def _spec(name: str) -> ModuleSpec | None:
    if name in sys.modules:
        return sys.modules[name].__spec__
    return importlib.util.find_spec(name)
