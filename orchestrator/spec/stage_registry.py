"""Registry of stages by their name in a study file. A new stage is a file in `orchestrator/stages/` and a line here.

Stages are not plug-ins and have no entry points, because they use the store, the engines and the run tree directly. A
new line here takes effect without reinstalling the project. The table refers to modules by name, so that this folder
does not import the stages.
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
    """The `StageKind` of a name in `STAGES`; `orchestrator.stages.kind.stage_kind` is the typed equivalent."""
    module, _, attribute = STAGES[kind].partition(":")
    return getattr(import_module(module), attribute)


def stage_models() -> dict[str, type[StageModel]]:
    """The model for each stage's block in a study file, by stage name."""
    return {kind: load_stage(kind).model for kind in STAGES}
