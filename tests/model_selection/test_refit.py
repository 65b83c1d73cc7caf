"""Refit rules against a slow choice, and inside a search."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV

from sk_calex import (
    best_within,
    cheapest_within,
    flops_reduction_scorer,
)
from tests._cascade_models import flat_cascade


def results(accuracy, flops, names=("accuracy", "flops")):
    return {
        f"mean_test_{names[0]}": np.array(accuracy, dtype=float),
        f"mean_test_{names[1]}": np.array(flops, dtype=float),
        "params": [{"margin": i} for i in range(len(accuracy))],
    }


share = st.integers(0, 10).map(lambda n: n / 10)
candidates = st.lists(st.tuples(share, share), min_size=1, max_size=8)


@given(candidates, share, st.none() | share)
def test_cheapest_within(points, drop, baseline):
    accuracy, flops = map(list, zip(*points, strict=True))
    rule = cheapest_within(max_accuracy_drop=drop, baseline=baseline)
    reference = max(accuracy) if baseline is None else baseline
    # In tenths, so that nothing is rounded.
    good = [
        i for i, a in enumerate(accuracy) if round(10 * (reference - a)) <= 10 * drop
    ]
    if not good:
        with pytest.raises(ValueError, match="no operating point stays within"):
            rule(results(accuracy, flops))
        return
    best = max(good, key=lambda i: (flops[i], accuracy[i], -i))
    assert rule(results(accuracy, flops)) == best


@given(candidates, share)
def test_best_within(points, budget):
    accuracy, flops = map(list, zip(*points, strict=True))
    rule = best_within(flops_budget=budget)
    good = [i for i, f in enumerate(flops) if f >= budget]
    if not good:
        with pytest.raises(ValueError, match="no operating point reaches"):
            rule(results(accuracy, flops))
        return
    best = max(good, key=lambda i: (accuracy[i], flops[i], -i))
    assert rule(results(accuracy, flops)) == best


def test_a_drop_of_exactly_that_much_counts():
    """0.83 - 0.82 is 0.010000000000000009 in floating point."""
    assert cheapest_within(max_accuracy_drop=0.01)(results([0.83, 0.82], [0, 1])) == 1


def test_failed_candidates_do_not_count():
    found = results([np.nan, 0.8, 0.7], [0.9, np.nan, 0.1])
    assert cheapest_within(max_accuracy_drop=0.5)(found) == 2
    assert best_within(flops_budget=0.1)(found) == 2
    with pytest.raises(ValueError, match="every candidate has a score of NaN"):
        best_within(flops_budget=0.1)(results([np.nan], [0.5]))


def test_the_nearest_is_named():
    found = results([0.9, 0.7], [0.1, 0.3])
    with pytest.raises(ValueError, match=r"candidate 1 with \{'margin': 1\}.* 0\.3000"):
        best_within(flops_budget=0.5)(found)
    with pytest.raises(ValueError, match=r"0\.05 of 0\.9900: the nearest, candidate 0"):
        cheapest_within(max_accuracy_drop=0.05, baseline=0.99)(found)
    del found["params"]
    with pytest.raises(ValueError, match=r"candidate 1, has an accuracy of 0\.7000"):
        best_within(flops_budget=0.5)(found)


def test_metrics_are_known_by_name():
    found = results([0.9, 0.7], [0.1, 0.3], names=("right", "saved"))
    rule = best_within(flops_budget=0.2, accuracy="right", flops="saved")
    assert rule(found) == 1
    message = r"no metric 'accuracy'; they have \['right', 'saved'\].*accuracy=\.\.\."
    with pytest.raises(ValueError, match=message):
        best_within(flops_budget=0.2)(found)
    with pytest.raises(ValueError, match=r"no metric 'flops'.*flops=\.\.\."):
        cheapest_within(max_accuracy_drop=0.2, accuracy="right")(found)


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_bad_numbers(value):
    with pytest.raises(ValueError, match=r"max_accuracy_drop=.* must lie in"):
        cheapest_within(max_accuracy_drop=value)
    with pytest.raises(ValueError, match=r"flops_budget=.* must lie in"):
        best_within(flops_budget=value)
    with pytest.raises(ValueError, match=r"baseline=.* must be an accuracy"):
        cheapest_within(max_accuracy_drop=0.1, baseline=value)


@pytest.mark.parametrize("value", ["0.1", None, True])
def test_not_a_number(value):
    with pytest.raises((TypeError, ValueError), match="flops_budget"):
        best_within(flops_budget=value)


@pytest.mark.parametrize("kind", [GridSearchCV, RandomizedSearchCV])
def test_in_a_search(kind):
    X, y = make_classification(240, n_informative=6, n_classes=3, random_state=0)
    cascade = flat_cascade(branch=LogisticRegression(), min_support=3, random_state=0)
    extra = {"n_iter": 3, "random_state": 0} if kind is RandomizedSearchCV else {}
    rule = pickle.loads(pickle.dumps(cheapest_within(max_accuracy_drop=0.05)))
    search = kind(
        cascade,
        {"margin": [-0.5, 0.1, 0.5]},
        scoring={"accuracy": "accuracy", "flops": flops_reduction_scorer},
        refit=rule,
        cv=2,
        **extra,
    )
    search = clone(search).fit(X, y)
    found = search.cv_results_
    good = found["mean_test_accuracy"] >= found["mean_test_accuracy"].max() - 0.05
    best = np.where(good, found["mean_test_flops"], -np.inf).argmax()
    assert search.best_index_ == best
    assert search.best_estimator_.margin == found["params"][best]["margin"]
