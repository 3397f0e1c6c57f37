"""A score given by a formula over block statistics, such as the formulas that `vitsearch discover` finds."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator

from plugins.protocols import PluginCard
from plugins.proxies.formula_text import parse
from plugins.proxies.pass_proxy import PassProxy

if TYPE_CHECKING:
    from plugins.proxies.passes import RecordedPass


@dataclass(frozen=True, kw_only=True)
class Expression(PassProxy):
    """A formula of `plugins.proxies.formulas` as a proxy."""

    card: ClassVar[PluginCard] = PluginCard(
        source="formulas as in Wei et al. 2024 (Auto-Prox), arXiv:2312.09059; the typed grammar is ours",
        cost="per repeat, one initialisation, one forward and backward pass shared with other proxies",
        needs=("images", "labels"),
    )
    direction: ClassVar[Literal["maximize", "minimize"]] = "maximize"
    formula: Annotated[str, AfterValidator(lambda text: str(parse(text)))]
    """Formula, such as `mean(frobenius(minmax(attention.weight)) + sqrt(sigmoid(mean(mlp.gradient))))`; the grammar is
    in docs/discovery.md."""

    def measure(self, recorded: "RecordedPass") -> float:
        """The formula's value for one network."""
        import numpy as np

        from plugins.proxies.block_statistics import block_statistics
        from plugins.proxies.formulas import evaluate

        formula = parse(self.formula)
        rows = block_statistics(recorded, formula.statistics).numpy()
        values = dict(zip(formula.statistics, rows, strict=True))
        first = np.zeros(1, dtype=int)
        return float(evaluate(formula, values, first, counts=np.array([rows.shape[1]]))[0])
