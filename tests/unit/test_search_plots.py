"""Figures of a search: drawn if there is something to see, and not otherwise."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.reports import search_plots as plots
from orchestrator.reports.search_plots import SearchedTrial
from plugins.metrics.deciding import ACCURACY, DecidingMetric
from search_spaces.recipes import PluginChoice

pytestmark = pytest.mark.usefixtures("drawn_figures")

LOSS = DecidingMetric(choice=PluginChoice(name="loss"), direction="minimize", is_fraction=False)


def point(topology: str, rate: float, schedule: str | None) -> dict[str, str | float | None]:
    return {"topology": topology, "recipe.learning_rate": rate, "recipe.schedule": schedule}


TRIALS = [
    SearchedTrial(0, 0.90, {"parameters": 300_000.0, "latency_ms": 1.5}, point("300k", 0.001, "cosine")),
    SearchedTrial(1, 0.95, {"parameters": 350_000.0, "latency_ms": 2.5}, point("350k", 0.004, "linear")),
    SearchedTrial(2, None, {}, point("350k", 0.1, "linear")),
    SearchedTrial(3, 0.93, {"parameters": 400_000.0, "latency_ms": 2.0}, point("400k", 0.02, None)),
]
EQUAL = [one._replace(value=0.9, costs={"parameters": 300_000.0}) for one in TRIALS]
SHARES = {"recipe.learning_rate": 0.7, "topology": 0.3}
GAINS = [("last", 0.0), ("ema(decay=0.5)", 0.003), ("swa(window=3)", -0.01)]


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda p: plots.metric_against_cost(TRIALS, 1, ACCURACY, p), id="size"),
        pytest.param(lambda p: plots.metric_against_cost(TRIALS, 0, LOSS, p, cost="latency_ms"), id="latency and loss"),
        pytest.param(lambda p: plots.metric_against_cost(TRIALS * 30, 1, ACCURACY, p), id="a crowd"),
        pytest.param(lambda p: plots.search_history(TRIALS, ACCURACY, p, base=frozenset({0})), id="history"),
        pytest.param(lambda p: plots.search_history(TRIALS, LOSS, p), id="history of losses"),
        pytest.param(lambda p: plots.recipe_importance(SHARES, 12, ACCURACY, p), id="importance"),
        pytest.param(lambda p: plots.parallel_coordinates(TRIALS, 1, ACCURACY, p), id="all trials"),
        pytest.param(lambda p: plots.averaging_gains(GAINS * 9, ACCURACY, p), id="averages"),
        pytest.param(lambda p: plots.averaging_gains(GAINS, LOSS, p), id="averages by loss"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_figure_is_written(draw: Callable[[Path], bool], tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "figure.png"
    assert draw(path)
    with Image.open(path) as image:
        image.load()
        assert image.width >= 1000
        assert len(image.convert("L").getcolors() or []) > 10


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(lambda p: plots.metric_against_cost(EQUAL, 1, ACCURACY, p), id="one size"),
        pytest.param(lambda p: plots.metric_against_cost(TRIALS[2:3], 2, ACCURACY, p), id="only failed"),
        pytest.param(lambda p: plots.search_history(EQUAL, ACCURACY, p), id="equal values"),
        pytest.param(lambda p: plots.search_history([TRIALS[0]._replace(value=math.nan)], LOSS, p), id="not a number"),
        pytest.param(lambda p: plots.recipe_importance({"x": 1.0}, 9, ACCURACY, p), id="one field"),
        pytest.param(lambda p: plots.recipe_importance({}, 0, ACCURACY, p), id="no importance"),
        pytest.param(lambda p: plots.parallel_coordinates(EQUAL, 1, ACCURACY, p), id="equal results"),
        pytest.param(
            lambda p: plots.parallel_coordinates([one._replace(point={"x": 1}) for one in TRIALS], 1, ACCURACY, p),
            id="nothing differs",
        ),
        pytest.param(lambda p: plots.averaging_gains([("last", 0.0), ("ema", 0.0)], ACCURACY, p), id="equal gains"),
    ],
)
def test_nothing_is_drawn_where_there_is_nothing_to_see(draw: Callable[[Path], bool], tmp_path: Path) -> None:
    assert not draw(tmp_path / "figure.png")
    assert list(tmp_path.iterdir()) == []


def test_the_front_has_the_points_that_no_smaller_one_beats() -> None:
    points = [(0, 3.0, 0.9), (1, 1.0, 0.5), (2, 2.0, 0.95), (3, 2.0, 0.7), (4, 4.0, 0.95)]
    assert [number for number, _, _ in plots._front(points, larger_is_better=True)] == [1, 2]
    assert [number for number, _, _ in plots._front(points, larger_is_better=False)] == [1]


def test_a_scale_over_more_than_a_factor_of_eight_is_logarithmic() -> None:
    scale = plots._Scale.of([0.001, 0.01, 0.1])
    assert scale is not None
    assert scale.height(0.01) == pytest.approx(0.5)
    linear = plots._Scale.of([1, 2, 3, 4, 5])
    assert linear is not None
    assert linear.height(2) == pytest.approx(0.25)
    assert [text for _, text in linear.ticks()] == ["1", "3", "5"]
    assert plots._Scale.of([1, 1]) is None


def test_points_on_a_page_name_their_trial_and_its_values(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    assert plots.metric_against_cost(TRIALS, 1, ACCURACY, path)
    text = path.read_text(encoding="utf-8")
    assert "<title>trial 0: 90.0 %, 300,000 parameters</title>" in text
    assert plots.metric_against_cost(TRIALS, 1, ACCURACY, path, cost="latency_ms")
    assert "<title>trial 1: 95.0 %, 2.5 ms</title>" in path.read_text(encoding="utf-8")
