"""Curves of plain arrays: probabilities of stages, labels and costs."""

import numpy as np
import pytest

from sk_calex import CascadeClassifier, margin_curve, operating_curve
from sk_calex.calibration import StageTable, SurvivorThresholdCalibrator
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
from tests._fixed_cascade import Columns

COSTS = {"stages": [10, 30, 60], "heads": [3, 2], "unit": "ms"}
FIELDS = ("accuracy", "flops_reduction", "depth_share")


def answers(n=200, seed=0, n_classes=3):
    """Probabilities of three stages, better from one to the next, and class codes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    logits = rng.normal(size=(3, n, n_classes))
    for stage, pull in enumerate((1.0, 1.8, 2.6)):
        logits[stage, np.arange(n), y] += pull
    proba = np.exp(logits)
    return proba / proba.sum(axis=2, keepdims=True), y


def slow_curve(proba, y, thresholds, costs, backbone_cost, weight):
    """Accuracy, saving and shares of one threshold on the largest probability."""
    points = []
    for threshold in thresholds:
        right = spent = total = 0.0
        share = np.zeros(len(proba))
        for i in range(len(y)):
            depth = len(proba) - 1
            for stage in range(len(proba) - 1):
                if max(proba[stage][i]) >= threshold:
                    depth = stage
                    break
            answer = int(np.argmax(proba[depth][i]))
            right += weight[i] * (answer == y[i])
            spent += weight[i] * costs[depth]
            share[depth] += weight[i]
            total += weight[i]
        points.append((right / total, 1 - spent / total / backbone_cost, share / total))
    return points


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("backbone_cost", [None, 100.0])
def test_curve_of_arrays_is_that_of_a_loop(weighted, backbone_cost):
    proba, y = answers()
    weight = np.random.default_rng(1).integers(0, 4, len(y)) if weighted else None
    thresholds = [0.4, 0.6, 0.8, np.inf]
    costs = [13.0, 45.0, 105.0]
    curve = operating_curve(
        SharedThreshold(),
        list(proba),
        y,
        iter(thresholds),
        costs=costs,
        backbone_cost=backbone_cost,
        sample_weight=weight,
    )
    expected = slow_curve(
        proba,
        y,
        thresholds,
        costs,
        costs[-1] if backbone_cost is None else backbone_cost,
        np.ones(len(y)) if weight is None else weight,
    )
    np.testing.assert_array_equal(curve.knob_values, thresholds)
    for i, (accuracy, saved, share) in enumerate(expected):
        assert curve.accuracy[i] == pytest.approx(accuracy, abs=1e-12)
        assert curve.flops_reduction[i] == pytest.approx(saved, abs=1e-12)
        np.testing.assert_allclose(curve.depth_share[i], share, atol=1e-12)
    assert len(set(curve.accuracy)) == len(thresholds)
    plain = np.average(proba[-1].argmax(axis=1) == y, weights=weight)
    assert curve.backbone_accuracy == pytest.approx(plain)
    assert curve.cost_name == "cost"


def cascade_of(rule, **params):
    """A fitted cascade whose branches read their probabilities off the columns of X."""
    proba, y = answers(400, seed=2)
    cascade = CascadeClassifier(
        branch=[Columns(0), Columns(3)],
        final_estimator=Columns(6),
        calibrator=rule,
        costs=COSTS,
        cv=0.5,
        random_state=0,
        **params,
    )
    return cascade.fit(np.hstack(proba), y)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (SharedThreshold(), [-np.inf, 0.4, 0.6, np.inf]),
        (SharedThreshold(score="gap"), [0.0, 0.2, 0.5]),
        (EntropyThreshold(), [0.2, 0.8, 1.0]),
        (Patience(), [0, 1, 2]),
        (SurvivorThresholdCalibrator(min_support=3), [-0.2, 0.2]),
        (SurvivorThresholdCalibrator(min_support=3), [(-0.2, 0.2), (0.2, 0.1)]),
        (Quota(), [0.1, 1.0, 10.0]),
        (LearnedGate(), [0.5, 0.8]),
        (RegretPriced(), [0.0, 0.3, 5.0]),
        (OptimalStopping(), [0.0, 0.3, 5.0]),
    ],
    ids=repr,
)
def test_curve_of_arrays_equals_that_of_a_cascade(rule, values):
    """To the last digit: the same answers, the same rows to learn from."""
    cascade = cascade_of(rule)
    proba, y = answers(seed=3)
    whole = operating_curve(cascade, np.hstack(proba), y, values)
    given = cascade.calibration_
    settings = {"costs": COSTS, "calibration": given}
    arrays = operating_curve(cascade.calibrator, proba, y, values, **settings)
    for field in FIELDS:
        np.testing.assert_array_equal(arrays[field], whole[field])
    np.testing.assert_array_equal(arrays.knob_values, whole.knob_values)
    for field in ("backbone_accuracy", "n_samples", "cost_name"):
        assert arrays[field] == whole[field]
    settings["calibration"] = (given.answers, given.labels, given.weight)
    table = StageTable.from_probabilities(proba)
    again = operating_curve(cascade.calibrator, table, y, values, **settings)
    for field in FIELDS:
        np.testing.assert_array_equal(again[field], whole[field])


def test_margins_of_arrays_are_those_of_the_margin_curve():
    cascade = CascadeClassifier(
        branch=[Columns(0), Columns(3)],
        final_estimator=Columns(6),
        costs=COSTS,
        margin=0.1,
        cv=0.5,
        random_state=0,
    )
    train, labels = answers(400, seed=2)
    cascade.fit(np.hstack(train), labels)
    proba, y = answers(seed=3)
    margins = [-0.1, 0.05, 0.3]
    whole = margin_curve(cascade, np.hstack(proba), y, margins=margins)
    rule = SurvivorThresholdCalibrator(margin_mode="local")
    arrays = operating_curve(
        rule, proba, y, margins, calibration=cascade.calibration_, costs=COSTS
    )
    for field in FIELDS:
        np.testing.assert_array_equal(arrays[field], whole[field])
    assert rule.margin == 0.0  # not changed
    assert not hasattr(rule, "thresholds_")


@pytest.mark.parametrize("rule", [SharedThreshold(), EntropyThreshold(), Patience()])
def test_values_that_span_the_curve_are_chosen_where_none_are_given(rule):
    proba, y = answers()
    curve = operating_curve(rule, proba, y, costs=[1, 2, 3])
    assert curve.flops_reduction.max() > 0.3 > curve.flops_reduction.min()
    cascade = cascade_of(rule)
    whole = operating_curve(cascade, np.hstack(proba), y)
    np.testing.assert_array_equal(curve.knob_values, whole.knob_values)


def test_a_rule_of_ones_own_needs_no_cascade():
    class SumOfSignals(ExitPolicy):
        knob = "threshold"
        needs_calibration = False

        def __init__(self, threshold=1.0):
            self.threshold = threshold

        def _fit(self, given):
            self._set_all(given, self.threshold)

        def _scores(self, branch, said):
            return said.confidence + said.gap

    proba, y = answers()
    curve = operating_curve(SumOfSignals(), proba, y, [0.5, 1.5], costs=[1, 2, 3])
    assert curve.flops_reduction[0] > curve.flops_reduction[1]
    with pytest.raises(ValueError, match=r"no values of 'threshold'.*Give them"):
        operating_curve(SumOfSignals(), proba, y, costs=[1, 2, 3])


def test_equal_costs_at_two_depths_are_accepted():
    """Such as those of features that are computed already."""
    proba, y = answers()
    curve = operating_curve(SharedThreshold(), proba, y, [-np.inf], costs=[2, 2, 3])
    assert curve.flops_reduction[0] == pytest.approx(1 / 3)


PROBA, Y = answers(20)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"costs": None}, "costs=None, but the curve of an exit rule needs"),
        ({"costs": [1, 2]}, r"costs=\[1, 2\] must be 3 finite numbers"),
        ({"costs": [1, 3, 2]}, "costs falls from 3 at depth 1 to 2 at depth 2"),
        ({"costs": [1, np.nan, 2]}, "must be 3 finite numbers"),
        ({"costs": [-1, 1, 2]}, "none negative"),
        ({"costs": {"stages": [1, 2, 3]}}, "it needs 'stages' and 'heads'"),
        ({"backbone_cost": 0}, "backbone_cost=0 must be positive"),
        ({"backbone_cost": np.nan}, "backbone_cost=nan must be positive"),
        ({"X": PROBA[0]}, r"probabilities must have shape \(n_stages, n_samples"),
        ({"X": PROBA[:1]}, r"got shape \(1, 20, 3\)"),
        ({"X": [PROBA[0], PROBA[1, :9]]}, r"X must hold one array.*\(9, 3\)"),
        ({"X": np.full_like(PROBA, np.nan)}, r"probabilities\[0\] contains NaN"),
        ({"X": PROBA * 2}, "rows that sum to 1; .* row sums go from 2 to 2"),
        ({"X": np.log(PROBA)}, "must hold probabilities"),
        ({"y": Y[:-1]}, "y must be 20 class codes"),
        ({"y": Y.astype(float)}, "y must be 20 class codes"),
        ({"y": Y + 1}, "y must hold codes from 0 to 2"),
        ({"values": ["auto"]}, "values holds 'auto'"),
        ({"sample_weight": np.ones(3)}, "sample_weight has 3 values"),
        ({"sample_weight": np.zeros(20)}, "sample_weight is zero for all"),
        ({"cascade": Quota()}, "calibration=None, but Quota learns from samples"),
        ({"calibration": PROBA}, "calibration must be .* got ndarray"),
        ({"calibration": (PROBA, Y[:3])}, "y must be 20 class codes"),
        ({"calibration": (PROBA[1:], Y)}, "calibration has 2 stages and 3 classes"),
    ],
)
def test_bad_arrays(changes, message):
    given = {
        "cascade": SharedThreshold(),
        "X": PROBA,
        "y": Y,
        "values": [0.5],
        "costs": [1, 2, 3],
    }
    with pytest.raises(ValueError, match=message):
        operating_curve(**(given | changes))


def test_what_is_neither_a_cascade_nor_a_rule_is_refused():
    with pytest.raises(TypeError, match="a fitted cascade or an exit rule"):
        operating_curve({}, PROBA, Y, [0.5])


def test_a_cascade_has_costs_and_calibration_of_its_own():
    cascade = cascade_of(SharedThreshold())
    for name, value in (("costs", [1, 2, 3]), ("calibration", (PROBA, Y))):
        with pytest.raises(ValueError, match=f"{name} was given, but a cascade has"):
            operating_curve(cascade, np.hstack(PROBA), Y, [0.5], **{name: value})
