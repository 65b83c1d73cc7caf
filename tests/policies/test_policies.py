"""What all exit rules share, and the rules of one given number."""

import math

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sk_calex import policies
from sk_calex.calibration import StageAnswer, StageTable, SurvivorThresholdCalibrator
from sk_calex.calibration._thresholds import exits_at
from sk_calex.policies import (
    ClassThresholds,
    EntropyThreshold,
    ExitPolicy,
    LearnedGate,
    OptimalStopping,
    OwnGate,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
    first_exits,
)
from tests._reference.policies import dirichlet, first_where

COSTS = [1.0, 2.0, 3.0, 5.0]
#: One of each rule that can be fitted on probabilities alone.
FITTABLE = [
    SharedThreshold(0.8),
    SharedThreshold(0.5, score="gap"),
    EntropyThreshold(0.4),
    Patience(1),
    SurvivorThresholdCalibrator(0.1, min_support=3),
    Quota(0.7),
    LearnedGate(0.8),
    RegretPriced(0.2),
    OptimalStopping(0.2),
]
EVERY_RULE = pytest.mark.parametrize("rule", FITTABLE, ids=lambda rule: repr(rule))


@pytest.fixture
def proba():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (200, 3)) + 0.25
    return counts / counts.sum(axis=1, keepdims=True)


# -- given thresholds ------------------------------------------------------------------


def test_each_branch_and_class_has_its_own_threshold(proba):
    thresholds = np.array([[0.4, 0.6, np.inf], [0.8, -np.inf, 0.5]])
    policy = ClassThresholds(thresholds)
    for branch in (0, 1):
        slow = []
        for row in proba.tolist():
            predicted = row.index(max(row))
            slow.append(max(row) >= thresholds[branch][predicted])
        exits = policy.exits(branch, StageAnswer(proba))
        assert exits.dtype == bool
        assert exits.tolist() == slow
        assert 0 < sum(slow) < 200
        np.testing.assert_array_equal(
            exits, exits_at(proba.max(axis=1), proba.argmax(axis=1), thresholds[branch])
        )


def test_infinite_thresholds_keep_everyone_or_no_one(proba):
    policy = ClassThresholds(np.array([[np.inf] * 3, [-np.inf] * 3]))
    assert not policy.exits(0, StageAnswer(proba)).any()
    assert policy.exits(1, StageAnswer(proba)).all()


def test_a_score_at_its_threshold_exits():
    proba = np.array([[0.75, 0.25]])
    for threshold, exits in ((0.75, True), (np.nextafter(0.75, 1), False)):
        policy = ClassThresholds(np.array([[threshold, 0.0]]))
        assert policy.exits(0, StageAnswer(proba)).tolist() == [exits]


def test_no_exit_comes_from_nan():
    policy = ClassThresholds(np.full((1, 2), -np.inf))
    proba = np.array([[np.nan, np.nan], [np.nan, 1.0], [0.5, 0.5]])
    assert policy.exits(0, StageAnswer(proba)).tolist() == [False, False, True]


def test_no_samples_no_exits():
    policy = ClassThresholds(np.zeros((1, 2)))
    assert policy.exits(0, StageAnswer(np.empty((0, 2)))).shape == (0,)


def test_first_exits_of_given_thresholds():
    proba, _ = dirichlet()
    tau = np.array([[0.9, 0.8, np.inf], [0.7, 0.95, 0.5], [-np.inf, 0.6, 0.99]])
    slow = [
        [max(row) >= tau[k][row.index(max(row))] for row in proba[k].tolist()]
        for k in range(3)
    ]
    depth = first_exits(ClassThresholds(tau), StageTable.from_probabilities(proba))
    assert depth.dtype == np.intp
    assert depth.tolist() == first_where(slow, 4)
    assert set(depth.tolist()) == {0, 1, 2, 3}


# -- rules of one number, each from the answers of one sample so far ------------------


def top_two(row):
    first, second = sorted(row, reverse=True)[:2]
    return first, second


def entropy(row):
    return -sum(p * math.log(p) for p in row if p > 0)


def confirmed(rows, times):
    """Whether the last answers, `times` + 1 of them, are one class."""
    classes = [row.index(max(row)) for row in rows[-times - 1 :]]
    return len(classes) == times + 1 and len(set(classes)) == 1


