"""The stages by the word that a study file uses. A new stage is a file in `orchestrator/stages/` and a line here.

The table holds names, and no entry points: a stage uses the store, the engines and the lineage from inside, so it is
no plug-in, and a line here works without installing the project again. Names keep this folder below the stages.
"""

from functools import cache
from importlib import import_module
from typing import Any

from orchestrator.spec.stage_model import StageModel

STAGES = {
    "screen": "orchestrator.stages.screen:SCREEN",
    "grow": "orchestrator.stages.grow:GROW",
    "train": "orchestrator.stages.train:TRAIN",
    "stopping": "orchestrator.stages.stopping:STOPPING",
    "averaging": "orchestrator.stages.averaging:AVERAGING",
    "correlate": "orchestrator.stages.correlate:CORRELATE",
    "promote": "orchestrator.stages.promote:PROMOTE",
}
"""Module and attribute of each stage's `orchestrator.stages.kind.StageKind`."""


@cache
def load_stage(kind: str) -> Any:
    """The `StageKind` of a name in `STAGES`; `orchestrator.stages.kind.stage_kind` is the same with its type."""
    module, _, attribute = STAGES[kind].partition(":")
    return getattr(import_module(module), attribute)


def stage_models() -> dict[str, type[StageModel]]:
    """The model of each stage's block in a study file, by name."""
    return {kind: load_stage(kind).model for kind in STAGES}
