"""The laxest value of a knob that loses little, against plain loops."""

import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from sk_calex.calibration import (
    CalibrationWarning,
    StageTable,
    SurvivorThresholdCalibrator,
)
from sk_calex.calibration._cross_fit import deal_weights, find_laxest
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.policies import (
    EntropyThreshold,
    ExitPolicy,
    LearnedGate,
    OptimalStopping,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from tests._reference.cross_fit import slow_dealing, slow_drop, slow_standard_error
from tests._reference.policies import dirichlet, repeated

COSTS = np.array([1.0, 2.0, 3.0, 5.0])
RULES = [
    SurvivorThresholdCalibrator("auto", margin_mode="local", min_support=3),
    SurvivorThresholdCalibrator("auto", min_support=3),
    SharedThreshold("auto"),
    SharedThreshold("auto", score="gap"),
    EntropyThreshold("auto"),
    Patience("auto"),
    Quota("auto"),
    LearnedGate("auto"),
    RegretPriced("auto"),
    OptimalStopping("auto"),
]
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=repr)


def rows(n, **params):
    """A calibration set of well-trained stages, and its probabilities and labels."""
    proba, y = dirichlet(n=n, **params)
    given = CalibrationSet(StageTable.from_probabilities(proba), y, np.ones(n), COSTS)
    return proba, y, given


def weights(n, seed=1):
    return np.random.default_rng(seed).integers(0, 4, size=n).astype(float)


# -- folds -----------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [None, 4])
def test_rows_are_dealt_in_turn(levels):
    proba, y, given = rows(83, levels=levels)
    held = deal_weights(given)
    if levels is None:
        np.testing.assert_array_equal(held.argmax(axis=0), slow_dealing(proba, y))
    np.testing.assert_array_equal(held.sum(axis=0), 1)
    np.testing.assert_array_equal(held.sum(axis=1), [17, 17, 17, 16, 16])


def test_each_fold_has_its_share_of_each_class():
    _, y, given = rows(400)
    of_class = deal_weights(given) @ np.eye(3)[y]
    expected = np.bincount(y) / 5
    assert np.abs(of_class - expected).max() <= 1


@settings(max_examples=30)
@given(st.integers(0, 2**16), st.sampled_from([0.5, 1.0, 2.0]))
def test_weights_are_dealt_as_copies_are(seed, unit):
    proba, y, given = rows(40)
    weight = weights(40, seed)
    if not weight.any():
        return
    table = given.answers
    held = deal_weights(CalibrationSet(table, y, weight * unit))
    np.testing.assert_allclose(held.sum(axis=0), weight * unit)
    copies, labels = repeated(proba, y, weight)
    ones = np.ones(len(labels))
    split = CalibrationSet(StageTable.from_probabilities(copies), labels, ones)
    if unit == 1:
        of_copies = deal_weights(split)
        index = np.repeat(np.arange(40), weight.astype(int))
        joined = np.stack([np.bincount(index, part, 40) for part in of_copies])
        np.testing.assert_allclose(held, joined)


def test_a_class_with_one_row_is_dealt_too():
    proba, y, _ = rows(30)
    y = np.where(np.arange(30) == 7, 2, np.minimum(y, 1))
    given = CalibrationSet(StageTable.from_probabilities(proba), y, np.ones(30))
    assert (deal_weights(given)[:, 7] == 1).sum() == 1


# -- what is measured ------------------------------------------------------------------


@EVERY_RULE
def test_losses_are_those_of_plain_loops(rule):
    proba, y, _ = rows(120)
    weight = weights(120)
    fitted = clone(rule).set_params(max_accuracy_drop=0.1)
    fitted.fit(proba, y, weight, costs=COSTS)
    table = getattr(fitted, f"{rule.knob}_path_")
    n = weight.sum()
    few = range(0, len(table["within"]), 3)
    assert len(table["within"]) >= 3
    for i in few:
        value = table[rule.knob][i]
        value = int(value) if isinstance(rule, Patience) else value
        lost, gained, exits, cost = slow_drop(rule, value, proba, y, weight, COSTS)
        found = [table[name][i] for name in ("n_lost", "n_gained")]
        np.testing.assert_allclose(found, [lost, gained], atol=1e-9)
        np.testing.assert_allclose(table["exit_share"][i], exits)
        np.testing.assert_allclose(table["mean_cost"][i], cost)
        error = slow_standard_error(lost, gained, n)
        np.testing.assert_allclose(table["standard_error"][i], error)
        drop = (lost - gained) / n
        np.testing.assert_allclose(table["accuracy_drop"][i], drop, atol=1e-12)
        assert table["within"][i] == (drop + error <= 0.1 + 1e-9)


