"""Optimal stopping, against its definition in plain loops."""

import numpy as np
import pytest

from sk_calex.calibration import StageAnswer
from sk_calex.policies import OptimalStopping, Oracle
from tests._reference.policies import dirichlet, slow_stopping

COSTS = [1.0, 2.0, 3.0, 5.0]


@pytest.mark.parametrize("price", [0.0, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("regularization", [0.5, 20.0])
def test_advantages_follow_from_the_definition(price, regularization):
    proba, y = dirichlet()
    weight = np.random.default_rng(1).integers(3, size=len(y)).astype(float)
    rule = OptimalStopping(price, regularization=regularization)
    rule.fit(proba, y, weight, costs=COSTS)
    expected = slow_stopping(proba, y, weight, COSTS, price, regularization)
    found = [rule.scores(k, StageAnswer(proba[k])) for k in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-9)
    exits = np.vstack([expected >= 0, np.ones(len(y), dtype=bool)])
    near = np.abs(expected).min(axis=0) < 1e-9
    assert near.mean() < 0.1
    np.testing.assert_array_equal(rule.depth(proba)[~near], exits.argmax(axis=0)[~near])


def test_cost_falls_as_the_price_rises():
    proba, y = dirichlet(n=2000)
    costs = np.array(COSTS)
    means = [
        costs[OptimalStopping(p).fit(proba, y, costs=costs).depth(proba)].mean()
        for p in (0.0, 0.2, 1.0, 50.0)
    ]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]
    assert means[-1] == costs[0]  # any answer costs more than it can gain later


def test_unit_of_the_costs_does_not_matter():
    proba, y = dirichlet()
    small = OptimalStopping(0.2).fit(proba, y, costs=COSTS)
    large = OptimalStopping(0.2).fit(proba, y, costs=np.array(COSTS) * 1e9)
    for k in range(3):
        said = StageAnswer(proba[k])
        np.testing.assert_allclose(small.scores(k, said), large.scores(k, said))


def test_a_sure_and_right_branch_answers_all():
    """Whatever the price: later stages cost more and gain nothing."""
    y = np.arange(60) % 3
    sure = np.eye(3)[y] * 0.9 + 0.1 / 3
    proba = np.stack([sure, sure])
    rule = OptimalStopping(0.1).fit(proba, y, costs=[1, 2])
    assert (rule.depth(proba) == 0).all()


def test_a_later_branch_is_awaited_where_it_answers_better():
    """Joint over branches: the second is nearly free and always right."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=400)
    coin = rng.integers(2, size=400)
    first = np.eye(2)[coin] * 0.4 + 0.3
    right = np.eye(2)[y] * 0.8 + 0.1
    proba = np.stack([first, right, right])
    depth = OptimalStopping(0.3).fit(proba, y, costs=[1.0, 1.1, 10.0]).depth(proba)
    assert (depth == 1).all()


def test_accuracy_stays_below_the_limit():
    proba, y = dirichlet(n=500)
    depth = OptimalStopping(0.1).fit(proba, y, costs=COSTS).depth(proba)
    limit = Oracle().depth(proba, y)
    right = proba.argmax(axis=2) == y
    rows = np.arange(len(y))
    assert right[depth, rows].mean() <= right[limit, rows].mean()


@pytest.mark.parametrize(
    ("parameters", "name"),
    [({"price": -0.1}, "price"), ({"regularization": 0.0}, "regularization")],
)
def test_parameters_out_of_range_are_refused(parameters, name):
    proba, y = dirichlet()
    with pytest.raises(ValueError, match=name):
        OptimalStopping(**parameters).fit(proba, y, costs=COSTS)


def test_costs_are_needed():
    with pytest.raises(
        ValueError, match=r"costs=None, but OptimalStopping.*depth_costs_"
    ):
        OptimalStopping().fit(*dirichlet())


def test_no_sample_gives_no_score():
    proba, y = dirichlet()
    rule = OptimalStopping().fit(proba, y, costs=COSTS)
    assert rule.scores(0, StageAnswer(np.empty((0, 3)))).shape == (0,)
