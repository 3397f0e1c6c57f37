"""The plan of a table: which trainings it has, and what is measured in each."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from plugins.protocols import PoolProxy, Signal
from plugins.registry import available, create, load, parse_topology
from search_spaces.base import Costs, ImageTask, Topology
from search_spaces.recipes import PluginChoice, Recipe
from trainers.config import Configuration, DataConfig

CIFAR_10 = ImageTask(image_size=32, in_channels=3, num_classes=10)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TableData(_Frozen):
    """Sizes of the parts. The source is given on the command line."""

    image_size: int = 32
    train: int = Field(ge=20, description="number of training images")
    validation: int = Field(ge=20, description="number of validation images")
    test: int = Field(ge=20, description="number of test images")
    split_seed: int = 0

    def config(self, source: Path | str) -> DataConfig:
        """The data as a training takes them."""
        return DataConfig(
            source=str(source),
            image_size=self.image_size,
            max_images=self.train + self.validation,
            validation=self.validation / (self.train + self.validation),
            max_test_images=self.test,
            split_seed=self.split_seed,
        )


class TablePlan(_Frozen):
    """A plan, read from a YAML file."""

    table: str = Field(description="name of the table")
    why: str = Field(default="", description="why these sizes were chosen, for the card")
    data: TableData
    epochs: int = Field(ge=1)
    num_repeated: int = Field(default=0, ge=0, description="number of pairs that are trained with further seeds")
    num_seeds: int = Field(default=3, ge=2, description="number of seeds of such a pair")
    ema: tuple[float, ...] = Field(default=(), description="decays per step of the moving averages")
    lawa: tuple[int, ...] = Field(default=(), description="numbers of newest epochs that LAWA averages")
    average_every: int = Field(
        default=1, ge=1, description="averages are measured every so many epochs, counted back from the last one"
    )
    test_every: int = Field(
        default=1, ge=1, description="epochs between measurements on the test part, in the same way"
    )
    signals: tuple[Signal, ...] = Field(default=(), description="signals of each epoch")
    proxies: Literal["all"] | tuple[PluginChoice, ...] = Field(
        default="all",
        description="scores of each topology; `all` are those that need neither settings nor other topologies",
    )
    topologies: tuple[str, ...] = Field(min_length=2)
    recipes: dict[str, Recipe] = Field(min_length=2)

    @field_validator("topologies")
    @classmethod
    def _topologies_fit(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(parse_topology(text).id for text in texts)
        twice = [text for text, count in Counter(found).items() if count > 1]
        if twice:
            raise ValueError(f"topologies must differ, but {twice[0]} is listed twice. Remove one.")
        return found

    @model_validator(mode="after")
    def _pairs_suffice(self) -> "TablePlan":
        pairs = len(self.topologies) * len(self.recipes)
        if self.num_repeated > pairs:
            raise ValueError(
                f"`num_repeated` must be at most the {pairs} pairs, but got {self.num_repeated}. Lower it."
            )
        return self

    @property
    def digest(self) -> str:
        """sha256 of the plan, without the text `why`."""
        return _digest(self.model_dump(mode="json", exclude_defaults=True, exclude={"why"}))

    @property
    def averages(self) -> tuple[str, ...]:
        """Names of the averages, as in the columns of the table."""
        return (*(f"ema-{rate}" for rate in self.ema), *(f"lawa-{window}" for window in self.lawa))

    def measures_averages(self, epoch: int) -> bool:
        """Whether the averages are measured after an epoch."""
        return (self.epochs - epoch) % self.average_every == 0

    def measures_test(self, epoch: int) -> bool:
        """Whether the weights are measured on the test part after an epoch."""
        return (self.epochs - epoch) % self.test_every == 0

    def proxy_choices(self) -> tuple[PluginChoice, ...]:
        """The proxies that score each topology, without those that need other topologies or settings."""
        if self.proxies != "all":
            return self.proxies
        return tuple(PluginChoice(name=name) for name in available("proxies") if _scores_alone(name))

    def score_key(self, topology: str, data_digest: str) -> str:
        """Identifies the scores of a topology: equal for equal inputs."""
        proxies = [choice.model_dump(mode="json") for choice in self.proxy_choices()]
        return _digest({"topology": topology, "images": data_digest, "proxies": proxies})[:20]


class Cell(_Frozen):
    """One training of the table."""

    topology: str
    recipe: str
    seed: int

    def configuration(self, plan: TablePlan, source: Path | str) -> Configuration:
        """What is trained."""
        recipe = plan.recipes[self.recipe]
        if plan.ema:
            recipe = Recipe.model_validate({**recipe.model_dump(), "ema": {"rates": list(plan.ema)}})
        return Configuration(
            data=plan.data.config(source), topology=self.topology, recipe=recipe, epochs=plan.epochs, seed=self.seed
        )

    def key(self, plan: TablePlan, data_digest: str) -> str:
        """Identifies the results of the training: equal for equal inputs, wherever the images are."""
        content = {
            "configuration": self.configuration(plan, "images").model_dump(mode="json", exclude_defaults=True),
            "images": data_digest,
            "lawa": plan.lawa,
            "average_every": plan.average_every,
            "test_every": plan.test_every,
            "signals": plan.signals,
        }
        return _digest(content)[:20]


def read_plan(file: Path) -> TablePlan:
    """Read a plan.

    Raises:
        ValueError: The file is not a plan; the message says what is wrong.
    """
    return TablePlan.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))


def cells_of(plan: TablePlan) -> list[Cell]:
    """All trainings, topology by topology, so that those of one topology can share a pack.

    Every pair is trained with seed 0. The pairs with further seeds are spread so that all topologies, and all recipes,
    have about as many of them.
    """
    repeated = set(_spread_pairs(plan.topologies, tuple(plan.recipes), plan.num_repeated))
    return [
        Cell(topology=topology, recipe=recipe, seed=seed)
        for topology in plan.topologies
        for recipe in plan.recipes
        for seed in range(plan.num_seeds if (topology, recipe) in repeated else 1)
    ]


def _spread_pairs(topologies: Sequence[str], recipes: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Pairs, each of the topology and the recipe that have the fewest so far; ties are drawn."""
    rng = Random(0)
    left = [(topology, recipe) for topology in topologies for recipe in recipes]
    rng.shuffle(left)
    uses: Counter[str] = Counter()
    chosen = []
    for _ in range(count):
        pair = min(left, key=lambda one: (uses["t" + one[0]], uses["r" + one[1]]))
        left.remove(pair)
        chosen.append(pair)
        uses.update(["t" + pair[0], "r" + pair[1]])
    return chosen


