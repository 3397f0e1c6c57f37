"""The grammar of formulas, their arithmetic, and the statistics that they compute with."""

import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins import registry
from plugins.proxies.block_statistics import block_statistics
from plugins.proxies.expression import Expression
from plugins.proxies.formula_text import FormulaError, parse
from plugins.proxies.formula_variation import MIN_SIZE, Variation
from plugins.proxies.formulas import (
    MAX_SIZE,
    Binary,
    Formula,
    Statistic,
    Unary,
    all_statistics,
    evaluate,
    problem,
)
from plugins.proxies.passes import RecordedPass, record_pass
from plugins.proxies.saved_formulas import save_formula, saving_problem
from search_spaces.base import ImageTask
from tests.rounding import difference_bound, path_length, rounded
from trainers.tasks.scoring import make_candidate

AUTO_PROX = "mean(frobenius(minmax(attention.weight)) + sqrt(sigmoid(mean(mlp.gradient))))"
TASK = ImageTask(image_size=32, in_channels=1, num_classes=10)
TOPOLOGY = "as-vit:4,2,3|2,1,2|2,1,4|2,1,3|16,16"
A, B, C = (Statistic("mean", "mlp.weight"), Statistic("l1", "mlp.gradient"), Statistic("std", "attention.stream"))


def _recorded(*, seed: int = 3, num_images: int = 6, options: str = "") -> RecordedPass:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(num_images, 1, 32, 32, generator=generator, dtype=torch.float64)
    return record_pass(make_candidate(registry.parse_topology(TOPOLOGY + options), images, TASK, seed=0), seed)


def _value(text: str, **rows: list[float]) -> list[float]:
    """The scores of networks whose blocks have these numbers, two networks of one and two blocks."""
    values = {one: np.array(rows[one.reduction]) for one in parse(text).statistics}
    return evaluate(parse(text), values, np.array([0, 1]), counts=np.array([1, 2])).tolist()


# --- text ---


def test_the_published_score_of_auto_prox_can_be_written() -> None:
    assert parse(AUTO_PROX) == Formula(
        Binary(
            "+",
            Statistic("frobenius", "attention.weight", "minmax"),
            Unary("sqrt", Unary("sigmoid", Statistic("mean", "mlp.gradient"))),
        )
    )
    assert str(parse(AUTO_PROX)) == AUTO_PROX


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(MIN_SIZE, MAX_SIZE))
def test_a_formula_is_read_back_from_its_text(seed: int, size: int) -> None:
    formula = Variation(statistics=all_statistics(), max_size=size).sample(random.Random(seed))
    for one in (formula, Formula(formula.tree, formula.aggregate, negated=True)):
        assert parse(str(one)) == one
        assert parse(f"  {str(one).replace(' ', '')}\n") == one


def test_brackets_are_written_only_where_the_order_needs_them() -> None:
    for text in (
        "mean(mean(mlp.weight) - (mean(mlp.weight) - l1(mlp.gradient)))",
        "-sum(mean(mlp.weight) - mean(mlp.weight) - l1(mlp.gradient) * mean(mlp.weight))",
        "logsum((mean(mlp.weight) + l1(mlp.gradient)) / (mean(mlp.weight) / l1(mlp.gradient)))",
    ):
        assert str(parse(text)) == text
    assert str(parse("sum(((mean((mlp.weight)))))")) == "sum(mean(mlp.weight))"


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "must start with one of mean, sum, logsum.*'the end'"),
        ("l1(mlp.weight)", 1, "must start with one of mean, sum, logsum.*'l1'"),
        ("mean(l1(mlp.weight)", 20, "'\\)' to close mean, but got 'the end'"),
        ("mean(l1(mlp.wieght))", 9, "Did you mean 'mlp.weight'"),
        ("mean(frobenus(mlp.weight))", 6, "Did you mean 'frobenius'"),
        ("mean(mlp.weight)", 6, "needs a number per block.*for example by l1\\(mlp.weight\\)"),
        ("mean(l1(mlp.weight) * mlp.gradient)", 23, "'\\*' needs a number per block"),
        ("mean(minmax(l1(mlp.weight)))", 13, "minmax needs a tensor"),
        ("mean(l1(abs(log(mlp.weight))))", 9, "one transform at most"),
        ("mean(nuclear(tanh(mlp.weight)))", 6, "without a transform or with center"),
        ("mean(std(standardize(mlp.weight)))", 6, "the same number for every tensor"),
        ("mean(l1(mlp.weight)) + mean(l1(mlp.weight))", 22, "nothing may follow the aggregate"),
        ("mean(sum(l1(mlp.weight)))", 6, "only allowed at the start"),
        ("mean(2 * l1(mlp.weight))", 6, "consists of names, .* but got '2'"),
        ("mean(" + "(" * 500, 70, "brackets may be open at once"),
        ("mean(" + "l1(mlp.weight) + " * 5000 + "l1(mlp.weight))", 1, "at most 63 inputs and operations"),
    ],
)
def test_a_mistake_is_answered_with_its_place_and_what_must_hold(text: str, column: int, message: str) -> None:
    with pytest.raises(FormulaError, match=message) as caught:
        parse(text)
    assert caught.value.column == column
    assert str(caught.value).startswith(f"at column {column}: ")


