"""A proxy of another package harms neither other scores nor the process, and a broken rule is told."""

import random
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from plugins.protocols import Candidate, PluginCard, Proxy, ProxyScore
from plugins.proxies.repeats import networks, repeat_seeds
from plugins.registry import create
from search_spaces.base import ImageTask
from trainers.config import DataConfig, ScoreTask, TaskOutcome
from trainers.tasks.scoring import score_topology

TEXT = "as-vit:8,2,3,1|4,1,2,1|4,1,4,1|4,1,6,1|32,8"
TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
AFTER = "weight-norm"
"""A score of ours that uses shared networks, computed after the one of a test."""
OTHERS = (AFTER, "grad-norm")


def batch() -> torch.Tensor:
    return torch.randn(6, 1, 32, 32, generator=torch.Generator().manual_seed(0))


class Made:
    """A proxy whose score is computed by a function."""

    card = PluginCard(source="here", cost="nothing")
    direction = "maximize"

    def __init__(self, compute: Callable[[Candidate], Any]) -> None:
        self._compute = compute

    def score(self, candidate: Candidate) -> Any:
        return self._compute(candidate)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., TaskOutcome]:
    """Scores one topology with a made proxy, here `mine`, between two of ours."""

    def run(compute: Callable[[Candidate], Any], *, verify: bool = False) -> TaskOutcome:
        def created(kind: str, name: str, settings: Any = None) -> Proxy:
            return Made(compute) if name == "mine" else create(kind, name, settings)

        monkeypatch.setattr("trainers.tasks.scoring.create", created)
        proxies = (AFTER, "mine", "grad-norm")
        task = ScoreTask.model_validate(
            {
                "data": DataConfig(source="digits"),
                "topology": TEXT,
                "proxies": proxies,
                "seed": 0,
                "need_all": False,
                "verify": verify,
            }
        )
        return score_topology(task, batch(), TASK)

    return run