@pytest.mark.parametrize(
    ("rule", "may_exit"),
    [
        (SharedThreshold(0.8), lambda rows: max(rows[-1]) >= 0.8),
        (
            SharedThreshold(0.4, score="gap"),
            lambda rows: top_two(rows[-1])[0] - top_two(rows[-1])[1] >= 0.4,
        ),
        (EntropyThreshold(0.6), lambda rows: entropy(rows[-1]) <= 0.6),
        (Patience(0), lambda rows: True),
        (Patience(1), lambda rows: confirmed(rows, 1)),
        (Patience(2), lambda rows: confirmed(rows, 2)),
        (Patience(3), lambda rows: confirmed(rows, 3)),
    ],
    ids=lambda value: repr(value) if isinstance(value, ExitPolicy) else "",
)
@pytest.mark.parametrize("levels", [None, 5])
def test_simple_rules(rule, may_exit, levels):
    proba, y = dirichlet(levels=levels)
    slow = [
        [may_exit(proba[: k + 1, i].tolist()) for i in range(len(y))] for k in range(3)
    ]
    depth = rule.fit(proba, y).depth(proba)
    assert depth.tolist() == first_where(slow, 4)


def test_own_gate():
    proba, y = dirichlet()
    gates = np.random.default_rng(1).integers(5, size=(3, len(y))) / 4
    table = StageTable.from_probabilities(proba)
    for k in range(3):
        table.put(k, slice(None), StageAnswer(proba[k], gate=gates[k]))
    rule = OwnGate(0.75).fit(table, y)
    assert rule.depth(table).tolist() == first_where((gates >= 0.75).tolist(), 4)
    said = StageAnswer(proba[0], gate=gates[0])
    np.testing.assert_array_equal(rule.scores(0, said), gates[0])


def test_own_gate_needs_a_method_that_has_one():
    """Where there is none, in fit already, and never a silent "nobody exits"."""
    proba, y = dirichlet()
    with pytest.raises(ValueError, match=r"OwnGate needs a method.*PTEENetClassifier"):
        OwnGate().fit(proba, y)
    table = StageTable.from_probabilities(proba)
    for k in range(3):
        table.put(k, slice(None), StageAnswer(proba[k], gate=np.ones(len(y))))
    rule = OwnGate().fit(table, y)
    with pytest.raises(ValueError, match="Use SharedThreshold"):
        rule.depth(proba)
    with pytest.raises(ValueError, match="Use SharedThreshold"):
        rule.exits(0, StageAnswer(proba[0]))


@pytest.mark.parametrize(
    ("rule", "never", "always"),
    [
        (SharedThreshold(), np.inf, -np.inf),
        (SharedThreshold(score="gap"), np.inf, -np.inf),
        (EntropyThreshold(), -np.inf, np.inf),
        (Patience(), 10**9, 0),
    ],
)
def test_ends_of_the_knob(rule, never, always):
    proba, y = dirichlet()
    for value, depth in ((never, 3), (always, 0)):
        rule.set_params(**{rule.knob: value})
        assert set(rule.fit(proba, y).depth(proba).tolist()) == {depth}


@pytest.mark.parametrize("rule", FITTABLE[:4], ids=repr)
def test_simple_rules_take_no_statistics(rule):
    proba, y = dirichlet()
    few = clone(rule).fit(proba[:, :2], y[:2], [0, 5])
    np.testing.assert_array_equal(
        few.depth(proba), clone(rule).fit(proba, y).depth(proba)
    )


# -- what all share --------------------------------------------------------------------


@EVERY_RULE
def test_a_rule_is_an_estimator(rule):
    proba, y = dirichlet()
    rule = clone(rule)
    assert rule.knob in rule.get_params()
    before = rule.get_params()
    assert rule.fit(proba, y, costs=COSTS) is rule
    assert rule.get_params() == before
    assert rule.thresholds_.shape == (3, 3)
    assert rule.thresholds_.dtype == np.float64
    copy = clone(rule)
    assert not hasattr(copy, "thresholds_")
    assert copy.get_params() == before
    with pytest.raises(NotFittedError):
        copy.depth(proba)
    with pytest.raises(NotFittedError):
        copy.exits(0, StageAnswer(proba[0]))
    with pytest.raises(NotFittedError):
        copy.scores(0, StageAnswer(proba[0]))


