import numpy as np
import pytest
from scipy.stats import binomtest

from sk_calex.utils._intervals import clopper_pearson, upper_limit
from tests._reference.risk import slow_upper_limit


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_limits_are_those_of_scipy(level):
    for k, n in [(0, 1), (1, 1), (0, 40), (3, 40), (40, 40), (700, 2000)]:
        expected = binomtest(k, n).proportion_ci(level, method="exact")
        assert clopper_pearson(k, n, level) == pytest.approx(np.array(expected))


def test_limits_of_many_shares_are_those_of_each():
    k, n = np.array([[0, 2], [5, 9]]), np.array([10, 20])
    limits = clopper_pearson(k, n)
    assert limits.shape == (2, 2, 2)
    assert limits[:, 1, 1] == pytest.approx(clopper_pearson(9, 20))


def test_limits_without_trials_say_nothing():
    assert clopper_pearson(0, 0).tolist() == [0, 1]


def test_limits_of_a_fractional_sample_lie_between_their_neighbours():
    low, high = clopper_pearson([2, 2.5, 3], 10)
    assert (np.diff(low) > 0).all()
    assert (np.diff(high) > 0).all()


@pytest.mark.parametrize("error", [0.002, 0.1])
def test_upper_limit_is_the_slow_one(error):
    for k, n in [(0, 5), (3, 30), (30, 30)]:
        assert upper_limit(k, n, error) == pytest.approx(slow_upper_limit(k, n, error))
