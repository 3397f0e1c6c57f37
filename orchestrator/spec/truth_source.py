"""The source of accuracies to compare scores with: a table, or another study."""

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator

from search_spaces.numbers import NumericModel

_OF_TABLES = ("space", "target", "recipe", "epoch", "num_classes", "num_images")


class TruthSource(NumericModel):
    """External accuracies to compare scores with: a table, or another study."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    table: str | None = Field(
        default=None,
        min_length=1,
        description="a JSON file with a list of rows, each with `arch` and its targets, or a table of trainings (a "
        "parquet file); a relative path is relative to the folder of the study file",
    )
    space: str | None = Field(default=None, description="search space of the table's topologies")
    target: str | None = Field(default=None, description="name of the target in the table")
    recipe: str | None = Field(
        default=None, description="recipe in a table of trainings; may be omitted if it has only one"
    )
    epoch: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        default=None, description="epoch in a table of trainings, starting at 1; by default the last one"
    )
    num_classes: Annotated[int, Field(ge=2, strict=True)] | None = Field(
        default=None, description="number of classes of the table's networks; by default that of the data"
    )
    num_images: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        default=None,
        description="number of images that measured each accuracy of the table (as a fraction or in percent), to "
        "estimate the tau that a perfect score could reach; a table of trainings states it",
    )
    study: str | None = Field(
        default=None,
        description="instead of a table: a study whose trained topologies are compared, on the images of that study",
    )

    @model_validator(mode="after")
    def _is_one_of_both(self) -> "TruthSource":
        if (self.table is None) == (self.study is None):
            given = "neither" if self.table is None else "both"
            raise ValueError(f"must have a `table` or a `study`, but has {given}. Give exactly one.")
        if self.table is not None and (self.space is None or self.target is None):
            missing = "space" if self.space is None else "target"
            raise ValueError(
                f"a table needs the `space` of its topologies and a `target`, but `{missing}` is missing. Add it."
            )
        if self.study is not None:
            extra = next((key for key in _OF_TABLES if getattr(self, key) is not None), None)
            if extra is not None:
                raise ValueError(f"`{extra}` is only for a `table`, but got a `study`, which defines it. Remove it.")
        return self
