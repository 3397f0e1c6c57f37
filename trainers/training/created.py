"""The plug-ins that the steps of a training use, each created once."""

from functools import cached_property
from typing import Any

from plugins.protocols import LossInput, loss_inputs
from plugins.registry import create
from search_spaces.recipes import PluginChoice

_MOST_KEPT = 1024


class Created:
    """A plug-in with what steps ask about it. `isinstance` with a protocol is slow, so it is asked once."""

    def __init__(self, kind: str, choice: PluginChoice) -> None:
        self.choice = choice
        self.key = repr(choice)
        """Equal for equal choices."""
        self.plugin: Any = create(kind, choice.name, choice.settings)
        self._offers: dict[type, bool] = {}

    def offers(self, protocol: type) -> bool:
        """Whether the plug-in has the parts of a protocol."""
        if protocol not in self._offers:
            self._offers[protocol] = isinstance(self.plugin, protocol)
        return self._offers[protocol]

    @cached_property
    def inputs(self) -> frozenset[LossInput]:
        """The inputs that training must compute for a loss, empty if it declares none."""
        return loss_inputs(self.plugin)


_created: dict[int, Created] = {}


def created(kind: str, choice: PluginChoice) -> Created:
    """The plug-in of a choice, created once. All steps of a training share the choice object."""
    known = _created.get(id(choice))
    if known is None or known.choice is not choice:
        if len(_created) >= _MOST_KEPT:
            _created.clear()
        known = _created[id(choice)] = Created(kind, choice)
    return known
