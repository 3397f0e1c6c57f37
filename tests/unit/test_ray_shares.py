"""The number of trainings per Ray worker and their share of a GPU, from measured memory."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.ray.placement import Node
from orchestrator.engines.ray.trial_resources import Measured, SharePlanner
from search_spaces.base import ImageTask
from tests.unit.training import DIGITS, TOPOLOGY, configuration
from trainers.config import Resources, ScoreTask, TrainTask
from trainers.hardware.resources import Devices, Gpu, TrialMemory
from trainers.tasks.dry_run import memory_key

IMAGES = ImageTask(image_size=32, in_channels=1, num_classes=10)
GPU = Gpu(name="GPU", total_gib=10, free_gib=10)
TASK = TrainTask(configuration=configuration(), folder=Path("a"))
SCORE = ScoreTask(data=DIGITS, topology=TOPOLOGY, proxies=(), seed=0)


class GpuNodes:
    """A cluster of machines, of which some have GPUs."""

    is_local = False

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes

    def has_gpus(self) -> bool:
        return any(node.num_gpus for node in self._nodes)

    def nodes(self) -> tuple[Node, ...]:
        return self._nodes


ONE_GPU = GpuNodes(Node(16, 1))


def planner(
    memory: TrialMemory | None = None, *, nodes: GpuNodes = ONE_GPU, was_measured: bool = True, **limits: Any
) -> SharePlanner:
    found = SharePlanner(nodes, Resources(memory_margin=0, **limits))
    if was_measured:
        known = {} if memory is None else {memory_key(TASK.configuration, IMAGES): memory}
        found._measured = Measured(Devices(cores=16, memory_gib=64, gpus=(GPU,)), known)
        found._image_task = IMAGES
    return found


@pytest.mark.parametrize(
    ("training_gib", "size", "gpu_share"),
    [
        (0.5, 4, 1 / 3),  # three packs of 1 + 4 * 0.5 GiB in 10 GiB
        (2, 4, 1),
        (3, 3, 1),  # and not four
        (9, 1, 1),
        (99, 1, 1),
    ],
)
def test_a_pack_is_as_large_as_wanted_and_as_fits_a_gpu(training_gib: float, size: int, gpu_share: float) -> None:
    shares = planner(TrialMemory(process_gib=1, training_gib=training_gib), trials_per_pack=4)
    assert shares.pack_size(TASK) == size
    assert shares(TASK).num_gpus == pytest.approx(gpu_share, abs=1e-3)


def test_a_training_that_could_not_be_measured_is_not_packed() -> None:
    assert planner(None, trials_per_pack=4).pack_size(TASK) == 1


def test_unmeasured_packs_are_as_large_as_the_user_allows() -> None:
    assert planner(was_measured=False, gpus_per_trial=0.5, trials_per_pack=4).pack_size(TASK) == 4


def test_only_trainings_are_packed_and_only_if_the_user_allows_it() -> None:
    memory = TrialMemory(process_gib=1, training_gib=0.5)
    assert planner(memory, trials_per_pack=4).pack_size(SCORE) == 1
    assert planner(memory).pack_size(TASK) == 1


def test_a_training_that_wants_more_gpus_than_a_node_has_does_not_get_fewer() -> None:
    assert planner(was_measured=False, nodes=GpuNodes(Node(8, 2)), gpus_per_trial=3)(TASK).num_gpus == 3


SMALL = TrialMemory(process_gib=0.5, training_gib=0.5)
"""Ten of these fit on a GPU."""


@pytest.mark.parametrize(
    ("nodes", "num_trainings", "gpu_share"),
    [
        ([Node(16, 4)], None, 1 / 4),  # and not 16 on one GPU, with three idle
        ([Node(16, 4)], 8, 1 / 2),
        ([Node(16, 4)], 3, 1),
        ([Node(16, 4), Node(16, 4)], 8, 1),  # one on each GPU of both nodes
        ([Node(16, 4), Node(16, 4)], 16, 1 / 2),
        ([Node(16, 4), Node(16, 1)], None, 1 / 4),
        ([Node(16, 4), Node(4, 1)], 5, 1),
        ([Node(96, 4), Node(64, 0)], None, 1 / 10),  # memory is the limit
    ],
)
def test_small_trainings_are_spread_over_all_gpus(
    nodes: list[Node], num_trainings: int | None, gpu_share: float
) -> None:
    shares = planner(SMALL, nodes=GpuNodes(*nodes))
    shares.num_trainings = num_trainings
    assert shares(TASK).num_gpus == pytest.approx(gpu_share, abs=1e-3)
    assert shares(TASK).num_cpus >= 1


class Nodes:
    """A cluster of some nodes."""

    is_local = False

    def __init__(self, *nodes: Node) -> None:
        self._nodes = nodes

    def has_gpus(self) -> bool:
        return any(node.num_gpus for node in self._nodes)

    def nodes(self) -> tuple[Node, ...]:
        return self._nodes


@pytest.mark.parametrize(
    ("nodes", "limits", "share"),
    [
        ([Node(16, 4)], {}, (8, 2)),
        ([Node(16, 4)], {"cpus_per_trial": 3}, (3, 2)),
        ([Node(15, 4), Node(64, 4), Node(4, 0)], {}, (6, 2)),
        ([Node(2, 4)], {}, (1, 2)),
        ([Node(16, 1)], {}, (32, 2)),  # not one GPU in silence: on two such nodes, or refused
        ([Node(16, 0)], {}, (2, 2)),  # not the CPU in silence
    ],
)
def test_a_training_on_several_gpus_has_their_share_of_the_cores(
    nodes: list[Node], limits: dict[str, Any], share: tuple[float, float]
) -> None:
    shares = SharePlanner(Nodes(*nodes), Resources(gpus_per_trial=2, **limits))
    assert shares(TASK) == share
    assert shares(TASK).num_ranks == len(shares(TASK).bundles) == 2
    assert shares(SCORE).num_ranks == 1


class Cores:
    """A cluster of one machine with 16 cores."""

    is_local = True

    def has_gpus(self) -> bool:
        return False

    def nodes(self) -> list[Node]:
        return [Node(16, 0)]


@pytest.mark.parametrize(
    ("num_trainings", "limits", "cpus"),
    [
        (None, {}, 1),
        (40, {}, 1),
        (16, {}, 1),
        (3, {}, 5),
        (1, {}, 16),
        (3, {"cpus_per_trial": 2}, 2),
        (30, {"max_concurrent": 4}, 4),
        (2, {"max_concurrent": 4}, 8),
    ],
)
def test_few_trainings_share_all_cores(num_trainings: int | None, limits: dict[str, Any], cpus: float) -> None:
    shares = SharePlanner(Cores(), Resources(**limits))
    shares.num_trainings = num_trainings
    assert shares(TASK) == (cpus, 0)
