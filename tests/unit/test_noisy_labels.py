"""The benchmark of stopping criteria against wrong labels."""

from benchmarks.methods import DIGITS
from benchmarks.noisy_labels import SIGNALS, Comparison, Recorded, record, rows_of
from plugins.protocols import CurvePoint
from search_spaces.recipes import PluginChoice
from tests.unit.training import CPU


def recorded(validation: list[float], test: list[float]) -> Recorded:
    curve = tuple(CurvePoint(epoch, 1.0, 1 - value, value) for epoch, value in enumerate(validation, start=1))
    return Recorded(curve=curve, test=tuple(test))


def test_each_way_to_choose_an_epoch_is_compared_with_the_end() -> None:
    trainings = [
        recorded([0.5, 0.7, 0.6, 0.5, 0.4], [0.50, 0.60, 0.70, 0.55, 0.40]),
        recorded([0.5, 0.6, 0.7, 0.6, 0.5], [0.52, 0.62, 0.66, 0.57, 0.42]),
    ]
    rows = {row["ends at"]: row for row in rows_of(trainings, [PluginChoice(name="patience", settings={"epochs": 1})])}
    assert next(iter(rows)) == "best test epoch (an oracle)"
    assert rows["the end"] == {
        "ends at": "the end",
        "epoch, mean (range)": "5 (5 to 5)",
        "test, %": "41.0",
        "against the end, points [95 %]": "",
    }
    assert rows["best validation epoch"]["epoch, mean (range)"] == "2 (2 to 3)"
    assert rows["best validation epoch"]["test, %"] == "63.0"  # epochs 2 and 3
    assert rows["patience(epochs=1)"]["epoch, mean (range)"] == "4 (3 to 4)"
    assert rows["patience(epochs=1)"]["test, %"] == "63.5"
    assert rows["patience(epochs=1)"]["against the end, points [95 %]"].startswith("+22.5")


def test_trainings_are_recorded_with_the_signals_and_the_test_accuracy_of_every_epoch() -> None:
    data = DIGITS.data.model_copy(update={"max_images": 200, "max_test_images": 50, "label_noise": 0.4})
    comparison = Comparison(data=data, recipe=dict(DIGITS.recipe), epochs=2, seeds=2)
    found = record(comparison, CPU)
    assert [len(one.test) for one in found] == [len(one.curve) for one in found] == [2, 2]
    names = {name.partition(".")[0] for name in found[0].curve[-1].signals}
    assert names == {signal.value for signal in SIGNALS}
    assert found[0].test != found[1].test
