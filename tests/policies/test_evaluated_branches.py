"""Which branches a fitted rule has to ask."""

import numpy as np
import pytest
from sklearn.base import clone

from sk_calex import SurvivorThresholdCalibrator
from sk_calex.calibration import StageTable
from sk_calex.calibration._exits import can_exit, evaluated_branches, up_to_last
from sk_calex.policies import (
    ClassThresholds,
    EntropyThreshold,
    ExitPolicy,
    LearnedGate,
    OptimalStopping,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
    first_exits,
)

RNG = np.random.default_rng(0)
PROBA = RNG.dirichlet(np.ones(3), size=(4, 60))
Y = PROBA[-1].argmax(axis=1)
COSTS = [1, 2, 3, 4]
RULES = [
    SurvivorThresholdCalibrator(0.3, min_support=1),
    SharedThreshold(0.7),
    SharedThreshold(0.3, score="gap"),
    EntropyThreshold(0.5),
    Patience(1),
    Quota(1.0),
    LearnedGate(0.5),
    RegretPriced(0.3),
    OptimalStopping(0.3),
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_thresholds_out_of_reach_rest(rule):
    rule = clone(rule).fit(PROBA, Y, costs=COSTS)
    rule.thresholds_[1] = np.inf
    runs = rule.evaluated_branches()
    assert runs.dtype == bool
    back = isinstance(rule, Patience)
    assert runs[1] == (back and np.isfinite(rule.thresholds_[2]).any())
    rule.thresholds_[:] = np.inf
    assert not rule.evaluated_branches().any()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_no_sample_exits_where_a_branch_rests(rule):
    rule = clone(rule).fit(PROBA, Y, costs=COSTS)
    new = RNG.dirichlet(np.full(3, 0.2), size=(4, 200))
    depth = rule.depth(new)
    rests = np.flatnonzero(~rule.evaluated_branches())
    assert not np.isin(depth, rests).any()


def test_one_class_is_enough():
    thresholds = np.array([[np.inf, 0.9], [np.inf, np.inf], [-np.inf, np.inf]])
    expected = [True, False, True]
    assert ClassThresholds(thresholds).evaluated_branches().tolist() == expected
    rule = SharedThreshold().fit(np.eye(2)[[[0], [0], [0], [0]]], [0])
    rule.thresholds_ = thresholds
    assert rule.evaluated_branches().tolist() == expected


@pytest.mark.parametrize(
    ("rule", "runs"),
    [
        (SharedThreshold(1.0), True),
        (SharedThreshold(1.1), False),
        (SharedThreshold(1.1, score="gap"), False),
        (EntropyThreshold(0.0), True),
        (EntropyThreshold(-0.1), False),
        (Patience(2), True),
        (Patience(3), False),  # of three branches none is the fourth in a row
    ],
)
def test_what_no_score_can_reach(rule, runs):
    rule.fit(PROBA, Y)
    assert rule.evaluated_branches().all() == rule.evaluated_branches().any() == runs


def test_a_streak_needs_the_branches_before_it():
    rule = Patience(1).fit(PROBA, Y)
    assert rule.thresholds_[0].tolist() == [np.inf] * 3
    assert rule.evaluated_branches().all()
    rule.thresholds_[2] = np.inf
    assert rule.evaluated_branches().tolist() == [True, True, False]


def test_a_gate_that_was_not_learned_rests():
    right = np.tile(np.eye(3)[Y] * 0.8 + 0.2 / 3, (3, 1, 1))
    wrong = np.roll(right, 1, axis=2)
    rule = LearnedGate(0.5).fit([wrong[0], right[0], right[0]], Y)
    assert rule.gates_[0] is None
    assert rule.evaluated_branches().tolist() == [False, True]


class Sum(ExitPolicy):
    knob = "threshold"

    def __init__(self, threshold=1.0):
        self.threshold = threshold

    def _fit(self, given):
        self._set_all(given, self.threshold)

    def _scores(self, branch, said):
        return said.confidence + said.gap


class Steady(SharedThreshold):
    def _scores(self, branch, said):
        return said.streak + said.confidence


def test_a_rule_of_your_own_runs_all_branches_before_its_last_exit():
    for rule in (Sum(1.9), Steady(2.5)):
        rule.fit(PROBA, Y)
        assert rule.evaluated_branches().all()
        rule.thresholds_[[0, 2]] = np.inf
        assert rule.evaluated_branches().tolist() == [True, True, False]


def test_a_rule_that_decides_by_itself_runs_all_branches():
    class Never(SharedThreshold):
        def exits(self, branch, said):
            return np.zeros(len(said.predicted), dtype=bool)

    rule = Never(np.inf).fit(PROBA, Y)
    assert rule.evaluated_branches().all()


def test_any_object_may_be_asked():
    class Bare:
        def exits(self, branch, said):
            return said.confidence > 0.9

    assert evaluated_branches(Bare(), 3).tolist() == [True] * 3
    assert evaluated_branches(None, 2).tolist() == [True] * 2
    assert evaluated_branches(ClassThresholds(np.full((2, 3), np.inf)), 2).sum() == 0


def test_masks():
    assert can_exit(np.array([[1.0, 2.0], [3.0, np.inf]]), 1.0).tolist() == [
        True,
        False,
    ]
    assert up_to_last(np.array([False, True, False])).tolist() == [True, True, False]
    assert not up_to_last(np.zeros(3, dtype=bool)).any()


def test_auto_compares_costs_of_idle_and_busy_heads():
    """A table without costs counts stages, and the last stage is never the cheaper."""
    table = StageTable.from_probabilities(PROBA)
    rule = SharedThreshold("auto", max_accuracy_drop=0.9).fit(table, Y)
    assert rule.threshold_path_["mean_cost"].max() <= 4
    assert (first_exits(rule, table) < 3).any()