@EVERY_RULE
def test_depth_is_the_first_score_at_its_threshold(rule):
    """Also of new samples, from probabilities and from their table."""
    proba, y = dirichlet()
    new, _ = dirichlet(seed=1)
    rule.fit(proba, y, costs=COSTS)
    said, exits = None, []
    for k in range(3):
        said = StageAnswer(new[k], said)
        tau = rule.thresholds_[k][said.predicted]
        exits.append((rule.scores(k, said) >= tau).tolist())
        assert rule.exits(k, said).tolist() == exits[-1]
    depth = rule.depth(new)
    assert depth.tolist() == first_where(exits, 4)
    table = StageTable.from_probabilities(new)
    np.testing.assert_array_equal(rule.depth(table), depth)
    np.testing.assert_array_equal(first_exits(rule, table), depth)
    assert len(set(depth.tolist())) > 1


@EVERY_RULE
def test_fitting_again_forgets(rule):
    rule.fit(*dirichlet(n_stages=6, seed=3), costs=[1, 2, 3, 4, 5, 6])
    proba, y = dirichlet()
    again = rule.fit(proba, y, costs=COSTS).depth(proba)
    fresh = clone(rule).fit(proba, y, costs=COSTS)
    np.testing.assert_array_equal(again, fresh.depth(proba))
    np.testing.assert_array_equal(rule.thresholds_, fresh.thresholds_)


@EVERY_RULE
def test_the_labels_are_not_seen_again(rule):
    """Depth depends on what the stages say, not on which samples these are."""
    proba, y = dirichlet()
    rule.fit(StageTable.from_probabilities(proba), y, costs=COSTS)
    rows = np.random.default_rng(0).permutation(len(y))[:50]
    np.testing.assert_array_equal(rule.depth(proba[:, rows]), rule.depth(proba)[rows])


def test_a_rule_of_ones_own():
    class FirstClass(ExitPolicy):
        """Answer class 0 early; the number of parameters is nobody's business."""

        knob = "least"

        def __init__(self, least=0.0):
            self.least = least

        def _fit(self, given):
            self._set_all(given, np.inf)
            self.thresholds_[:, 0] = self.least
            self.share_ = np.average(given.right, axis=1, weights=given.weight)

    proba, y = dirichlet()
    rule = FirstClass().fit(proba, y, np.arange(120))
    predicted = proba.argmax(axis=2)
    assert rule.depth(proba).tolist() == first_where((predicted[:3] == 0).tolist(), 4)
    np.testing.assert_allclose(
        rule.share_, (predicted == y) @ np.arange(120) / np.arange(120).sum()
    )
    assert clone(rule).set_params(least=0.5).get_params() == {"least": 0.5}


def test_a_rule_without_a_fit_is_no_rule():
    with pytest.raises(NotImplementedError):
        ExitPolicy().fit(*dirichlet())


def test_every_public_rule_is_tested_here():
    rules = {
        name
        for name in policies.__all__
        if isinstance(getattr(policies, name), type)
        and issubclass(getattr(policies, name), ExitPolicy)
    }
    rules |= {"SurvivorThresholdCalibrator"}  # public in sk_calex.calibration
    assert rules == {type(rule).__name__ for rule in FITTABLE} | {
        "ExitPolicy",
        "OwnGate",
    }


# -- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.arange(119) % 3, r"y must be 120 class codes.*shape \(119,\)"),
        (np.zeros((120, 1), dtype=int), r"shape \(120, 1\)"),
        (np.zeros(120), r"class codes \(int\).*got dtype float64.*searchsorted"),
        (np.array(["a", "b"] * 60), "dtype <U1"),
        (np.array([True, False] * 60), "dtype bool"),
        (np.arange(120) % 4, r"codes from 0 to 2.*goes from 0 to 3"),
        (np.arange(120) % 3 - 1, r"codes from 0 to 2.*goes from -1 to 1"),
    ],
)
def test_bad_codes(codes, message):
    proba, _ = dirichlet()
    with pytest.raises(ValueError, match=message):
        SharedThreshold().fit(proba, codes)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, list])