def choose_topologies(
    count: int,
    *,
    low: float,
    high: float,
    skew: float = 1.0,
    seed: int = 0,
    task: ImageTask = CIFAR_10,
    tries: int = 20_000,
) -> list[str]:
    """Topologies of as-vit and pit whose MACs are spread between two bounds.

    The range is cut into `count` parts, and the first topology drawn for a part is taken. The spaces alternate, two of
    as-vit for each pit, if both reach the part.

    Args:
        count: Number of topologies.
        low: Smallest MACs of a forward pass.
        high: Largest MACs.
        skew: With 1, the parts are equal on a log scale; with more, there are more small topologies.
        seed: Seed of the draws.
        task: Image size, channels and classes.
        tries: Number of draws.

    Raises:
        ValueError: No topology was found for a part.
    """
    rng = Random(seed)
    found: dict[int, dict[str, str]] = {}
    for number in range(tries):
        topology = _draw_as_vit(rng) if number % 2 else _draw_pit(rng)
        space = load("spaces", topology.id.partition(":")[0])
        if space.problem(topology, task) is not None:
            continue
        costs: Costs = space.costs(topology, task)
        part = int(count * _log_share(costs.macs, low, high) ** (1 / skew)) if low <= costs.macs < high else -1
        if part >= 0:
            found.setdefault(part, {}).setdefault(topology.id.partition(":")[0], topology.id)
    missing = [part for part in range(count) if part not in found]
    if missing:
        raise ValueError(f"each part of the range must have a topology, but {missing} have none. Widen the range.")
    wanted = ["pit" if part % 3 == 2 else "as-vit" for part in range(count)]
    return [found[part].get(space) or next(iter(found[part].values())) for part, space in enumerate(wanted)]


def _log_share(value: float, low: float, high: float) -> float:
    from math import log

    return log(value / low) / log(high / low)


def _draw_as_vit(rng: Random) -> Topology:
    space = load("spaces", "as-vit")(
        width=rng.choice((8, 12, 16, 24, 32, 40)), depths=tuple(rng.choice((1, 1, 2, 3)) for _ in range(4))
    )
    topology: Topology = space.sample(rng)
    return topology


def _draw_pit(rng: Random) -> Topology:
    topology: Topology = load("spaces", "pit")(patch_size=rng.choice((8, 16))).sample(rng)
    return topology


def _scores_alone(proxy: str) -> bool:
    try:
        return not isinstance(create("proxies", proxy), PoolProxy)
    except ValueError:  # it needs settings
        return False


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
