"""Field types and check hooks that all stages of a study file share."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import ConfigDict, Field

from orchestrator.spec.problems import NAME_PATTERN, Problem
from orchestrator.spec.truth_source import TruthSource
from plugins.protocols import Signal
from search_spaces.numbers import MAX_COUNT, MAX_SEED, NumericModel
from trainers.config import DataConfig
from trainers.yaml_source import KeyPath

Count = Annotated[int, Field(ge=1, le=MAX_COUNT, strict=True)]
ModelSize = Annotated[int, Field(ge=1, le=MAX_SEED, strict=True)]
Fraction = Annotated[float, Field(gt=0, lt=1, strict=True)]
StageName = Annotated[str, Field(pattern=NAME_PATTERN)]


class SpecModel(NumericModel):
    """A frozen part of a study file that forbids unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StageModel(SpecModel):
    """A stage in a study file. Each stage in `orchestrator/stages/` defines a subclass."""

    reads_test_part: ClassVar[bool] = False
    """Whether the stage reads the test images. If so, they are checked before the study begins."""

    stage: str
    name: StageName

    @property
    def requires(self) -> tuple[str, ...]:
        """Kinds of stages that must come before this one."""
        return ()

    def own_problems(self, at: KeyPath) -> Iterator[Problem]:  # noqa: ARG002 - for subclasses
        """Yield mistakes within the stage, such as a plug-in that is not installed."""
        yield from ()

    def order_problems(self, before: Sequence["StageModel"], at: KeyPath) -> Iterator[Problem]:  # noqa: ARG002
        """Yield conflicts with preceding stages, except for missing stages of `requires`."""
        yield from ()

    def data_problems(
        self,
        before: Sequence["StageModel"],  # noqa: ARG002
        data: DataConfig,  # noqa: ARG002
        at: KeyPath,  # noqa: ARG002
    ) -> Iterator[Problem]:
        """Yield conflicts with the images; called last, because these checks are the slowest."""
        yield from ()

    def remarks(self, before: Sequence["StageModel"]) -> Iterator[str]:  # noqa: ARG002 - for subclasses
        """Name settings that will be left out or have no effect, although the stage is valid."""
        yield from ()

    @property
    def truths(self) -> tuple[TruthSource, ...]:
        """External accuracies that the stage reads."""
        return ()

    @property
    def signals_read(self) -> frozenset[Signal]:
        """Signals of preceding trainings that the stage reads, and that these trainings must record."""
        return frozenset()

    def checkpoints_read(self, epochs: int) -> int:  # noqa: ARG002 - for subclasses
        """Number of newest checkpoints of a preceding training of `epochs` epochs that must be kept for the stage."""
        return 0

    @classmethod
    def with_absolute_paths(cls, raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:  # noqa: ARG003
        """Resolve paths in the stage's unchecked block of a study file relative to `folder`."""
        return dict(raw)


M = TypeVar("M", bound=StageModel)


def latest(stages: Sequence[StageModel], model: type[M]) -> M | None:
    """The last stage of a kind, or `None` if there is none."""
    return next((stage for stage in reversed(stages) if isinstance(stage, model)), None)
