"""Branches that cost more than they save are left out, by fixed probabilities."""

import itertools
import pickle
import warnings

import numpy as np
import pytest

from sk_calex import (
    CascadeClassifier,
    SurvivorThresholdCalibrator,
    operating_curve,
)
from sk_calex.branches import BranchCostWarning
from sk_calex.calibration import CalibrationWarning
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from tests._fixed_cascade import Columns, probabilities

STAGES = [10, 10, 80]


def rows(n=1000, seed=0, *, early=0.02, late=0.8):
    """Rows of which the first branch is sure of few, the second of most.

    A branch that is sure is right; one that is not is right in three of five rows.
    """
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 3)
    parts = []
    for share in (early, late):
        sure = rng.permutation(np.arange(n)) < round(share * n)
        right = sure | (rng.random(n) < 0.6)
        said = np.where(right, y, (y + 1) % 3)
        confidence = np.where(sure, 0.95, 0.55) + rng.random(n) / 100
        parts.append(probabilities(said, confidence))
    last = np.where(rng.random(n) < 0.95, y, (y + 1) % 3)
    parts.append(probabilities(last, 0.8 + rng.random(n) / 100))
    return np.hstack(parts), y


def cascade_of(rule=None, heads=(5, 1), data=None, **params):
    """A cascade of two branches that read their probabilities off the columns of X."""
    params = {"branches": "auto", "costs": {"stages": STAGES, "heads": heads}} | params
    cascade = CascadeClassifier(
        branch=[Columns(0), Columns(3)],
        final_estimator=Columns(6),
        calibrator=rule,
        cv=0.5,
        random_state=0,
        **params,
    )
    return cascade.fit(*(rows(2000) if data is None else data))


def mean_cost(cascade):
    """On the calibration rows, by hand: the heads of branches without exits rest."""
    given, rule = cascade.calibration_, cascade.calibrator_
    spent = 0.0
    for i in range(len(given.labels)):
        for k, stage in enumerate(STAGES):
            spent += stage
            if k == 2 or not (rule.thresholds_[k] < np.inf).any():
                continue
            spent += cascade.costs["heads"][k]
            said = given.answers.take(np.array([i])).stage(k)
            if rule.exits(k, said)[0]:
                break
    return spent / len(given.labels)


def test_a_branch_where_few_exit_is_left_out():
    """Its head costs 5 on all rows; it saves at most 91 on 2 % of them."""
    cascade = cascade_of(SharedThreshold(0.9))
    np.testing.assert_array_equal(cascade.kept_branches_, [False, True])
    every = cascade_of(SharedThreshold(0.9), branches="all")
    np.testing.assert_array_equal(every.kept_branches_, [True, True])
    assert mean_cost(cascade) < mean_cost(every)
    X, _ = rows(500, seed=1)
    depth = cascade.exit_depth(X)
    np.testing.assert_array_equal(np.bincount(depth, minlength=3), [0, 400, 100])
    cost = {1: 10 + 10 + 1, 2: 100 + 1}
    np.testing.assert_array_equal(cascade.cost(X), [cost[d] for d in depth])
    assert cascade.cost_reduction(X) == pytest.approx(1 - (0.8 * 21 + 0.2 * 101) / 100)


def test_branches_that_pay_stay():
    cascade = cascade_of(SharedThreshold(0.9), heads=(0.1, 1))
    np.testing.assert_array_equal(cascade.kept_branches_, [True, True])
    every = cascade_of(SharedThreshold(0.9), heads=(0.1, 1), branches="all")
    X, _ = rows(500, seed=1)
    np.testing.assert_array_equal(cascade.exit_depth(X), every.exit_depth(X))


