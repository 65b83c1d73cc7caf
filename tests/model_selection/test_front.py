"""The Pareto front against its definition, spelled out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_calex import pareto_front


def slow_front(reduction, accuracy):
    """No other point is at least as good in both and better in one."""
    points = list(zip(reduction, accuracy, strict=True))
    return [
        not any(
            r >= mine[0] and a >= mine[1] and (r > mine[0] or a > mine[1])
            for r, a in points
        )
        for mine in points
    ]


few = st.integers(-2, 3).map(float)  # so that there are ties


@given(st.lists(st.tuples(few, few), min_size=1, max_size=12))
def test_front_holds_the_points_that_no_other_dominates(points):
    reduction, accuracy = map(list, zip(*points, strict=True))
    front = pareto_front(reduction, accuracy)
    assert front.dtype == bool
    assert front.tolist() == slow_front(reduction, accuracy)
    assert front.any()


def test_equal_points_stay_together():
    front = pareto_front([0.3, 0.3, 0.1, 0.3], [0.9, 0.9, 0.9, 0.8])
    assert front.tolist() == [True, True, False, False]
    assert pareto_front([], []).tolist() == []


def test_bad_input():
    with pytest.raises(ValueError, match="accuracy contains NaN"):
        pareto_front([0.1, 0.2], [0.9, np.nan])
    with pytest.raises(ValueError, match="flops_reduction contains NaN"):
        pareto_front([0.1, np.inf], [0.9, 0.8])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        pareto_front([0.1], [0.9, 0.8])
