"""The common base of stages that search plug-ins of one kind and their settings."""

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar

from orchestrator.spec.stage_model import StageModel
from search_spaces.dimensions import Dimension, Scalar
from search_spaces.recipes import PluginChoice, decode_plugin, parse_plugin_dimensions


class PluginSearchModel(StageModel):
    """A search over plug-ins of one kind and their settings."""

    plugin_key: ClassVar[str]
    """Name of the dimension that selects the plug-in."""
    plugin_field: ClassVar[str]

    @cached_property
    def _parsed(self) -> tuple[PluginChoice, tuple[Dimension, ...]]:
        return parse_plugin_dimensions(self.plugin_key, list(getattr(self, self.plugin_field)))

    @property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions to search; empty if the file fixes everything."""
        return self._parsed[1]

    def decode(self, point: Mapping[str, Scalar]) -> PluginChoice:
        """The plug-in at a point of `dimensions`."""
        return decode_plugin(self.plugin_key, point) or self._parsed[0]

    @property
    def known_dimensions(self) -> tuple[Dimension, ...] | None:
        """Like `dimensions`, or `None` if a plug-in is invalid, which is reported separately."""
        try:
            return self.dimensions
        except ValueError:
            return None
