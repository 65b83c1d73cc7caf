"""Rules whose thresholds come from calibration samples, against plain loops."""

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from sk_calex.calibration import StageAnswer, SurvivorThresholdCalibrator
from sk_calex.calibration._thresholds import just_below
from sk_calex.policies import (
    LearnedGate,
    OptimalStopping,
    Oracle,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from tests._reference.policies import (
    dirichlet,
    repeated,
    slow_precision,
    slow_quota,
    slow_regret,
)

COSTS = [1.0, 2.0, 3.0, 5.0]
WITH_STATISTICS = [
    SurvivorThresholdCalibrator(0.1, min_support=3),
    SurvivorThresholdCalibrator(
        0.0, min_support=3, calibrate_on="all", rule="first_violation"
    ),
    Quota(0.7),
    Quota(1.5),
    LearnedGate(0.8),
    RegretPriced(0.2),
    OptimalStopping(0.2),
]
EVERY_RULE = pytest.mark.parametrize("rule", WITH_STATISTICS, ids=repr)


def shared(rule):
    """The threshold of each branch, where the classes have the same."""
    assert (rule.thresholds_ == rule.thresholds_[:, :1]).all()
    return rule.thresholds_[:, 0]


def all_scores(rule):
    """What a rule compares with its thresholds, of some samples at every branch."""
    stages = dirichlet(seed=9)[0][:3]
    return np.array([rule.scores(k, StageAnswer(p)) for k, p in enumerate(stages)])


# -- weights ---------------------------------------------------------------------------


@EVERY_RULE
@pytest.mark.parametrize("levels", [None, 6])
def test_weight_is_repetition_and_zero_is_absence(rule, levels):
    proba, y = dirichlet(levels=levels)
    weight = np.random.default_rng(2).integers(4, size=len(y))
    weighted = clone(rule).fit(proba, y, weight, costs=COSTS)
    again = clone(rule).fit(*repeated(proba, y, weight), costs=COSTS)
    np.testing.assert_allclose(again.thresholds_, weighted.thresholds_, rtol=1e-9)
    np.testing.assert_array_equal(again.depth(proba), weighted.depth(proba))
    np.testing.assert_allclose(all_scores(again), all_scores(weighted), atol=1e-4)
    there = weight > 0
    present = clone(rule).fit(proba[:, there], y[there], weight[there], costs=COSTS)
    np.testing.assert_allclose(present.thresholds_, weighted.thresholds_, rtol=1e-9)
    plain = clone(rule).fit(proba, y, costs=COSTS)
    moved = np.abs(all_scores(plain) - all_scores(weighted)).max() > 0.01
    assert moved or (plain.depth(proba) != weighted.depth(proba)).any()


@EVERY_RULE
def test_the_order_of_the_samples_does_not_matter(rule):
    proba, y = dirichlet(levels=8)
    weight = np.random.default_rng(3).uniform(size=len(y))
    order = np.random.default_rng(4).permutation(len(y))
    first = clone(rule).fit(proba, y, weight, costs=COSTS)
    other = clone(rule).fit(proba[:, order], y[order], weight[order], costs=COSTS)
    np.testing.assert_allclose(other.thresholds_, first.thresholds_, rtol=1e-6)


# -- a hair below ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("falling", "last", "threshold"),
    [
        ([0.9, 0.8, 0.7], 0, 0.9 - 1e-6),
        ([0.9, 0.8, 0.7], 2, 0.7 - 1e-6),
        ([0.5, 0.5 - 1e-8], 0, 0.5 - 5e-9),
        ([0.5, np.nextafter(0.5, 0)], 0, 0.5),
    ],
)
def test_thresholds_lie_a_hair_below_what_they_admit(falling, last, threshold):
    falling = np.array(falling)
    found = just_below(falling, last)
    assert found == pytest.approx(threshold, rel=1e-12)
    assert found <= falling[last]
    assert (falling >= found).sum() == last + 1


@pytest.mark.parametrize("rule", [Quota(0.7), RegretPriced(0.2)], ids=repr)
def test_rounding_does_not_flip_a_calibration_sample(rule):
    """Such as that of a batch of another size."""
    proba, y = dirichlet()
    depth = rule.fit(proba, y, costs=COSTS).depth(proba)
    noise = 1 + 1e-9 * np.random.default_rng(0).standard_normal(proba.shape)
    np.testing.assert_array_equal(rule.depth(proba * noise), depth)


# -- precision -------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.2])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"margin_mode": "absolute"},
        {"rule": "first_violation"},
        {"calibrate_on": "all"},
        {"min_support": 25},
    ],
    ids=str,
)
def test_precision_thresholds(margin, settings):
    proba, y = dirichlet(levels=12)
    weight = np.random.default_rng(5).integers(3, size=len(y))
    settings = {"min_support": 3} | settings
    rule = SurvivorThresholdCalibrator(margin, **settings).fit(proba, y, weight)
    slow = slow_precision(
        proba,
        y,
        weight,
        margin,
        margin_mode=settings.get("margin_mode", "relative"),
        min_support=settings["min_support"],
        rule=settings.get("rule", "smallest"),
        survivors_only=settings.get("calibrate_on") != "all",
    )
    assert rule.depth(proba).tolist() == slow


