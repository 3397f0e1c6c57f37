"""What a study can weigh against its metric, as in `metric: [accuracy, latency]`."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

CostName = Literal["latency", "macs", "parameters"]
COST_NAMES: tuple[CostName, ...] = ("latency", "macs", "parameters")


class Cost(BaseModel):
    """A cost of using a model. Less of it is better."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    name: CostName

    @property
    def key(self) -> str:
        """Key of its value in the metrics of a trial."""
        return "latency_ms" if self.name == "latency" else self.name

    @property
    def words(self) -> str:
        """Its name in a sentence."""
        return "multiply-accumulates" if self.name == "macs" else self.name

    def text(self, value: float) -> str:
        """A value for people: `4.92 ms`, `331,882`, `1.43 million`."""
        if self.name == "latency":
            return f"{value:.3g} ms"
        return f"{value / 1e6:.3g} million" if value >= 1e6 else f"{value:,.0f}"
