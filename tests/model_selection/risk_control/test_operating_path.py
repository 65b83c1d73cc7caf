import numpy as np
import pytest

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.model_selection._risk_control._operating_path import (
    PathPlan,
    given_path,
)
from sk_calex.policies import SharedThreshold, first_exits

COSTS = np.array([0.1, 1.1])
N = 1000


def plan(wrong_below, risk="accuracy_drop", *, weight=None, gains=False):
    """A branch with confidences 0.5 to 1 in even steps, wrong where it is less sure.

    The last stage is always right; or, with `gains`, always wrong.
    """
    sure = np.linspace(0.5, 1, N, endpoint=False)
    labels = np.zeros(N, dtype=np.intp)
    branch = (sure < wrong_below).astype(np.intp)
    top = np.stack([sure, np.full(N, 0.9)])
    proba = np.stack([1 - top, top], axis=2)
    flip = np.stack([branch == 0, np.full(N, not gains)])
    proba[flip] = proba[flip][:, ::-1]
    table = StageTable.from_probabilities(proba)
    weight = np.ones(N) if weight is None else weight
    given = CalibrationSet(table, labels, weight)

    def rule_at(threshold):
        return SharedThreshold(threshold).fit(table, labels)

    return PathPlan(rule_at, given, lambda rule: COSTS, risk)


def saved(plan, path):
    """Savings of each point on the calibration rows."""
    table = plan.given.answers
    return np.array([1 - COSTS[first_exits(r, table)].mean() for r in path.rules])


def test_given_values_are_ordered_by_what_they_save():
    path = plan(0).try_values([0.6, 0.9, 0.7])
    assert path.values == [0.9, 0.7, 0.6]
    assert [rule.threshold for rule in path.rules] == path.values


def test_spanning_path_has_even_steps_and_starts_where_something_is_saved():
    made = plan(0)
    path = made.span([0.3, 0.99], max_risk=0.1)
    steps = np.diff(saved(made, path), prepend=0.0)
    assert (steps >= 0.02 - 1e-9).all()
    assert steps.max() < 0.08  # the widest that dropping a close neighbour leaves
    assert saved(made, path)[-1] > 0.85
    assert path.values == sorted(path.values, reverse=True)


def test_whole_numbers_have_nothing_between_them():
    path = plan(0).span([1, 0], max_risk=0.1)
    assert path.values == [0]


def test_path_ends_where_calibration_rows_show_too_much_risk():
    made = plan(wrong_below=0.75)
    path = made.span([0.51, 0.99], max_risk=0.05)
    table = made.given.answers
    drops = [
        (table.predicted[0][first_exits(rule, table) == 0] == 1).sum() / N
        for rule in path.rules
    ]
    assert drops[-1] <= 0.05 + 2 * np.sqrt(0.07 / N)
    assert drops[-1] > 0.03
    assert len(made.span([0.51, 0.99], max_risk=0.2)) > len(path)


def test_gains_end_a_path_of_disagreement_alone():
    dropping, differing = (
        plan(0, risk, gains=True) for risk in ("accuracy_drop", "disagreement")
    )
    values = [0.51, 0.99]
    assert saved(dropping, dropping.span(values, 0.05))[-1] > 0.8
    assert len(differing.span(values, 0.05)) == 0


def test_weights_of_the_calibration_rows_count():
    weight = np.ones(N)
    weight[: N // 2] = 0  # the less sure half is absent
    path = plan(0, weight=weight).try_values([0.75])
    made = plan(0, weight=weight)._measure(0.75)
    assert made.saved == pytest.approx(0.9)
    assert path.values == [0.75]


def test_given_thresholds_are_rules_of_the_confidence():
    path = given_path([0.9, np.inf], n_branches=2, n_classes=3)
    assert path.values == [0, 1]
    assert path.rules[0].thresholds_.tolist() == [[0.9] * 3] * 2
    assert np.isinf(path.rules[1].thresholds_).all()
