"""A model in training: weights and optimizer state as flat rows of numbers, and averages of the weights.

Legend: `P` numbers in a row.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from plugins.protocols import (
    AppliesRates,
    EvaluatedElsewhere,
    NeedsCurvature,
    Optimizer,
    OptimizerState,
    ParameterLayout,
    RatedPart,
    TwoGradients,
    is_block,
)
from plugins.registry import create
from search_spaces.ema_rates import ema_names
from search_spaces.recipes import Recipe
from search_spaces.step_settings import StepSettings
from trainers.training.checkpoints import Checkpoint
from trainers.training.companions import Companions
from trainers.training.ranks import ALONE, Ranks

_ALIGNMENT = 16
"""Numbers of float32 in 64 bytes, torch's own alignment, on which the rounding of matrix products depends."""
_TRAINED = "trained_values"
_LOSS = "loss."
"""Begins the names of the loss's state in a checkpoint."""
_PEER_WEIGHTS, _PEER_STATE = "peer.weights.", "peer.optimizer."
"""Begin the names of the second model's tensors."""
_EMA_UPDATES, _SWA_EPOCHS = "averages.ema_updates", "averages.swa_epochs"


class Row:
    """A model whose parameters are views of one row of numbers, with its optimizer.

    Single and packed training use the same rows, so each can restore the checkpoints of the other.

    Args:
        model: The model. Its parameters become views of the row.
        recipe: Selects the optimizer and the averages to maintain.
        rates: Parts of the row with another learning rate.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, rates: tuple[RatedPart, ...] = ()) -> None:
        self.model = model
        self.recipe = recipe
        self.num_blocks = sum(is_block(module) for module in model.modules())
        self.forward: Callable[..., Any] = model
        """Computes logits with the model's own parameters in a step that is computed alone."""
        self.num_parts = 1
        """Number of parts of a batch whose gradients are computed one after another, to save memory."""
        self.layout, self.values, self._parameters = _lay_out(model, rates)
        self._has_ties = len(list(model.named_parameters(remove_duplicate=False))) > len(self._parameters)
        self.optimizer: Optimizer = create("optimizers", recipe.optimizer.name, recipe.optimizer.settings)
        self.two_gradients = self.optimizer if isinstance(self.optimizer, TwoGradients) else None
        self._elsewhere = self.optimizer if isinstance(self.optimizer, EvaluatedElsewhere) else None
        self._curvature = self.optimizer if isinstance(self.optimizer, NeedsCurvature) else None
        applies_rates = isinstance(self.optimizer, AppliesRates) and self.optimizer.applies_rates
        self._step_factors = None if applies_rates else self.layout.rate_factors(self.values)
        self.state: OptimizerState = self.optimizer.start(self.layout, self.values)
        self.loss_state: dict[str, Tensor] = {}
        """State of the loss by name, of any shape; checkpoints keep it with the optimizer state."""
        self.ranks: Ranks = ALONE
        """The processes that compute its gradients."""
        self.companions: Companions | None = None
        """Frozen networks whose outputs the loss reads."""
        self.peer: Row | None = None
        """A second model, trained at the same time, whose outputs the loss reads; checkpoints keep it."""
        self._extra: OptimizerState = {}
        self._ema_decays = ema_names(recipe.ema)
        self._emas = {name: self.values.clone() for name in self._ema_decays}
        self._swa = None if recipe.swa is None else torch.zeros_like(self.values)
        self._ema_updates = self._swa_epochs = 0

    def call(self, parameters: Sequence[Tensor], images: Tensor, **options: Any) -> Any:
        """Logits computed with the given parameters instead of the model's own; works under `torch.func.vmap`."""
        named = dict(zip(self.names, parameters, strict=True))
        return functional_call(self.model, named, (images,), options, tie_weights=self._has_ties)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the row."""
        return self.layout.names

    def parameters(self) -> list[nn.Parameter]:
        """The parameters, in the order of `names`."""
        return self._parameters

    def named_values(self) -> dict[str, Tensor]:
        """Views of the parameters' values, by name."""
        return dict(zip(self.names, self.layout.views(self.values), strict=True))

    def at(self, settings: StepSettings) -> "Row":  # noqa: ARG002
        """The row that takes a step with these settings; see `trainers.training.levels`."""
        return self

    def members(self) -> "list[Row]":
        """All models that this training trains: this one, and the second model if there is one."""
        return [self] if self.peer is None else [self, self.peer]

    def remember(self, name: str, values: Tensor) -> None:
        """Store a vector (P,) with the optimizer state in checkpoints."""
        self._extra[name] = values

    def recall(self, name: str) -> Tensor | None:
        """A vector stored by `remember`, in this process or before the training was resumed."""
        return self._extra.get(name)

    def shared_tensors(self) -> list[Tensor]:
        """All tensors of all members that equal those of the other ranks between two steps."""
        found: list[Tensor] = []
        for one in self.members():
            found += [one.values, *one.state.values(), *one.loss_state.values(), *one._emas.values()]
            found += [] if one._swa is None else [one._swa]
        return found

    # --- steps ---

    def computed(self, values: Tensor) -> Tensor:
        """The weights (P,) with which a step at `values` is computed."""
        return values

    def pull_back(self, gradient: Tensor) -> Tensor:
        """The gradient (P,) by the weights, changed in place from that by `computed`."""
        return gradient

    def gather(self, gradients: Sequence[Tensor]) -> Tensor:
        """The gradients of the parameters as one row (P,), valid until the next call."""
        torch._foreach_copy_(self.gradient_views, list(gradients))
        return self._gradient

    @cached_property
    def gradient_views(self) -> list[Tensor]:
        """Views of each parameter's gradient into the row that `gather` returns."""
        return self.layout.views(self._gradient)

    @cached_property
    def _gradient(self) -> Tensor:
        return torch.zeros_like(self.values)

    @torch.no_grad()
    def update(self, gradient: Tensor, settings: StepSettings) -> None:
        """Take one optimizer step with a gradient (P,), which may be overwritten."""
        if gradient is not self._gradient and gradient._base is not self._gradient:
            self._gradient.copy_(gradient)  # costs less than new views of all segments, which optimizers keep of a row
        before = None if self._step_factors is None else self.values.clone()
        self.optimizer.update(self.layout, self.values, self._gradient, self.state, settings)
        if before is not None and self._step_factors is not None:
            # A step is proportional to the learning rate, so scaling it has the effect of another rate.
            torch.lerp(before, self.values, self._step_factors, out=self.values)
        if self._emas:
            self._ema_updates += 1
            # Warm-up of the decay: a fixed decay would retain the initial weights for too long.
            limit, present = (1 + self._ema_updates) / (10 + self._ema_updates), self.values_to_evaluate()
            for name, decay in self._ema_decays.items():
                self._emas[name].lerp_(present, 1 - min(decay, limit))

    @property
    def is_observation_due(self) -> bool:
        """Whether the optimizer needs an estimate of the curvature before the next step."""
        return self._curvature is not None and self._curvature.is_observation_due(self.state)

    @torch.no_grad()
    def observe(self, sampled_gradient: Tensor, num_images: int) -> None:
        """Give the optimizer a gradient (P,) with drawn classes, which it may overwrite; see `NeedsCurvature`."""
        assert self._curvature is not None
        self._curvature.observe(self.layout, sampled_gradient, num_images, self.state)

    @torch.no_grad()
    def finish_epoch(self, progress: float) -> None:
        """Add the weights to the stochastic weight average, if `progress` is past its start."""
        if self._swa is not None and self.recipe.swa is not None and progress > self.recipe.swa:
            self._swa_epochs += 1
            self._swa.lerp_(self.values_to_evaluate(), 1 / self._swa_epochs)

    @contextmanager
    def evaluated(self) -> Iterator[nn.Module]:
        """A context with the weights to evaluate in the model. No step may be taken inside."""
        if not self.is_evaluated_elsewhere:
            yield self.model
            return
        trained = self.values.clone()
        with torch.no_grad():
            self.values.copy_(self.values_to_evaluate())
        try:
            yield self.model
        finally:
            with torch.no_grad():
                self.values.copy_(trained)

    def values_to_evaluate(self) -> Tensor:
        """The weights to evaluate and to save, (P,)."""
        if self._elsewhere is not None:
            return self._elsewhere.evaluated(self.layout, self.values, self.state)
        return self.values

    @property
    def is_evaluated_elsewhere(self) -> bool:
        """Whether the weights to evaluate differ from those in training."""
        return self._elsewhere is not None

    def trained_values(self) -> Tensor:
        """The weights in training, (P,)."""
        return self.values

    def restart_averages(self) -> None:
        """Begin the moving averages again with the present weights."""
        for average in self._emas.values():
            average.copy_(self.values_to_evaluate())
        self._ema_updates = 0

    # --- checkpoints ---

    # By default, these are on the CPU and valid until the next step. `copy` copies a row to main memory in another way.

    def weights(self, copy: Callable[[Tensor], Tensor] = Tensor.cpu) -> dict[str, Tensor]:
        """The state dict to evaluate."""
        return self._state_dict(self.values_to_evaluate(), copy)

    def averages(self, copy: Callable[[Tensor], Tensor] = Tensor.cpu) -> dict[str, dict[str, Tensor]]:
        """State dicts of the maintained averages by name: moving ones (`ema_names`), and `swa` once it has an epoch."""
        found = {name: self._state_dict(values, copy) for name, values in self._emas.items()}
        if self._swa is not None and self._swa_epochs:
            found["swa"] = self._state_dict(self._swa, copy)
        return found

    def optimizer_tensors(self, copy: Callable[[Tensor], Tensor] = Tensor.cpu) -> dict[str, Tensor]:
        """The optimizer state by parameter index: `3.exp_avg` belongs to the fourth parameter.

        Numbers shared by all parameters (`step`) are repeated for each, as in `torch.optim`.
        """
        tensors: dict[str, Tensor] = {}
        for name, value in {**self.state, **self._extra, **self._values_besides()}.items():
            on_cpu = copy(value)
            parts = [on_cpu] * len(self.names) if value.ndim == 0 else self.layout.views(on_cpu)
            tensors |= {f"{index}.{name}": part for index, part in enumerate(parts)}
        if self._emas:
            tensors[_EMA_UPDATES] = torch.tensor(self._ema_updates)
        if self._swa is not None:
            tensors[_SWA_EPOCHS] = torch.tensor(self._swa_epochs)
        tensors |= {f"{_LOSS}{name}": copy(value) for name, value in self.loss_state.items()}
        if self.peer is not None:
            tensors |= {f"{_PEER_WEIGHTS}{name}": value for name, value in self.peer.weights(copy).items()}
            tensors |= {f"{_PEER_STATE}{name}": value for name, value in self.peer.optimizer_tensors(copy).items()}
        return tensors

    @torch.no_grad()
    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore weights, optimizer state and averages from a checkpoint."""
        self.model.load_state_dict(checkpoint.weights)
        names = {name.partition(".")[2] for name in checkpoint.optimizer if name.partition(".")[0].isdigit()}
        for name in sorted(names):
            parts = [checkpoint.optimizer[f"{index}.{name}"] for index in range(len(self.names))]
            if name == _TRAINED:
                self._fill(self.values, parts)
            elif name in self.state and self.state[name].ndim == 0:
                self.state[name].copy_(parts[0])
            elif name in self.state:
                self._fill(self.state[name], parts)
            else:
                self._extra[name] = torch.zeros_like(self.values)
                self._fill(self._extra[name], parts)
        for average, target in {**self._emas, "swa": self._swa}.items():
            if target is not None:
                state = checkpoint.averages.get(average, checkpoint.weights)
                self._fill(target, [state[name] for name in self.names])
        if self.peer is not None:
            self.peer.restore(_peer_in(checkpoint))
        for name, value in self.loss_state.items():
            value.copy_(checkpoint.optimizer[f"{_LOSS}{name}"])
        self._ema_updates = int(checkpoint.optimizer.get(_EMA_UPDATES, torch.tensor(0)))
        self._swa_epochs = int(checkpoint.optimizer.get(_SWA_EPOCHS, torch.tensor(0)))

    def _fill(self, target: Tensor, parts: list[Tensor]) -> None:
        for view, part in zip(self.layout.views(target), parts, strict=True):
            view.copy_(part)

    def _values_besides(self) -> OptimizerState:
        """The weights in training, if other weights are evaluated and saved."""
        return {_TRAINED: self.values} if self.is_evaluated_elsewhere else {}

    def _state_dict(self, values: Tensor, copy: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The model's state dict with parameters from a row, which is copied to the CPU at once."""
        ours = dict(zip(self.names, self.layout.views(copy(values)), strict=True))
        state = self.model.state_dict()
        return {name: ours[name] if name in ours else copy(value) for name, value in state.items()}