@EVERY_RULE
def test_the_laxest_that_keeps_the_accuracy_is_taken(rule):
    proba, y, _ = rows(600)
    fitted = clone(rule).set_params(max_accuracy_drop=0.02)
    fitted.fit(proba, y, costs=COSTS)
    table = getattr(fitted, f"{rule.knob}_path_")
    value = getattr(fitted, f"{rule.knob}_")
    kept = table["within"] & (table["exit_share"] > 0)
    assert kept.any()
    chosen = np.flatnonzero(table[rule.knob] == value)[0]
    assert kept[chosen]
    assert table["mean_cost"][chosen] == table["mean_cost"][kept].min()
    # And it is fitted there, on all rows.
    value = int(value) if isinstance(rule, Patience) else value
    there = clone(rule).set_params(**{rule.knob: value}).fit(proba, y, costs=COSTS)
    np.testing.assert_array_equal(fitted.thresholds_, there.thresholds_)
    np.testing.assert_array_equal(fitted.depth(proba), there.depth(proba))
    assert getattr(there, f"{rule.knob}_") == value
    assert not hasattr(there, f"{rule.knob}_path_")


@EVERY_RULE
def test_a_larger_drop_never_saves_less(rule):
    proba, y, _ = rows(200)
    costs = []
    for drop in (0.02, 0.3):
        fitted = clone(rule).set_params(max_accuracy_drop=drop)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            fitted.fit(proba, y, costs=COSTS)
        costs.append(COSTS[fitted.depth(proba)].mean())
    assert costs[-1] < costs[0]
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("rule", RULES[:-3], ids=repr)
def test_copies_count_as_weights_do(rule):
    proba, y, _ = rows(100)
    weight = weights(100)
    rule = clone(rule).set_params(max_accuracy_drop=0.1)
    weighted = clone(rule).fit(proba, y, weight, costs=COSTS)
    copied = clone(rule).fit(*repeated(proba, y, weight), costs=COSTS)
    one, two = (getattr(r, f"{rule.knob}_") for r in (weighted, copied))
    if isinstance(rule, SharedThreshold | EntropyThreshold):
        # Their values are quantiles of the rows, which weights do not move.
        assert abs(one - two) < 0.1
    else:
        np.testing.assert_allclose(one, two)


def test_the_order_of_the_rows_does_not_matter():
    proba, y, _ = rows(200)
    order = np.random.default_rng(0).permutation(200)
    rule = SurvivorThresholdCalibrator("auto", margin_mode="local", min_support=3)
    rule.set_params(max_accuracy_drop=0.05)
    one = clone(rule).fit(proba, y)
    two = clone(rule).fit(proba[:, order], y[order])
    assert one.margin_ == two.margin_
    np.testing.assert_allclose(one.thresholds_, two.thresholds_)


def test_the_reference_is_the_last_stage_by_itself():
    """An ensemble that gains on it may spend what it gains."""
    proba, y, given = rows(400)
    worse = np.where(np.arange(400) % 4 == 0, (y + 1) % 3, y)
    alone = CalibrationSet(given.answers, y, given.weight, COSTS, reference=worse)
    rule = SharedThreshold("auto").fit_on(alone)
    share = (given.answers.predicted[-1] == y).mean() - (worse == y).mean()
    never = rule.threshold_path_["mean_cost"].argmax()
    gained = -rule.threshold_path_["accuracy_drop"][never]
    np.testing.assert_allclose(gained, share, atol=0.02)
    strict = SharedThreshold("auto").fit(proba, y, costs=COSTS)
    assert rule.threshold_ < strict.threshold_


# -- where nothing qualifies -----------------------------------------------------------


@EVERY_RULE
def test_nothing_exits_where_rows_are_too_few_to_tell(rule):
    proba, _, _ = rows(60)
    y = proba[-1].argmax(axis=1)  # nothing to be gained
    message = (
        rf"{rule.knob}='auto' lets no sample exit: on 60 calibration rows no value "
        rf"of {rule.knob} keeps within max_accuracy_drop=0.005; the nearest, .*, "
        r"loses .* with a standard error of .* One row is 0.017 of accuracy, so "
        r"that no fewer than 200 rows could show it\. Calibrate on more rows \(cv\)"
    )
    with pytest.warns(CalibrationWarning, match=message) as caught:
        fitted = clone(rule).fit(proba, y, costs=COSTS)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert np.isnan(getattr(fitted, f"{rule.knob}_"))
    assert (fitted.thresholds_ == np.inf).all()
    assert (fitted.depth(proba) == 3).all()