# --- arithmetic ---


def test_aggregates_go_over_the_blocks_of_each_network() -> None:
    assert _value("mean(l1(mlp.weight))", l1=[5, 1, 3]) == [5, 2]
    assert _value("-sum(l1(mlp.weight))", l1=[5, 1, 3]) == [-5, -4]
    assert _value("logsum(l1(mlp.weight))", l1=[1, np.e, -(np.e**2)]) == rounded([0, 3], 3)


def test_operations_work_block_by_block() -> None:
    rows = {"l1": [4.0, 1.0, -9.0], "std": [2.0, -1.0, 0.5]}
    assert _value("sum(l1(mlp.weight) / std(mlp.weight) - l1(mlp.weight))", **rows) == [-2, -11]
    assert _value("sum(sqrt(l1(mlp.weight)) * square(std(mlp.weight)))", **rows) == [8, 1.75]
    assert _value("sum(relu(std(mlp.weight)) + abs(std(mlp.weight)))", **rows) == [4, 2]
    assert _value("sum(log(l1(mlp.weight)))", **rows) == rounded([np.log(4), np.log(9)], 2)
    assert _value("sum(sigmoid(std(mlp.weight)))", std=[0.0, -800.0, 800.0]) == [0.5, 1]
    assert _value("sum(tanh(std(mlp.weight)))", std=[0.5, 0.0, 20.0]) == rounded([np.tanh(0.5), 1], 3)


def test_what_is_not_defined_is_not_finite_and_raises_nothing() -> None:
    assert not np.isfinite(_value("sum(l1(mlp.weight) / std(mlp.weight))", l1=[1, 0, 1], std=[0, 0, 1])).any()
    assert not np.isfinite(_value("logsum(l1(mlp.weight))", l1=[0, 0, 1])).any()


# --- variation ---


def _all_known(formula: Formula, statistics: tuple[Statistic, ...]) -> bool:
    return set(formula.statistics) <= set(statistics)


def test_varied_formulas_stay_in_the_grammar_and_the_size() -> None:
    rng, statistics = random.Random(1), all_statistics()[::7]
    variation = Variation(statistics=statistics, max_size=9)
    first, second = variation.sample(rng), variation.sample(rng)
    sizes = set()
    for _ in range(1000):
        mutant = variation.mutate(first, rng)
        assert mutant != first
        first, second = variation.crossover(mutant, second, rng), mutant
        for one in (first, second):
            assert one.size <= 9
            assert _all_known(one, statistics)
            assert parse(str(one)) == one
        sizes.add(first.size)
    assert sizes >= set(range(MIN_SIZE, 10))


def test_variation_is_decided_by_its_generator() -> None:
    def chain(seed: int) -> list[str]:
        rng, variation = random.Random(seed), Variation(statistics=all_statistics(), max_size=15)
        found = [variation.sample(rng)]
        for _ in range(20):
            found.append(variation.mutate(found[-1], rng))
        return [str(one) for one in found]

    assert chain(1) == chain(1) != chain(2)


def test_no_statistic_of_the_search_is_another_one_under_a_second_name() -> None:
    statistics = all_statistics()
    values = block_statistics(_recorded(), statistics).numpy()
    assert len(set(statistics)) == len(statistics)
    assert all(problem(one) is None for one in statistics)
    same = [
        (str(one), str(other))
        for place, one in enumerate(statistics)
        for offset, other in enumerate(statistics[place + 1 :], start=place + 1)
        if one.input == other.input and np.allclose(values[place], values[offset], rtol=difference_bound(4096), atol=0)
    ]
    assert same == []


# --- statistics ---


@pytest.fixture(scope="module", params=["", "|qk_norm,layer_scale,grn,sigmoid_attention"], ids=["plain", "options"])
def recorded(request: pytest.FixtureRequest) -> RecordedPass:
    return _recorded(options=request.param)


def _num_terms(recorded: RecordedPass) -> int:
    """Number of rounded terms in a forward and a backward pass and a sum over the weights of a layer."""
    largest = max(parameter.numel() for parameter in recorded.model.parameters())
    return 2 * path_length(recorded.model, num_tokens=226) + largest


