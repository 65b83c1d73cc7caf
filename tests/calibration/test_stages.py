from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone

from sk_calex import SurvivorThresholdCalibrator
from sk_calex.calibration import StageTable
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.calibration._thresholds import exits_at
from sk_calex.policies import ClassThresholds, first_exits
from tests._reference.calibration import (
    slow_bars,
    slow_class_precision,
    slow_exits,
    slow_local_thresholds,
    slow_thresholds,
)

MARGINS = [-0.3, 0.0, 0.2, 0.5]
RULES = [
    SurvivorThresholdCalibrator(min_support=2),
    SurvivorThresholdCalibrator(
        margin_mode="absolute", min_support=3, rule="first_violation"
    ),
    SurvivorThresholdCalibrator(min_support=2, calibrate_on="all"),
    SurvivorThresholdCalibrator(margin_mode="local", min_support=2, shrinkage=5),
    SurvivorThresholdCalibrator(
        margin_mode="local", min_support=2, calibrate_on="all", shrinkage=0
    ),
]


def draw(seed, n_branches=3, n=80, n_classes=3):
    """Branches with tied scores that are right more often where they are sure."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(4, 17, (n_branches, n)) / 16
    labels = rng.integers(0, n_classes, n)
    guess = rng.integers(0, n_classes, (n_branches, n))
    answers = StageTable.empty(n_branches + 1, n, n_classes)
    answers.predicted[:-1] = np.where(
        rng.random((n_branches, n)) < scores**2, labels, guess
    )
    # The last class is one that the last stage never predicts.
    last = np.where(rng.random(n) < 0.8, labels, rng.integers(0, n_classes, n))
    answers.predicted[-1] = np.minimum(last, n_classes - 2)
    answers.confidence[:-1], answers.confidence[-1] = scores, 1.0
    return CalibrationSet(answers, labels, rng.integers(0, 4, n) / 2)


def slow_cascade(given, margin, rule):
    """Branch after branch: calibrate on the survivors, then let them exit."""
    answers, n_classes = given.answers, given.answers.n_classes
    reference = slow_class_precision(
        given.labels, answers.predicted[-1], n_classes, given.weight
    )
    last_right = answers.predicted[-1] == given.labels
    left = [True] * len(given.labels)
    found = []
    for k in range(answers.n_stages - 1):
        scores, predicted = answers.confidence[k], answers.predicted[k]
        rows = left if rule.calibrate_on == "survivors" else [True] * len(left)
        if rule.margin_mode == "local":
            here = slow_local_thresholds(
                scores,
                predicted,
                given.labels,
                last_right,
                given.weight,
                rows,
                n_classes,
                margin,
                min_support=rule.min_support,
                shrinkage=rule.shrinkage,
            )
        else:
            here = slow_thresholds(
                scores,
                predicted,
                given.labels,
                given.weight,
                rows,
                slow_bars(reference, margin, rule.margin_mode),
                min_support=rule.min_support,
                rule=rule.rule,
            )
        out = slow_exits(scores, predicted, here)
        left = [alive and not exit_ for alive, exit_ in zip(left, out, strict=True)]
        found.append(here)
    return found


def fit(rule, given, margin):
    """The rule at a margin, fitted on all stages."""
    rule = clone(rule).set_params(margin=margin)
    return rule.fit(given.answers, given.labels, given.weight)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_follow_the_cascade(seed, margin, rule):
    given = draw(seed)
    found = fit(rule, given, margin)
    slow = slow_cascade(given, margin, rule)
    assert len(found.thresholds_) == len(slow) == 3
    for k, expected in enumerate(slow):
        assert found.enabled_[k].tolist() == [t.enabled for t in expected]
        assert found.support_[k].tolist() == [t.support for t in expected]
        np.testing.assert_array_equal(
            found.precision_[k], [t.precision for t in expected]
        )
        scores, predicted = given.answers.confidence[k], given.answers.predicted[k]
        exits = exits_at(scores, predicted, found.thresholds_[k])
        assert exits.tolist() == slow_exits(scores, predicted, expected)


def test_the_draws_tell_survivors_from_all_samples():
    # Without this, the comparison above could not see a survivor mask that is ignored.
    given = draw(0)
    survivors, everyone = (fit(RULES[k], given, 0.2).thresholds_ for k in (0, 2))
    np.testing.assert_array_equal(survivors[0], everyone[0])
    assert not np.array_equal(survivors[1:], everyone[1:])


@pytest.mark.parametrize("margin_mode", ["relative", "absolute", "local"])
@pytest.mark.parametrize("name", ["smallest", "first_violation"])
def test_a_branch_of_a_cascade_is_calibrated_as_a_branch_alone(margin_mode, name):
    given = draw(4, n_classes=2)
    survivors = np.arange(80) % 3 > 0
    rule = SurvivorThresholdCalibrator(
        0.1, margin_mode=margin_mode, min_support=2, rule=name
    )
    # Two classes at 1/2 or above: the confidence fixes the row.
    scores = np.maximum(given.answers.confidence, 0.5 + 1 / 16)
    rows = np.stack([scores, 1 - scores], axis=-1)
    X = np.where(given.answers.predicted[..., None] == 0, rows, rows[..., ::-1])
    given = replace(given, answers=StageTable.from_probabilities(X))
    for branch in range(3):
        found = rule.branch_thresholds(given, branch, survivors, 0.1)
        alone = clone(rule).fit(
            X[branch],
            given.labels,
            reference_precision=given.reference_precision,
            reference_correct=given.right[-1],
            survivors=survivors,
            sample_weight=given.weight,
        )
        np.testing.assert_array_equal(found.thresholds, alone.thresholds_)
        np.testing.assert_array_equal(found.enabled, alone.enabled_)
        np.testing.assert_array_equal(found.precision, alone.precision_)
        np.testing.assert_array_equal(found.support, alone.support_)
        np.testing.assert_array_equal(found.bars, alone.bars_)


def test_thresholds_are_computed_anew_for_each_margin():
    given = draw(1)
    alone = {m: fit(RULES[0], given, m).thresholds_ for m in MARGINS}
    again = {m: fit(RULES[0], given, m).thresholds_ for m in reversed(MARGINS)}
    for margin in MARGINS:
        np.testing.assert_array_equal(alone[margin], again[margin])
    # Only the first branch: behind it the survivors differ from margin to margin.
    first = np.stack([alone[margin][0] for margin in MARGINS])
    assert (first[1:] <= first[:-1]).all()


def test_absent_samples_leave_no_trace():
    given = draw(2)
    present = given.weight > 0
    without = CalibrationSet(
        given.answers.take(present), given.labels[present], given.weight[present]
    )
    for rule in (RULES[0], RULES[2]):
        np.testing.assert_array_equal(
            fit(rule, given, 0.1).thresholds_, fit(rule, without, 0.1).thresholds_
        )


def test_a_class_without_calibration_samples_never_exits():
    given = draw(3)
    absent = given.labels == 2
    assert (given.answers.predicted[:-1] == 2).any()
    for rule in RULES:
        found = fit(rule, replace(given, weight=given.weight * ~absent), 0.5)
        assert (found.thresholds_[:, 2] == np.inf).all()
        assert not found.enabled_[:, 2].any()
        assert np.isnan(found.precision_[:, 2]).all()
        assert (found.support_[:, 2] == 0).all()
        assert found.enabled_[:, :2].any()


@pytest.mark.parametrize(
    "described", ["reference_precision", "reference_correct", "survivors"]
)
def test_what_describes_one_branch_is_refused_for_all_stages(described):
    given = draw(0)
    with pytest.raises(ValueError, match=f"{described} describes one branch"):
        RULES[0].fit(given.answers, given.labels, **{described: [True] * 80})


@pytest.mark.parametrize("seed", range(3))
def test_every_sample_supports_the_threshold_at_which_it_exits(seed):
    given = draw(seed)
    found = fit(RULES[0], given, -0.1)
    depth = found.depth(given.answers)
    for k in range(3):
        assert found.support_[k].sum() == given.weight[depth == k].sum()
    assert (depth < 3).any()
    assert (depth == 3).any()


@pytest.mark.parametrize("seed", range(5))
def test_first_exits_against_a_loop(seed):
    answers = draw(seed, n_branches=4).answers
    rng = np.random.default_rng(seed)
    thresholds = rng.choice([0.5, 0.75, 0.9, np.inf, -np.inf], (4, 3), p=[0.2] * 5)
    slow = []
    for i in range(80):
        depth = 0
        while (
            depth < 4
            and answers.confidence[depth, i]
            < thresholds[depth, answers.predicted[depth, i]]
        ):
            depth += 1
        slow.append(depth)
    assert first_exits(ClassThresholds(thresholds), answers).tolist() == slow
    assert set(slow) > {0, 1}


def test_infinite_thresholds_keep_all_samples_or_none():
    answers = draw(0).answers
    never = first_exits(ClassThresholds(np.full((3, 3), np.inf)), answers)
    always = first_exits(ClassThresholds(np.full((3, 3), -np.inf)), answers)
    assert (never == 3).all()
    assert (always == 0).all()


def test_a_score_at_its_threshold_exits_and_nan_does_not():
    scores = np.array([0.5, 0.5, np.nan])
    exits = exits_at(scores, np.array([0, 1, 2]), np.array([0.5, 0.6, -np.inf]))
    assert exits.tolist() == [True, False, False]