def test_what_a_disabled_calibrator_says_of_its_classes():
    proba, _, _ = rows(60)
    y = proba[-1].argmax(axis=1)
    with pytest.warns(CalibrationWarning):
        fitted = SurvivorThresholdCalibrator("auto", min_support=1).fit(proba, y)
    assert not fitted.enabled_.any()
    assert np.isnan(fitted.precision_).all()
    assert (fitted.support_ == 0).all()


def test_perfect_rows_without_enough_of_them_show_nothing():
    """No difference on few rows is no proof: one more may differ."""
    sure = np.repeat(np.eye(2)[[0, 1]] * 0.9 + 0.05, 50, axis=0)
    y = np.repeat([0, 1], 50)
    with pytest.warns(CalibrationWarning):
        SharedThreshold("auto").fit([sure, sure], y)
    rule = SharedThreshold("auto", max_accuracy_drop=0.01).fit([sure, sure], y)
    assert (rule.depth([sure, sure]) == 0).all()


def test_a_single_row_can_be_neither_fitted_nor_judged():
    rule = SharedThreshold("auto", max_accuracy_drop=0.9)
    with pytest.warns(CalibrationWarning, match="on 1 calibration rows"):
        rule.fit([[[0.9, 0.1]], [[0.8, 0.2]]], [0])
    assert len(rule.threshold_path_["within"]) == 0


@pytest.mark.parametrize("drop", [-0.1, 1.0, "auto"])
def test_a_drop_is_a_share(drop):
    proba, y, _ = rows(30)
    with pytest.raises(ValueError, match="max_accuracy_drop"):
        SharedThreshold("auto", max_accuracy_drop=drop).fit(proba, y)


def test_one_branch_alone_has_nothing_to_lose_against():
    proba, y, _ = rows(30)
    with pytest.raises(ValueError, match="margin='auto' judges what the whole casc"):
        SurvivorThresholdCalibrator("auto").fit(proba[0], y)


# -- rules of one's own ----------------------------------------------------------------


class Gap(ExitPolicy):
    knob = "least"

    def __init__(self, least=0.5):
        self.least = least

    def _fit(self, given):
        self._set_all(given, self.least)

    def _scores(self, branch, said):
        return said.gap


class GapWithValues(Gap):
    def _knob_values(self, given):
        return [1.0, 0.9, 0.8, 0.6, 0.4, 0.2, 0.0]


def test_a_rule_of_ones_own_says_what_to_try():
    proba, y, _ = rows(300)
    with pytest.raises(ValueError, match="least='auto' of Gap needs values to try"):
        Gap("auto").fit(proba, y)
    rule = GapWithValues("auto")
    rule.max_accuracy_drop = 0.05
    rule.fit(proba, y)
    assert rule.least_ in rule._knob_values(None)
    np.testing.assert_array_equal(rule.thresholds_, rule.least_)


# -- the search ------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(1, 60))
def test_the_last_value_before_a_single_step_is_found(step, n_values):
    """Losses that set in at one value: the search finds the value before it."""
    _, _, given = rows(60)

    class Fixed:
        def __init__(self, value):
            self.value = value

        def exits(self, branch, said):
            n = len(said.predicted)
            if self.value < step:  # exits only where nothing is lost
                return np.zeros(n, dtype=bool)
            return np.ones(n, dtype=bool)

    path = find_laxest(
        lambda value, part: Fixed(value), list(range(n_values)), given, 0.0
    )
    tried = [p.value for p in path.judged]
    assert tried == sorted(tried)
    if step < n_values:
        assert {step, max(step - 1, 0)} <= set(tried)


def test_the_number_of_fits_is_small():
    _, _, given = rows(200)
    fits = []

    def fit_at(value, part):
        fits.append(value)
        return SharedThreshold(value).fit_on(part)

    find_laxest(fit_at, np.linspace(1, 0.3, 65).tolist(), given, 0.05)
    assert len(fits) <= 5 * (9 + 3)


def test_partial_functions_serve_as_fits():
    _, _, given = rows(200)
    rule = SharedThreshold("auto")
    path = find_laxest(partial(rule._fitted_at), [0.99, 0.7, 0.4], given, 0.05)
    assert [p.value for p in path.judged] == [0.99, 0.7, 0.4]
