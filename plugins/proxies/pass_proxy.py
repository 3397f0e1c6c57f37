"""What all scores have in common that are read from one pass of a fresh network."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from plugins.protocols import Candidate, ProxyScore

if TYPE_CHECKING:
    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class PassProxy(ABC):
    """A `plugins.proxies.passes.PassReader`, which shares its passes with all others."""

    repeats: Annotated[int, Field(ge=1)] = 1
    """Number of fresh initialisations to average over."""

    def score(self, candidate: Candidate) -> ProxyScore:
        """Mean and spread of `measure` over the initialisations."""
        from plugins.proxies.passes import score_passes

        return score_passes(self, candidate)

    @abstractmethod
    def measure(self, recorded: "RecordedPass") -> float:
        """The score of one network. A non-finite value marks the topology as bad."""