def _read(recorded: RecordedPass, *texts: str) -> list[list[float]]:
    statistics = [parse(f"sum({text})").statistics[0] for text in texts]
    return block_statistics(recorded, statistics).tolist()


def test_every_statistic_is_finite_in_every_block(recorded: RecordedPass) -> None:
    values = block_statistics(recorded, all_statistics())
    assert values.dtype == torch.float64
    assert values.shape == (len(all_statistics()), 4)
    assert torch.isfinite(values).all()


def test_weights_that_read_and_write_the_stream_are_one_matrix(recorded: RecordedPass) -> None:
    block = recorded.parts[0].blocks[2].block
    qkv, proj = block.attn.get_submodule("qkv").weight, block.attn.get_submodule("proj").weight
    both = torch.cat([qkv, proj.T]).detach()
    for text, expected in {
        "l1(attention.weight)": both.abs().mean(),
        "std(attention.weight)": both.std(correction=0),
        "frobenius(minmax(attention.weight))": ((both - both.min()) / (both.max() - both.min())).square().sum().sqrt(),
        "nuclear(attention.weight)": torch.linalg.svdvals(both).sum(),
        "spectral(center(attention.weight))": torch.linalg.svdvals(both - both.mean(0))[0],
    }.items():
        assert _read(recorded, text)[0][2] == rounded(float(expected), both.numel())


def test_gradients_are_those_of_the_whole_batch(recorded: RecordedPass) -> None:
    candidate, model = recorded.candidate, recorded.model
    loss = torch.nn.functional.cross_entropy(model(candidate.images), candidate.labels)
    fc1, fc2 = (recorded.parts[0].blocks[1].block.mlp.get_submodule(name).weight for name in ("fc1", "fc2"))
    first, second = torch.autograd.grad(loss, [fc1, fc2])
    saliency = torch.cat([first * fc1, (second * fc2).T]).detach()
    found = _read(recorded, "l1(mlp.gradient)", "mean(mlp.saliency)")
    expected = torch.cat([first, second.T]).abs().mean(), saliency.mean()
    sizes = expected[0], saliency.abs().mean()  # the terms of a mean cancel
    for row, wanted, size in zip(found, expected, sizes, strict=True):
        assert row[1] == rounded(float(wanted), _num_terms(recorded), condition=float(size / wanted.abs()))


def test_activations_add_up_to_the_stream_and_share_its_gradient(recorded: RecordedPass) -> None:
    streams = [
        torch.cat([part.blocks[0].stream[place].flatten(0, -2) for part in recorded.parts]) for place in range(3)
    ]
    outputs = streams[1] - streams[0], streams[2] - streams[1]
    texts = (
        "frobenius(attention.activation)",
        "frobenius(mlp.activation)",
        "mean(attention.stream)",
        "std(mlp.stream)",
    )
    expected = [*(one.square().sum().sqrt() for one in outputs), streams[1].mean(), streams[2].std(correction=0)]
    found = [row[0] for row in _read(recorded, *texts)]
    for value, wanted in zip(found, expected, strict=True):
        condition = float(streams[1].abs().mean() / wanted.abs()) if wanted is expected[2] else 1.0  # its terms cancel
        assert value == rounded(float(wanted), streams[0].numel(), condition=condition)
    gradients = [
        torch.autograd.grad(
            torch.nn.functional.cross_entropy(part.logits, part.labels), part.blocks[0].stream[2], retain_graph=True
        )[0]
        * len(part.images)
        / len(recorded.candidate.images)
        for part in recorded.parts
    ]
    expected_l1 = float(torch.cat([one.flatten() for one in gradients]).abs().mean())
    found_l1 = _read(recorded, "l1(mlp.activation_gradient)")[0][0]
    assert found_l1 == rounded(expected_l1, _num_terms(recorded) + streams[0].numel())


def test_spectra_are_summed_up_as_the_grammar_says(recorded: RecordedPass) -> None:
    stream = torch.cat([part.blocks[3].stream[2].flatten(0, -2) for part in recorded.parts]).detach()
    singular = torch.linalg.svdvals(stream - stream.mean(0))
    of_squares, of_values = singular**2 / (singular**2).sum(), singular / singular.sum()
    expected = [-(of_squares * of_squares.log()).sum(), (-(of_values * of_values.log()).sum()).exp()]
    found = [row[3] for row in _read(recorded, "entropy(center(mlp.stream))", "effective_rank(center(mlp.stream))")]
    # Few images leave most singular values 0, but an error of inner products' eigenvalues has a large root there. Each
    # adds `-p log(p)` to the entropy of the values.
    share = math.sqrt(difference_bound(len(stream)))
    bound = -len(singular) * share * math.log(share)
    for value, wanted in zip(found, expected, strict=True):
        assert value == pytest.approx(float(wanted), rel=bound)


