"""Figures: complete for usual and unusual data, without matplotlib's global state."""

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from orchestrator.evaluation.verdict import EarlyJudgement, EpochAgreement, Interval, Verdict
from orchestrator.reports import plots
from plugins.metrics.deciding import DecidingMetric
from plugins.protocols import CurvePoint
from search_spaces.recipes import PluginChoice

pytestmark = pytest.mark.usefixtures("drawn_figures")

TAU = Interval(value=0.5, low=0.2, high=0.7)
NO_TAU = Interval(value=None, low=None, high=None)
FAMILY = [
    {
        "step": step,
        "parameters": 20_000 * step,
        "width": 16 * step,
        "depths": [1, step],
        "scores": {"ntk": 900.0 / step},
    }
    for step in (1, 2, 3)
]


def verdict(proxy: str, tau: Interval = TAU, *, partial: Interval | None = TAU, ahead: float | None = None) -> Verdict:
    difference = Interval(value=ahead, low=ahead, high=ahead)
    return Verdict(
        proxy=proxy,
        num_topologies=20,
        num_seeds=1,
        tau=tau,
        spearman=tau,
        top_recall=tau,
        regret=tau,
        partial_tau=partial,
        minus={} if proxy == "params" else {"params": difference},
        seed_spread=None,
        above_zero=ahead is not None,
        beaten=("params",) if ahead else (),
        note=None,
    )


VERDICTS = [
    verdict("snip", ahead=0.2),
    verdict("params", partial=None),
    verdict("nwot", Interval(value=0.1, low=None, high=None), partial=NO_TAU),
    verdict("swap", NO_TAU, partial=NO_TAU),
]


def judgement(*taus: Interval, rungs: tuple[int, ...] = ()) -> EarlyJudgement:
    epochs = [EpochAgreement(epoch=epoch, tau=tau) for epoch, tau in enumerate(taus, start=1)]
    first = rungs[0] if rungs else None
    return EarlyJudgement(epochs=epochs, first_reliable_epoch=first, rungs=list(rungs), advice="wait")


CURVE = [CurvePoint(epoch, 2.0 / epoch, 2.1 / epoch, 1 - 0.5 / epoch) for epoch in range(1, 6)]
F1_CURVE = [point._replace(metrics={"val_macro_f1": 0.5}) for point in CURVE]
F1, LOSS = (DecidingMetric.of(PluginChoice(name=name)) for name in ("macro-f1", "loss"))


@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(
            lambda p: plots.scatter_score_against_accuracy("ntk", [1, 2, 900], [0.9, 0.8, 0.7], TAU, p), id="scatter"
        ),
        pytest.param(
            lambda p: plots.scatter_score_against_accuracy("ntk", [math.inf, math.nan], [0.9, 0.8], NO_TAU, p),
            id="scatter without a finite score",
        ),
        pytest.param(
            lambda p: plots.scatter_score_against_accuracy(
                "ntk", list(range(80)), list(range(80)), TAU, p, target="c100_kd_acc", unit="%"
            ),
            id="scatter of many published accuracies",
        ),
        pytest.param(lambda p: plots.correlation_summary(VERDICTS, p), id="summary"),
        pytest.param(lambda p: plots.correlation_summary(VERDICTS * 9, p, subject="c100 of pit"), id="long summary"),
        pytest.param(lambda p: plots.correlation_summary(VERDICTS[:1], p), id="summary without the baseline"),
        pytest.param(lambda p: plots.correlation_summary(VERDICTS[3:], p), id="summary without a tau"),
        pytest.param(lambda p: plots.correlation_summary([], p), id="empty summary"),
        pytest.param(lambda p: plots.agreement_over_epochs(judgement(TAU, TAU, rungs=(1,)), p), id="agreement"),
        pytest.param(
            lambda p: plots.agreement_over_epochs(judgement(NO_TAU, *[TAU] * 40), p), id="agreement without rungs"
        ),
        pytest.param(lambda p: plots.agreement_over_epochs(judgement(NO_TAU, NO_TAU), p), id="no agreement"),
        pytest.param(lambda p: plots.learning_curves({"trial 1": CURVE, "trial 2": CURVE[:1]}, p), id="curves"),
        pytest.param(lambda p: plots.learning_curves({"trial 1": []}, p), id="a curve without epochs"),
        pytest.param(lambda p: plots.learning_curves({}, p), id="no curves"),
        pytest.param(lambda p: plots.learning_curves({"1": F1_CURVE}, p, metric=F1), id="another metric"),
        pytest.param(lambda p: plots.stopping_front([(0.5, 0.01)], 0, p, metric=LOSS), id="front of a loss"),
        pytest.param(
            lambda p: plots.learning_curves({str(n): CURVE for n in range(12)}, p), id="more curves than colours"
        ),
        pytest.param(lambda p: plots.growth(FAMILY, ["ntk"], p), id="growth"),
        pytest.param(
            lambda p: plots.growth([{**FAMILY[0], "scores": {"ntk": 0.0}}], ["ntk"], p), id="growth from a zero"
        ),
        pytest.param(lambda p: plots.growth([], ["ntk"], p), id="no growth"),
        pytest.param(lambda p: plots.stopping_front([(0.5, 0.01), (0.2, 0.0), (0.1, 0.02)], 0, p), id="front"),
        pytest.param(lambda p: plots.stopping_front([(0.0, 0.0)], 0, p), id="a single setting"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_figure_is_written_sharp_enough_for_a_dense_screen(draw: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "figure.png"
    draw(path)
    with Image.open(path) as image:
        image.load()
        assert image.width >= 1000
        assert len(image.convert("L").getcolors() or []) > 10


def test_the_same_data_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        plots.stopping_front([(0.5, 0.01), (0.2, 0.0)], 1, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from orchestrator.reports.plots import learning_curves\n"
        "assert 'matplotlib' not in sys.modules\n"
        "learning_curves({}, Path(sys.argv[1]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], check=True)