def reason(outcome: TaskOutcome) -> str:
    assert outcome.state == "complete"
    assert "mine" not in outcome.metrics
    return str(outcome.details["failures"]["mine"]["reason"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (0.5, "score() must return a ProxyScore, such as ProxyScore(0.5), but returned an object of the class float."),
        (None, "but returned None."),
        (torch.zeros(3), "but returned a Tensor of shape (3,)."),
        ((0.5, 0.1), "an object of the class tuple"),
        (
            ProxyScore("0.5"),
            "the value of a ProxyScore must be a number, but score() returned an object of the class str",
        ),  # type: ignore[arg-type]
        (ProxyScore(torch.zeros(2)), "a Tensor of shape (2,)"),  # type: ignore[arg-type]
        (ProxyScore(1.0, None), "the spread of a ProxyScore must be a number, but score() returned None."),  # type: ignore[arg-type]
        (ProxyScore(1 + 2j), "an object of the class complex"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_type_is_told_and_the_other_scores_are_kept(run: Any, returned: Any, message: str) -> None:
    outcome = run(lambda _: returned)
    assert message in reason(outcome)
    assert set(OTHERS) <= outcome.metrics.keys()


@pytest.mark.parametrize("value", [torch.tensor(2.5), torch.tensor([2.5]), np.float32(2.5), np.array(2.5)])
def test_a_number_of_another_library_becomes_a_float(run: Any, value: Any) -> None:
    outcome = run(lambda _: ProxyScore(value, value))
    assert (outcome.metrics["mine"], outcome.metrics["mine.spread"]) == (2.5, 2.5)
    assert type(outcome.metrics["mine"]) is float


def change_images(candidate: Candidate) -> ProxyScore:
    candidate.images.mul_(0)
    return ProxyScore(1.0)


def change_images_and_raise(candidate: Candidate) -> ProxyScore:
    candidate.images.data[0] = 7
    raise OSError("no more file handles")


def change_images_through_a_graph(candidate: Candidate) -> ProxyScore:
    candidate.images.mul_(torch.ones((), requires_grad=True) * 2)
    return ProxyScore(1.0)


def change_labels(candidate: Candidate) -> ProxyScore:
    candidate.labels.zero_().add_(1)
    return ProxyScore(1.0)


def change_shared_weights(candidate: Candidate) -> ProxyScore:
    (model,) = networks(candidate, repeat_seeds(candidate.seed, 1))
    for weight in model.parameters():
        weight.data.abs_()
    return ProxyScore(1.0)


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (
            change_images,
            "score() changed the candidate's images, which other proxies read. Work on a copy: candidate.images",
        ),
        (change_images_through_a_graph, "score() changed the candidate's images"),
        (change_images_and_raise, "OSError: no more file handles"),
        (change_labels, "score() changed the candidate's labels"),
        (change_shared_weights, "score() changed networks that other proxies use. Build one for this score:"),
    ],
)
def test_what_proxies_share_is_restored_and_the_culprit_is_told(run: Any, compute: Any, message: str) -> None:
    expected = run(lambda _: ProxyScore(1.0)).metrics
    outcome = run(compute)
    assert message in reason(outcome)
    assert [outcome.metrics[name] for name in OTHERS] == [expected[name] for name in OTHERS]


def test_images_that_need_gradients_are_no_fault_and_do_not_need_them_afterwards(run: Any) -> None:
    def saliency(candidate: Candidate) -> ProxyScore:
        model = candidate.build(seed=candidate.seed)
        model.forward_features(candidate.images.requires_grad_()).sum().backward()
        assert candidate.images.grad is not None
        return ProxyScore(float(candidate.images.grad.abs().mean()))

    left: list[Candidate] = []

    def look(candidate: Candidate) -> ProxyScore:
        left.append(candidate)
        return saliency(candidate)

    assert run(look).metrics["mine"] > 0
    assert not left[0].images.requires_grad
    assert left[0].images.grad is None


def test_global_generators_are_seeded_for_a_proxy_and_left_as_they_were(run: Any) -> None:
    legacy = np.random  # its global generator, which plug-ins may use

    def noise(_: Candidate) -> ProxyScore:
        return ProxyScore(random.random() + float(legacy.rand()) + float(torch.rand(())))

    def states() -> list[Any]:
        return [random.getstate(), legacy.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    first = run(noise).metrics["mine"]
    random.seed(5)
    legacy.seed(5)
    torch.manual_seed(5)
    before = states()
    assert run(noise).metrics["mine"] == first
    assert states() == before


def test_global_modes_of_torch_are_left_as_they_were(run: Any) -> None:
    num_threads = torch.get_num_threads()

    def change(_: Candidate) -> ProxyScore:
        torch.set_num_threads(num_threads + 1)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return ProxyScore(1.0)

    expected = run(lambda _: ProxyScore(1.0)).metrics["grad-norm"]
    assert run(change).metrics["grad-norm"] == expected
    assert torch.get_num_threads() == num_threads
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_a_proxy_cannot_exit_but_a_signal_can(run: Any) -> None:
    outcome = run(lambda _: sys.exit(0))
    assert "score() tried to exit the process. Raise an exception instead." in reason(outcome)

    def handler_of_a_signal(_: Candidate) -> ProxyScore:
        code = compile("raise SystemExit(3)", "handler", "exec")
        exec(code, {"__name__": "somewhere.else"})
        raise AssertionError

    with pytest.raises(SystemExit):
        run(handler_of_a_signal)


def test_a_score_that_changes_from_call_to_call_is_told_if_asked(run: Any) -> None:
    def unseeded(_: Candidate) -> ProxyScore:
        return ProxyScore(float(np.random.default_rng().random()))

    assert "mine" in run(unseeded).metrics
    told = reason(run(unseeded, verify=True))
    assert "it is not repeatable: the same topology and seed gave 0." in told
    assert "Take random numbers from candidate.seed only." in told


def test_a_seeded_score_and_a_measured_time_are_not_told(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mine" in run(lambda candidate: ProxyScore(candidate.seed + 0.5), verify=True).metrics
    assert "mine" in run(lambda _: ProxyScore(float("nan")), verify=True).details["failures"]
    monkeypatch.setattr(Made, "is_timing", True, raising=False)
    assert "mine" in run(lambda _: ProxyScore(time.perf_counter()), verify=True).metrics