# -- quota -----------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.2, 0.7, 1.0, 1.8])
@pytest.mark.parametrize("n", [1, 7, 120])
@pytest.mark.parametrize("levels", [None, 6])
def test_quota(decay, n, levels):
    proba, y = dirichlet(n=n, levels=levels)
    rule = Quota(decay).fit(proba, y)
    np.testing.assert_allclose(shared(rule), slow_quota(proba, decay), rtol=1e-12)


@pytest.mark.parametrize("decay", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("n", [50, 97])
def test_quota_fills_its_places(decay, n):
    """Without ties exactly floor(q_k n) samples exit, while there are any."""
    proba, y = dirichlet(n=n)
    depth = Quota(decay).fit(proba, y).depth(proba)
    shares = decay ** np.arange(4) / (decay ** np.arange(4)).sum()
    places = np.floor(shares * n + 1e-9)
    np.testing.assert_array_equal(np.bincount(depth, minlength=4)[:3], places[:3])


def test_ties_exit_together():
    confidence = np.array([0.9, 0.8, 0.8, 0.8, 0.7, 0.6])
    branch = np.column_stack([confidence, 1 - confidence])
    proba = np.stack([branch, branch, branch])
    rule = Quota(1.0).fit(proba, np.zeros(6, dtype=int))
    # Two places: the second is one of three, and all three exit. Two remain.
    np.testing.assert_array_equal(rule.depth(proba), [0, 0, 0, 0, 1, 1])


def test_weights_below_one_share_the_places():
    """Their scale does not matter: weights often sum to 1."""
    proba, y = dirichlet(n=90)
    rule = Quota(1.0)
    expected = rule.fit(proba, y).thresholds_.copy()
    small = rule.fit(proba, y, np.full(90, 1 / 90)).thresholds_
    np.testing.assert_allclose(small, expected, rtol=1e-12)


def test_a_decay_may_be_extreme():
    proba, y = dirichlet(n_stages=8)
    for decay, depth in ((1e-300, 0), (1e300, 7)):
        assert set(Quota(decay).fit(proba, y).depth(proba).tolist()) == {depth}


# -- learned gates ---------------------------------------------------------------------


def signals(stage):
    first, second = np.sort(stage, axis=1)[:, :-3:-1].T
    logs = np.log(np.where(stage > 0, stage, 1))
    return np.column_stack([first, -(stage * logs).sum(axis=1), first - second])


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.95])
def test_learned_gate(threshold):
    """Each gate is a regression on who reaches it, of whether an exit loses nothing."""
    proba, y = dirichlet(n=300)
    new, _ = dirichlet(n=80, seed=8)
    rule = LearnedGate(threshold).fit(proba, y)
    alive, new_alive = np.arange(300), np.arange(80)
    expected = np.full(80, 3)
    right = proba.argmax(axis=2) == y
    for k in range(3):
        X = signals(proba[k])
        mean, scale = X[alive].mean(axis=0), X[alive].std(axis=0)
        harmless = np.array([right[k, i] or not right[3, i] for i in alive])
        gate = LogisticRegression().fit((X[alive] - mean) / scale, harmless)
        sure = gate.predict_proba((X - mean) / scale)[:, 1] >= threshold
        alive = np.array([i for i in alive if not sure[i]])
        score = gate.predict_proba((signals(new[k]) - mean) / scale)[:, 1]
        np.testing.assert_allclose(
            rule.scores(k, StageAnswer(new[k])), score, rtol=1e-4
        )
        expected[new_alive[score[new_alive] >= threshold]] = k
        new_alive = new_alive[score[new_alive] < threshold]
    np.testing.assert_array_equal(rule.depth(new), expected)
    assert len(rule.gates_) == 3


def outcomes(branch_right, last_right, n=40):
    """Two stages of two classes, right or wrong as told, with varied confidence."""
    confidence = np.random.default_rng(0).uniform(0.55, 0.95, n)

    def stage(right):
        true = np.where(np.broadcast_to(right, n), confidence, 1 - confidence)
        return np.column_stack([true, 1 - true])

    return np.stack([stage(branch_right), stage(last_right)]), np.zeros(n, dtype=int)


@pytest.mark.parametrize(
    ("branch", "last"), [(True, True), (True, False), (False,) * 2]
)
def test_where_no_exit_loses_all_exit(branch, last):
    rule = LearnedGate(1.0).fit(*outcomes(branch, last))
    assert rule.gates_ == [None]
    assert (rule.depth(outcomes(False, True)[0]) == 0).all()


