"""The interval of a paired comparison in benchmarks."""

import pytest
from scipy import stats

from benchmarks._pairs import paired_difference


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    one, other = [0.5, 0.7, 0.6, 0.9, 0.8], [0.4, 0.5, 0.65, 0.7, 0.6]
    expected = stats.ttest_rel(one, other).confidence_interval(0.95)
    found = paired_difference(one, other)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx(0.13)
    assert found.text(scale=100).startswith("+13.0 [")