@pytest.mark.parametrize("heads", list(itertools.product((0.1, 30, 90), repeat=2)))
def test_no_choice_of_branches_costs_less(heads):
    """Against a loop over all of them, the network without branches included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BranchCostWarning)
        cascade = cascade_of(SharedThreshold(0.9), heads=heads)
    confidence = cascade.calibration_.answers.confidence
    costs = {}
    for kept in itertools.product((False, True), repeat=2):
        cost = np.zeros(confidence.shape[1])
        going = np.ones(len(cost), dtype=bool)
        for k, stage in enumerate(STAGES):
            cost[going] += stage
            if k < 2 and kept[k]:
                cost[going] += heads[k]
                going &= confidence[k] < 0.9
        costs[kept] = cost.mean()
    assert costs[tuple(cascade.kept_branches_)] == min(costs.values())


def test_thresholds_are_found_as_if_the_branch_did_not_exist():
    rule = SurvivorThresholdCalibrator(min_support=5)
    cascade = cascade_of(rule, margin=0.0)
    np.testing.assert_array_equal(cascade.kept_branches_, [False, True])
    given = cascade.calibration_.select_stages([1, 2])
    alone = SurvivorThresholdCalibrator(0.0, min_support=5).fit_on(given)
    np.testing.assert_array_equal(cascade.thresholds_[1], alone.thresholds_[0])
    np.testing.assert_array_equal(cascade.support_, [[0, 0, 0], alone.support_[0]])
    np.testing.assert_array_equal(cascade.enabled_[0], [False] * 3)
    assert np.isnan(cascade.precision_[0]).all()
    assert cascade.margin_ == 0.0


def test_where_nothing_pays_nothing_exits():
    with pytest.warns(BranchCostWarning, match=r"no branch pays .* 1\d\d\.\d% of that"):
        cascade = cascade_of(SharedThreshold(0.9), heads=(90, 90))
    assert not cascade.kept_branches_.any()
    assert np.isnan(cascade.calibrator_.threshold_)
    X, _ = rows(500, seed=1)
    labels, depth = cascade.predict(X, return_depth=True)
    np.testing.assert_array_equal(labels, X[:, 6:].argmax(axis=1))
    assert (depth == 2).all()
    assert cascade.cost_reduction(X) == 0.0


def test_auto_margin_on_the_branches_that_pay():
    """With a first head that costs more than all saves, only leaving it out helps."""
    settings = {"max_accuracy_drop": 0.05, "heads": (90, 1)}
    with pytest.warns(CalibrationWarning, match="costs less than the network"):
        every = cascade_of(branches="all", data=rows(2000, early=0.3), **settings)
    assert np.isnan(every.margin_)
    cascade = cascade_of(data=rows(2000, early=0.3), **settings)  # without a warning
    np.testing.assert_array_equal(cascade.kept_branches_, [False, True])
    assert np.isfinite(cascade.margin_)
    assert mean_cost(cascade) < 100


def test_auto_margin_is_found_anew_for_the_branches_that_stay():
    cascade = cascade_of(max_accuracy_drop=0.05, heads=(15, 1))
    np.testing.assert_array_equal(cascade.kept_branches_, [False, True])
    given = cascade.calibration_.select_stages([1, 2])
    path = cascade.margin_path_
    chosen = path["margin"] == cascade.margin_
    assert path["within"][chosen].all()
    alone = SurvivorThresholdCalibrator(cascade.margin_, margin_mode="local")
    np.testing.assert_array_equal(
        cascade.thresholds_[1], alone.fit_on(given).thresholds_[0]
    )


def test_auto_that_finds_nothing_on_any_branches_says_so():
    with pytest.warns(CalibrationWarning, match="lets no sample exit: on 40 calibr"):
        cascade = cascade_of(data=rows(80))
    assert np.isnan(cascade.margin_)
    assert not cascade.kept_branches_.any()


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (SharedThreshold(), [0.5, 0.9]),
        (EntropyThreshold(), [0.3, 1.0]),
        (Patience(), [0, 1]),
        (Quota(), [0.1, 1.0]),
        (LearnedGate(), [0.5, 0.9]),
        (RegretPriced(), [0.1, 1.0]),
        (OptimalStopping(), [0.1, 1.0]),
        (SurvivorThresholdCalibrator(min_support=5), [0.0, (0.1, 0.0), 0.3]),
    ],
    ids=repr,
)
def test_no_rule_costs_more_than_with_all_branches_or_without_any(rule, values):
    """The point of every value, and the curve that shows it."""
    params = {} if rule.knob != "margin" else {"margin": 0.0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BranchCostWarning)
        cascade = cascade_of(rule, heads=(8, 4), **params)
        every = cascade_of(rule, heads=(8, 4), branches="all", **params)
        X, y = rows(500, seed=1)
        for value in values:
            costs = []
            for each in (cascade, every):
                each.set_operating_point(value)
                given = each.calibration_
                depth = each.calibrator_.depth(given.answers)
                costs.append(each.depth_costs_[depth].mean())
            assert costs[0] <= costs[1] * (1 + 1e-9)
            assert costs[0] <= 100 * (1 + 1e-9)
            saved = operating_curve(cascade, X, y, [value]).flops_reduction[0]
            assert saved == pytest.approx(cascade.cost_reduction(X))


class Uncounted(Columns):
    """Says nothing of its cost."""

    def fit(self, X, y, sample_weight=None):
        super().fit(X, y)
        del self.macs_
        return self


def test_branches_need_costs():
    cascade = CascadeClassifier(
        branch=Uncounted(0),
        final_estimator=Columns(6),
        calibrator=SharedThreshold(0.9),
        branches="auto",
    )
    with pytest.raises(ValueError, match=r"MACs of branch .* cannot be counted"):
        cascade.fit(*rows(200))
    with pytest.raises(ValueError, match="'branches' parameter of CascadeClassifier"):
        cascade.set_params(branches="some").fit(*rows(200))


def test_a_choice_is_kept_by_pickle():
    cascade = cascade_of(SharedThreshold(0.9))
    X, _ = rows(500, seed=1)
    copied = pickle.loads(pickle.dumps(cascade))
    np.testing.assert_array_equal(copied.exit_depth(X), cascade.exit_depth(X))
    np.testing.assert_array_equal(copied.kept_branches_, [False, True])