def test_where_every_exit_loses_nobody_exits():
    rule = LearnedGate(0.0).fit(*outcomes(False, True))
    assert rule.gates_ == [None]
    assert (rule.depth(outcomes(True, False)[0]) == 1).all()


def test_a_gate_that_nobody_reaches():
    """Everybody left at the first branch; later ones let nobody out."""
    proba, y = outcomes(True, True)
    rule = LearnedGate(0.5).fit(np.stack([proba[0], proba[0], proba[1]]), y)
    assert rule.gates_ == [None, None]
    np.testing.assert_array_equal(rule.thresholds_, [[-np.inf] * 2, [np.inf] * 2])
    assert not rule.exits(1, StageAnswer(proba[0])).any()


def test_a_gate_learns_from_those_who_reach_it_with_weight():
    """Samples of weight 0 that would lose do not make a gate."""
    proba, y = outcomes(np.arange(40) >= 10, True)
    weight = (np.arange(40) >= 10).astype(float)
    assert LearnedGate().fit(proba, y, weight).gates_ == [None]
    assert LearnedGate().fit(proba, y).gates_ != [None]


# -- price -----------------------------------------------------------------------------


@pytest.mark.parametrize("price", [0.0, 0.05, 0.3, 2.0])
@pytest.mark.parametrize("levels", [None, 6])
def test_regret_takes_the_best_prefix(price, levels):
    proba, y = dirichlet(levels=levels)
    weight = np.random.default_rng(6).integers(3, size=len(y))
    rule = RegretPriced(price).fit(proba, y, weight, costs=COSTS)
    slow = slow_regret(proba, y, weight, COSTS, price)
    np.testing.assert_allclose(shared(rule), slow, rtol=1e-12)


def test_a_price_of_nothing_gives_up_nothing():
    """On its own calibration samples no answer is lost, one by one in sum."""
    proba, y = dirichlet()
    right = proba.argmax(axis=2) == y
    depth = RegretPriced(0.0).fit(proba, y, costs=COSTS).depth(proba)
    assert right[depth, np.arange(len(y))].mean() >= right[-1].mean()


def test_a_high_price_sends_everyone_out_at_once():
    proba, y = dirichlet()
    rule = RegretPriced(1e6).fit(proba, y, costs=COSTS)
    assert (rule.depth(proba) == 0).all()
    # Nobody is left to say anything of the later branches.
    np.testing.assert_array_equal(shared(rule)[1:], [np.inf, np.inf])


def test_a_branch_that_saves_nothing_is_worth_its_gains_only():
    proba, y = outcomes(False, True)
    assert (
        RegretPriced(10).fit(proba, y, costs=[2, 2]).depth(proba).tolist() == [1] * 40
    )
    assert (
        RegretPriced(10).fit(proba, y, costs=[0, 2]).depth(proba).tolist() == [0] * 40
    )


def test_the_unit_of_the_costs_does_not_matter():
    proba, y = dirichlet()
    small = RegretPriced().fit(proba, y, costs=COSTS).thresholds_
    large = RegretPriced().fit(proba, y, costs=np.array(COSTS) * 1e9).thresholds_
    np.testing.assert_array_equal(small, large)


# -- oracle ----------------------------------------------------------------------------


def test_oracle_exits_where_somebody_is_first_right():
    proba, y = dirichlet()
    slow = []
    for i, truth in enumerate(y):
        right = [k for k in range(4) if proba[k, i].argmax() == truth]
        slow.append(right[0] if right else 0)
    depth = Oracle().depth(proba, y)
    assert depth.tolist() == slow
    assert set(slow) == {0, 1, 2, 3}


def test_oracle_wants_codes():
    proba, y = dirichlet()
    with pytest.raises(ValueError, match="y must be 120 class codes"):
        Oracle().depth(proba, y[:-1])
    with pytest.raises(ValueError, match="y must hold codes from 0 to 2"):
        Oracle().depth(proba, y + 1)


@pytest.mark.parametrize("seed", range(5))
def test_no_rule_is_right_more_often_than_the_oracle(seed):
    proba, y = dirichlet(seed=seed)
    right, every = proba.argmax(axis=2) == y, np.arange(len(y))
    best = right[Oracle().depth(proba, y), every].mean()
    for rule in [*WITH_STATISTICS, SharedThreshold(0.7)]:
        depth = rule.fit(proba, y, costs=COSTS).depth(proba)
        assert right[depth, every].mean() <= best


def test_a_learned_gate_needs_no_routing_of_its_weights():
    proba, y = dirichlet()
    weight = 1.0 + np.arange(len(y)) % 3
    expected = LearnedGate(0.8).fit(proba, y, sample_weight=weight)
    with config_context(enable_metadata_routing=True):
        routed = LearnedGate(0.8).fit(proba, y, sample_weight=weight)
    for a, b in zip(routed.gates_, expected.gates_, strict=True):
        np.testing.assert_array_equal(a[-1].coef_, b[-1].coef_)