def _peer_in(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of the second model inside that of the first."""
    weights, optimizer = (
        {name.removeprefix(prefix): value for name, value in checkpoint.optimizer.items() if name.startswith(prefix)}
        for prefix in (_PEER_WEIGHTS, _PEER_STATE)
    )
    return replace(checkpoint, weights=weights, optimizer=optimizer, averages={})


def layout_of(model: nn.Module, rates: tuple[RatedPart, ...] = ()) -> ParameterLayout:
    """The layout of a model's parameters in one row; those with weight decay come first.

    Weights of linear layers and convolutions are decayed. Biases, norms, class tokens and positions are not, as in
    DeiT.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decayed = [(name, one) for name, one in named if name.endswith("weight") and one.ndim >= 2]
    names = {name for name, _ in decayed}
    ordered = [*decayed, *((name, one) for name, one in named if name not in names)]
    starts, end = [], 0
    for _, parameter in ordered:
        starts.append(end)
        end += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
    return ParameterLayout(
        names=tuple(name for name, _ in ordered),
        shapes=tuple(parameter.shape for _, parameter in ordered),
        starts=tuple(starts),
        num_decayed=len(decayed),
        num_numbers=end,
        rates=rates,
    )


def _lay_out(model: nn.Module, rates: tuple[RatedPart, ...]) -> tuple[ParameterLayout, Tensor, list[nn.Parameter]]:
    """Put the parameters of a model into one row."""
    layout = layout_of(model, rates)
    known = dict(model.named_parameters())
    ordered = [known[name] for name in layout.names]
    values = torch.zeros(layout.num_numbers, dtype=ordered[0].dtype, device=ordered[0].device)
    replaced: dict[int, nn.Parameter] = {}
    for parameter, view in zip(ordered, layout.views(values), strict=True):
        view.copy_(parameter.detach())
        replaced[id(parameter)] = nn.Parameter(view)
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None and id(old) in replaced:
                module._parameters[name] = replaced[id(old)]
    return layout, values, [replaced[id(parameter)] for parameter in ordered]


def pack_problem(row: Row) -> str | None:
    """The reason why a model cannot be computed with stacked weights; `None` if it can."""
    return _state_problem(row, "in a pack", "Train it without a pack.")


def rank_problem(row: Row) -> str | None:
    """The reason why several ranks cannot train a model; `None` if they can."""
    return _state_problem(row, "on several GPUs", "Set `gpus_per_trial` to 1.")


def _state_problem(row: Row, where: str, advice: str) -> str | None:
    """Why the result of a model depends on more than its weights and inputs; `None` if it does not."""
    name = type(row.model).__name__
    running = [one for one, module in row.model.named_modules() if getattr(module, "track_running_stats", False)]
    if running:
        return (
            f"models {where} must have no state besides their weights, but {running[0]} of {name} keeps running "
            f"statistics. {advice}"
        )
    if row.num_blocks == 0 and row.recipe.drop_path != 0.0:
        return (
            f"drop_path={row.recipe.drop_path} {where} needs a model with blocks (`plugins.protocols."
            f"TransformerBlock`), but {name} has none. {advice}"
        )
    return None
