"""Trainings that ended at different epochs are compared at one that enough of them have reached."""

import pytest

from orchestrator.evaluation.unequal_epochs import Training, compare_trainings


def trainings(*lengths, num_epochs=9):
    """One training per topology, whose value after an epoch is its number plus a tenth of the epoch."""
    found = []
    for number, length in enumerate(lengths):
        curve = [number + epoch / 10 for epoch in range(1, length + 1)]
        found.append(Training(f"t{number}", curve[-1] if length == num_epochs else None, curve))
    return found


@pytest.mark.parametrize(
    ("lengths", "epoch", "num_compared"),
    [
        ((9, 9, 9, 9, 9), None, 5),
        ((1, 1, 3, 9), 1, 4),  # ASHA with four topologies: before, only the last one counted
        ((1,) * 6 + (3,) * 4 + (9,) * 2, 3, 6),
        ((1,) * 4 + (3,) * 4 + (9,) * 4, 3, 8),
        ((1,) * 4 + (3,) * 2 + (9,) * 6, None, 6),  # more have gone on
        ((3, 1), 1, 2),
        ((2,), 2, 1),
    ],
)
def test_the_epoch_is_the_largest_that_enough_topologies_have_reached(lengths, epoch, num_compared) -> None:
    found = compare_trainings(trainings(*lengths), num_epochs=9, by_best_epoch=False)
    assert found.epoch == epoch
    assert len(found.values) == num_compared
    assert found.num_left_out == len(lengths) - num_compared
    if epoch is not None:
        assert all(values == [int(name[1:]) + epoch / 10] for name, values in found.values.items())


def test_a_training_that_ended_by_itself_counts_with_its_result() -> None:
    stopped = Training("stopped", 0.7, [0.5, 0.7])
    cut = [Training(f"cut{place}", None, [0.1, 0.2, 0.3]) for place in range(4)]
    assert compare_trainings([stopped, *cut], num_epochs=9, by_best_epoch=False).values["stopped"] == [0.7]
    whole = compare_trainings([stopped], num_epochs=9, by_best_epoch=False)
    assert (whole.epoch, whole.values) == (None, {"stopped": [0.7]})


def test_the_best_epoch_until_then_counts_if_trials_are_ranked_by_it() -> None:
    cut = [Training(f"t{place}", None, [0.5, 0.4, 0.9]) for place in range(4)]
    short = [Training(f"s{place}", None, [0.5, 0.4]) for place in range(1)]
    last = compare_trainings([*cut[:3], *short], num_epochs=9, by_best_epoch=False)
    best = compare_trainings([*cut[:3], *short], num_epochs=9, by_best_epoch=True)
    assert (last.epoch, last.values["t0"], best.values["t0"]) == (2, [0.4], [0.5])


def test_several_trainings_of_a_topology_are_kept_apart() -> None:
    twice = [Training("a", 0.5, [0.5]), Training("b", 0.7, [0.7]), Training("a", 0.6, [0.6])]
    assert compare_trainings(twice, num_epochs=1, by_best_epoch=False).values == {"a": [0.5, 0.6], "b": [0.7]}
