"""A training that passes through a smaller network: both networks, and the transitions between them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from plugins.protocols import RatedPart, TrainsSmaller
from search_spaces.recipes import Recipe
from search_spaces.step_settings import StepSettings
from trainers.training.checkpoints import Checkpoint
from trainers.training.row import Row
from trainers.weights.nested import PairedBlocks, PartOfBlocks, Relation

_WEIGHTS, _STATE = "smaller.weights.", "smaller.optimizer."
"""Begin the names of the smaller network's tensors in a checkpoint."""
_GROWN = "smaller.grown"


class LevelledRow(Row):
    """A row with a smaller network, which takes the steps of level 1.

    The row's weights to evaluate and to save are always those of the whole network: while the smaller one is trained,
    those with which the whole one would go on.

    Args:
        model: The whole network.
        recipe: See `Row`.
        rates: See `Row`.
        small: The smaller network, whose weights are taken from the whole one at the first step of level 1.
        method: The method that chooses the level.

    Raises:
        ValueError: The weights of one cannot become those of the other.
    """

    def __init__(
        self, model: nn.Module, recipe: Recipe, rates: tuple[RatedPart, ...], small: Row, method: TrainsSmaller
    ) -> None:
        super().__init__(model, recipe, rates)
        self.small = small
        self._keeps_state = method.relation == "part"
        self._relation: Relation = (
            PartOfBlocks(model, small.model)
            if self._keeps_state
            else PairedBlocks(model, small.model, interpolation=method.interpolation)
        )
        self._is_small = False
        self._grown = 1.0
        self._added = torch.zeros_like(self.values, dtype=torch.bool)
        for name, view in self._named(self._added).items():
            view.fill_(name in self._relation.added)

    @torch.no_grad()
    def at(self, settings: StepSettings) -> Row:
        """The network that takes a step: the smaller one at level 1, otherwise this one."""
        if settings.level == 1:
            if not self._is_small:
                _copy(self._relation.reduce(self._named(super().values_to_evaluate())), self.small.named_values())
                _begin_again(self.small)
                self._is_small = True
            return self.small
        was_small = self._is_small
        if was_small:
            self._grow()
        self._grown = settings.grown
        if was_small:
            self.restart_averages()
        return self

    def members(self) -> list[Row]:
        """Both networks."""
        return [*super().members(), self.small]

    # --- computing with the added blocks scaled ---

    def computed(self, values: Tensor) -> Tensor:
        """The weights (P,) with which a step at `values` is computed."""
        return values if self._grown == 1.0 else values * self._factors(values)

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient (P,) by the weights, changed in place from that by `computed`."""
        return gradient if self._grown == 1.0 else gradient.mul_(self._factors(gradient))

    def trained_values(self) -> Tensor:
        """The weights in training (P,), of the whole network."""
        return self._expanded(self.small.values) if self._is_small else self.values

    def values_to_evaluate(self) -> Tensor:
        """The weights to evaluate and to save, (P,)."""
        if self._is_small:
            found = self._expanded(self.small.values_to_evaluate())
            return found.masked_fill_(self._added, 0.0)
        return self.computed(super().values_to_evaluate())

    @property
    def is_evaluated_elsewhere(self) -> bool:
        """Whether the weights to evaluate differ from those in training."""
        return super().is_evaluated_elsewhere or self._is_small or self._grown != 1.0

    def _factors(self, like: Tensor) -> Tensor:
        return torch.ones_like(like).masked_fill_(self._added, self._grown)

    # --- checkpoints ---

    def averages(self, copy: Callable[[Tensor], Tensor] = Tensor.cpu) -> dict[str, dict[str, Tensor]]:
        """See `Row.averages`; moving averages begin when the network grows, and are the weights before."""
        found = super().averages(copy)
        if not self._is_small:
            return found
        present = self._state_dict(self.values_to_evaluate(), copy)
        return {name: state if name == "swa" else present for name, state in found.items()}

    def optimizer_tensors(self, copy: Callable[[Tensor], Tensor] = Tensor.cpu) -> dict[str, Tensor]:
        """See `Row.optimizer_tensors`; with the smaller network while it is trained."""
        tensors = super().optimizer_tensors(copy)
        tensors[_GROWN] = torch.tensor(self._grown, dtype=torch.float64)
        if self._is_small:
            tensors |= {f"{_WEIGHTS}{name}": value for name, value in self.small.weights(copy).items()}
            tensors |= {f"{_STATE}{name}": value for name, value in self.small.optimizer_tensors(copy).items()}
        return tensors

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore both networks, and which of them is trained."""
        super().restore(checkpoint)
        self._grown = float(checkpoint.optimizer.get(_GROWN, torch.tensor(1.0)))
        weights, state = (_inside(checkpoint.optimizer, prefix) for prefix in (_WEIGHTS, _STATE))
        self._is_small = bool(weights)
        if weights:
            self.small.restore(replace(checkpoint, weights=weights, optimizer=state, averages={}))

    # --- transitions ---

    def _grow(self) -> None:
        """Go on with the whole network, with the smaller one's weights in their places."""
        small = self.small
        self.values.copy_(self._expanded(small.values if self._keeps_state else small.values_to_evaluate()))
        _begin_again(self)
        if self._keeps_state:
            for name, value in small.state.items():
                if value.ndim == 0:
                    self.state[name].copy_(value)
                else:
                    own = self._named(self.state[name])
                    _copy(
                        self._relation.expand(dict(zip(small.names, small.layout.views(value), strict=True)), own), own
                    )
        self._is_small = False

    def _expanded(self, small_values: Tensor) -> Tensor:
        """The whole network's weights (P,) from those of the smaller one (P',) and its own."""
        small = dict(zip(self.small.names, self.small.layout.views(small_values), strict=True))
        found = self.values.clone()
        own = self._named(super().values_to_evaluate() if not self._keeps_state else self.values)
        _copy(self._relation.expand(small, own), self._named(found))
        return found

    def _named(self, row: Tensor) -> dict[str, Tensor]:
        return dict(zip(self.names, self.layout.views(row), strict=True))


def _copy(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        if value is not targets[name]:
            targets[name].copy_(value)


def _begin_again(row: Row) -> None:
    """Give the optimizer of a row the state of a new training with the present weights."""
    for name, value in row.optimizer.start(row.layout, row.values).items():
        row.state[name].copy_(value)


def _inside(tensors: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