def test_codes_of_any_whole_kind(kind):
    proba, y = dirichlet()
    expected = Quota().fit(proba, y).thresholds_
    given = y.tolist() if kind is list else y.astype(kind)
    np.testing.assert_array_equal(Quota().fit(proba, given).thresholds_, expected)


@pytest.mark.parametrize(
    "costs",
    [
        [1, 2, 3],
        [[1, 2, 3, 4]],
        [1, 2, 3, np.nan],
        [1, np.inf, 3, 4],
        [-1, 2, 3, 4],
        [0, 0, 0, 0],
    ],
)
def test_bad_costs(costs):
    message = r"costs must be 4 finite numbers.*none negative.*depth_costs_"
    for rule in (RegretPriced(), SharedThreshold()):
        with pytest.raises(ValueError, match=message):
            rule.fit(*dirichlet(), costs=costs)


def test_costs_that_are_missing():
    with pytest.raises(ValueError, match=r"costs=None, but RegretPriced.*depth_costs_"):
        RegretPriced().fit(*dirichlet())


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.zeros(120), "sample_weight is zero for all samples"),
        (-np.ones(120), "Negative values"),
        (np.ones(119), "sample_weight has 119 values, but there are 120 samples"),
        (np.full(120, np.nan), "NaN"),
    ],
)
def test_bad_weights(weight, message):
    with pytest.raises(ValueError, match=message):
        Quota().fit(*dirichlet(), weight)


@EVERY_RULE
def test_answers_of_another_cascade(rule):
    proba, y = dirichlet()
    rule.fit(proba, y, costs=COSTS)
    for other in (proba[1:], dirichlet(n_classes=4)[0]):
        message = r"answers has \d stages and \d classes.*fitted on 4 stages and 3"
        with pytest.raises(ValueError, match=message):
            rule.depth(other)
    with pytest.raises(ValueError, match="last stage at the end"):
        rule.depth(proba[0])


def test_tables_that_are_empty_or_not_filled():
    proba, y = dirichlet()
    none = StageTable.from_probabilities(proba).take(np.empty(0, dtype=np.intp))
    with pytest.raises(ValueError, match="answers holds 0 samples"):
        Quota().fit(none, y[:0])
    assert Quota().fit(proba, y).depth(none).shape == (0,)
    gaps = StageTable.empty(4, 120, 3)
    gaps.put(0, slice(None), StageAnswer(proba[0]))
    with pytest.raises(ValueError, match=r"answers contains NaN.*Fill in every"):
        Quota().fit(gaps, y)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (SharedThreshold("0.5"), "threshold"),
        (SharedThreshold(np.nan), "threshold"),
        (SharedThreshold(score="entropy"), "score"),
        (EntropyThreshold(None), "threshold"),
        (EntropyThreshold(np.nan), "threshold"),
        (Patience(-1), "patience"),
        (Patience(1.0), "patience"),
        (OwnGate(np.nan), "threshold"),
        (SurvivorThresholdCalibrator("0.1"), "margin"),
        (SurvivorThresholdCalibrator(1.0), "margin"),
        (SurvivorThresholdCalibrator(np.nan), "margin"),
        (SurvivorThresholdCalibrator(margin_mode="both"), "margin_mode"),
        (SurvivorThresholdCalibrator(min_support=-1), "min_support"),
        (SurvivorThresholdCalibrator(rule="largest"), "rule"),
        (SurvivorThresholdCalibrator(calibrate_on="none"), "calibrate_on"),
        (Quota(0), "decay"),
        (Quota(np.inf), "decay"),
        (LearnedGate(1.1), "threshold"),
        (LearnedGate(-0.1), "threshold"),
        (RegretPriced(-0.1), "price"),
        (RegretPriced(np.inf), "price"),
    ],
    ids=repr,
)
def test_parameters_out_of_range(rule, name):
    with pytest.raises(
        ValueError, match=rf"'{name}' parameter of|{name}=.* not usable"
    ):
        rule.fit(*dirichlet(), costs=COSTS)