# --- proxies ---


def test_an_expression_gives_what_its_formula_says_of_the_pass(recorded: RecordedPass) -> None:
    proxy = Expression(formula="-mean(l1(mlp.gradient) * std(attention.stream))")
    gradient, stream = _read(recorded, "l1(mlp.gradient)", "std(attention.stream)")
    expected = -np.mean(np.array(gradient) * np.array(stream))
    assert proxy.measure(recorded) == rounded(float(expected), len(gradient) + 2)


def test_an_expression_needs_a_formula_and_tells_what_is_wrong_with_it() -> None:
    with pytest.raises(registry.PluginSettingsError, match=r"'formula'.*column 9.*Did you mean 'mlp.weight'"):
        registry.create("proxies", "expression", {"formula": "mean(l1(mlp.wight))"})
    with pytest.raises(registry.PluginSettingsError, match="formula"):
        registry.create("proxies", "expression")
    spelled = registry.create("proxies", "expression", {"formula": "mean( l1(mlp.weight) )"})
    assert spelled == registry.create("proxies", "expression", {"formula": "mean(l1(mlp.weight))"})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with monkeypatch.context() as patched:
        patched.setenv(registry.FORMULA_FOLDER_VARIABLE, "")
        registry.use_formulas(tmp_path / "proxies")
        yield tmp_path / "proxies"
    registry.clear_caches()


def test_a_saved_formula_is_a_proxy_by_its_name(folder: Path, recorded: RecordedPass) -> None:
    save_formula(folder, "my-score", parse("-mean(l1(mlp.gradient))"), comments="found\n\nsomewhere")
    assert (folder / "my-score.txt").read_text().splitlines() == [
        "# found",
        "#",
        "# somewhere",
        "-mean(l1(mlp.gradient))",
    ]
    assert "my-score" in registry.available("proxies")
    assert str(folder) in registry.provider("proxies", "my-score")
    proxy = registry.create("proxies", "my-score", {"repeats": 2})
    assert proxy.repeats == 2
    assert proxy.direction == "maximize"
    assert proxy.measure(recorded) == Expression(formula="-mean(l1(mlp.gradient))").measure(recorded)
    with pytest.raises(registry.PluginSettingsError, match="formula"):
        registry.create("proxies", "my-score", {"formula": "mean(l1(mlp.weight))"})


def test_a_name_that_is_taken_is_refused(folder: Path) -> None:
    formula = parse("mean(l1(mlp.weight))")
    with pytest.raises(ValueError, match=r"'params' is a proxy of vitsearch"):
        save_formula(folder, "params", formula, comments="")
    with pytest.raises(ValueError, match="a name must start with"):
        save_formula(folder, "../mine", formula, comments="")
    assert not folder.exists()
    path = save_formula(folder, "mine", formula, comments="one")
    assert str(path) in str(saving_problem(folder, "mine"))
    with pytest.raises(ValueError, match="are never overwritten"):
        save_formula(folder, "mine", parse("sum(l1(mlp.weight))"), comments="two")
    assert path.read_text() == "# one\nmean(l1(mlp.weight))\n"


def test_another_folder_of_formulas_does_not_read_the_installed_packages_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_formula(folder, "mine", parse("mean(l1(mlp.weight))"), comments="")
    assert "mine" in registry.available("proxies")
    monkeypatch.setattr(registry, "entry_points", lambda: pytest.fail("they are known"))
    registry.use_formulas(tmp_path / "another")
    assert "mine" not in registry.available("proxies")
    assert {"params", "flops"} <= registry.available("proxies").keys()


def test_a_package_and_a_saved_formula_of_one_name_are_an_error(folder: Path) -> None:
    folder.mkdir()
    (folder / "params.txt").write_text("mean(l1(mlp.weight))\n")
    registry.clear_caches()
    with pytest.raises(registry.DuplicatePluginError, match="'params' is declared by vitsearch"):
        registry.available("proxies")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "must have one line with a formula, apart from comments, but has 0"),
        ("# about\nmean(l1(mlp.wight))\n", "broken.txt, line 2, at column 9: .*Did you mean 'mlp.weight'"),
    ],
)
def test_a_broken_file_is_told_with_its_name_and_line(folder: Path, text: str, message: str) -> None:
    folder.mkdir()
    (folder / "broken.txt").write_text(text)
    (folder / "Notes of mine.txt").write_text("no formula")
    registry.clear_caches()
    assert "Notes of mine" not in registry.available("proxies")
    with pytest.raises(ImportError, match=message):
        registry.load("proxies", "broken")
