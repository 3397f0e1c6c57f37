"""Published claims about training methods, against the results of `benchmarks.methods` and `benchmarks.averaging`.

Each claim is a comparison of two recipes at equal work, so that the verdict follows from the paired difference and its
interval on each set of images. A method that needs half of the steps is better at equal work.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from benchmarks._methods_page import arms_of, average_difference, averages_of, marked
from benchmarks._pairs import PairedDifference, paired_difference
from benchmarks.averaging import CONSECUTIVE, LAST, SPACED, TRAINED_EMA
from benchmarks.methods import AS_VIT, CONTROL, DEEPER, LARGE_BATCHES
from search_spaces.recipes import describe_plugin

IMAGES = {"digits": "digits", "cifar10": "CIFAR-10"}
"""Files of results, and what the page calls them."""
EPOCHS, FACTORS = (12, 24), (1.0, 4.0)
"""The epochs of the averages before the decay, and the factors of the rate to compare."""

ESCAPED_STAR = r"\*"

Kind = Literal["better", "as good"]


class Comparison(NamedTuple):
    """Two arms on one topology."""

    method: str
    other: str = CONTROL.name
    topology: str = AS_VIT

    def differences(self) -> Iterator[tuple[str, PairedDifference]]:
        """The differences of the test accuracies on each set of images, with the words for them."""
        for images, shown in IMAGES.items():
            arms = arms_of(images, self.topology)
            if self.method in arms and self.other in arms:
                against = "" if self.other == CONTROL.name else f" - {self.other}"
                yield (
                    f"{self.method}{against}, {shown}",
                    paired_difference(arms[self.method]["test"], arms[self.other]["test"]),
                )


class EarlyAverage(NamedTuple):
    """An average of checkpoints of a constant rate, before any decay, against another one."""

    method: str
    other: str

    def differences(self) -> Iterator[tuple[str, PairedDifference]]:
        """The differences after each number of epochs, at each factor of the rate."""
        for images, shown in IMAGES.items():
            for epoch in EPOCHS:
                by_place = averages_of(images, epoch)
                for factor in FACTORS:
                    methods = by_place.get(("constant", factor), {})
                    pair = methods.get(self.method), methods.get(self.other)
                    if pair[0] and pair[1] and (found := average_difference(pair[0], pair[1])) is not None:
                        at = f"{epoch} epochs, {factor:g} x the rate"
                        yield f"{self.method} - {self.other}, {shown}, {at}", found


class Claim(NamedTuple):
    """A published claim, and the comparisons that it makes."""

    text: str
    says: Kind
    """Whether the methods are claimed to be better than what they are compared with, or no worse."""
    comparisons: Sequence[Comparison | EarlyAverage]


_SPACED, _CONSECUTIVE = describe_plugin(SPACED), describe_plugin(CONSECUTIVE)
CLAIMS = (
    Claim(
        "Half of CIFAR-10 can be pruned without loss, if the scores are free (Data Diet)",
        "as good",
        [Comparison("half, hard by EL2N *"), Comparison("half, hard by GraNd *")],
    ),
    Claim(
        "Scores carry over between models (Data Diet)",
        "as good",
        [Comparison("half, hard by another model's EL2N *", "half, hard by EL2N *")],
    ),
    Claim(
        "A cyclical curriculum is better than none (CCL)",
        "better",
        [Comparison("cyclical"), Comparison("cyclical, trained loss")],
    ),
    Claim(
        "Averages before the decay are better than the newest weights, more so at a high rate",
        "better",
        [EarlyAverage(_CONSECUTIVE, describe_plugin(LAST)), EarlyAverage(_SPACED, describe_plugin(LAST))],
    ),
    Claim("Their checkpoints should be far apart", "better", [EarlyAverage(_SPACED, _CONSECUTIVE)]),
    Claim("They are better than moving averages", "better", [EarlyAverage(_SPACED, describe_plugin(TRAINED_EMA))]),
    Claim(
        "Linear decay is at least as good as all common schedules",
        "as good",
        [Comparison("linear", other) for other in (CONTROL.name, "step", "warm-up-stable-decay")],
    ),
    Claim(
        "Refined from the norms of the gradients, it is better", "better", [Comparison("refined linear *", "linear")]
    ),
    Claim("UBA is the best schedule", "better", [Comparison("uba"), Comparison("uba", "linear")]),
    Claim("Blockwise learning rates save half of the steps", "better", [Comparison("blockwise rates")]),
    Claim("Sophia needs half of the steps", "better", [Comparison("sophia")]),
    Claim("ROOT is ahead of Muon", "better", [Comparison("root", "muon")]),
    Claim(
        "Large batches lose nothing with a scaled rate and warm-up",
        "as good",
        [Comparison(f"batches of {size}, linear scaling") for size in LARGE_BATCHES],
    ),
    Claim("Growing a network saves work (MSG)", "better", [Comparison("masked growth", topology=DEEPER)]),
    Claim("A V-cycle saves 20 % of the work", "better", [Comparison("v-cycle", topology=DEEPER)]),
    Claim("Dropout should end early", "better", [Comparison("early dropout", "dropout"), Comparison("early dropout")]),
    Claim(
        "Mixup should end early", "better", [Comparison("mixup, first half", "mixup"), Comparison("mixup, first half")]
    ),
    Claim(
        "A student learns best from the labels of its teacher alone (SSLD)", "better", [Comparison("teacher-labels")]
    ),
)


def claims_table(_: str) -> str:
    """Markdown of all claims: what was measured here, and the verdict."""
    lines = ["| claim | here | verdict |", "| --- | --- | --- |"]
    for claim in CLAIMS:
        found = [one for comparison in claim.comparisons for one in comparison.differences()]
        here = "; ".join(f"{words.replace('*', ESCAPED_STAR)}: {marked(difference)}" for words, difference in found)
        lines.append(f"| {claim.text} | {here or 'not measured'} | {verdict(claim.says, [one for _, one in found])} |")
    return "\n".join(lines)


def verdict(says: Kind, differences: Sequence[PairedDifference]) -> str:
    """What the intervals tell about a claim; empty if nothing was measured."""
    count = len(differences)
    num_better = sum(one.low > 0 for one in differences)
    num_worse = sum(one.high < 0 for one in differences)
    if count == 0:
        return ""
    if num_better and num_worse:
        return "it depends"
    if num_worse:
        share = "here" if num_worse == count else "in part"
        return f"worse {share}" if says == "better" else f"refuted {share}"
    if num_better:
        share = "here" if num_better == count else "in part"
        return f"confirmed {share}" if says == "better" else f"better {share}"
    return "not shown" if says == "better" else "not refuted"
