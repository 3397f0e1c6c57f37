"""Optional declarations of training plug-ins, and their defaults."""

from typing import Any, ClassVar, Protocol, runtime_checkable


@runtime_checkable
class DeclaresPacking(Protocol):
    """An optional part of a training plug-in, for plug-ins that cannot be packed."""

    packs: ClassVar[bool]
    """Whether trainings that use the plug-in may run together, with stacked weights. True if undeclared."""


def can_pack(plugin: object) -> bool:
    """Whether trainings that use a plug-in may run together."""
    return plugin.packs if isinstance(plugin, DeclaresPacking) else True


@runtime_checkable
class DeclaresLength(Protocol):
    """A schedule, curriculum or loss that declares whether its steps depend on the number of epochs of the training."""

    independent_of_length: ClassVar[bool]
    """Whether the steps of a longer training begin with the steps of a shorter one, so that a training that has ended
    can be continued for more epochs."""


def is_independent_of_length(plugin: Any) -> bool:
    """Whether a training with this plug-in can be continued for more epochs. By default it cannot."""
    return isinstance(plugin, DeclaresLength) and plugin.independent_of_length
