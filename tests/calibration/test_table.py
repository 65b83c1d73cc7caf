from dataclasses import replace

import numpy as np
import pytest

from sk_calex import SurvivorThresholdCalibrator
from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._table import CalibrationRule, CalibrationTable, exits_at
from sk_calex.policies import ClassThresholds, first_exits
from tests._reference.calibration import (
    slow_bars,
    slow_exits,
    slow_local_thresholds,
    slow_thresholds,
)

MARGINS = [-0.3, 0.0, 0.2, 0.5]
RULES = [
    CalibrationRule(min_support=2),
    CalibrationRule("absolute", 3, "first_violation"),
    CalibrationRule(min_support=2, survivors_only=False),
    CalibrationRule("local", 2, shrinkage=5),
    CalibrationRule("local", 2, survivors_only=False, shrinkage=0),
]


def draw(seed, n_branches=3, n=80, n_classes=3):
    """Branches with tied scores that are right more often where they are sure."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(4, 17, (n_branches, n)) / 16
    labels = rng.integers(0, n_classes, n)
    guess = rng.integers(0, n_classes, (n_branches, n))
    return CalibrationTable(
        scores=scores,
        predicted=np.where(rng.random((n_branches, n)) < scores**2, labels, guess),
        labels=labels,
        weight=rng.integers(0, 4, n) / 2,
        reference=np.append(rng.choice([0.7, 0.8, 0.9], n_classes - 1), np.nan),
        last_correct=rng.random(n) < 0.8,
    )


def slow_cascade(table, margin, rule):
    """Branch after branch: calibrate on who is left, then let them exit."""
    left = [True] * len(table.labels)
    found = []
    for scores, predicted in zip(table.scores, table.predicted, strict=True):
        who = left if rule.survivors_only else [True] * len(left)
        if rule.margin_mode == "local":
            here = slow_local_thresholds(
                scores,
                predicted,
                table.labels,
                table.last_correct,
                table.weight,
                who,
                len(table.reference),
                margin,
                min_support=rule.min_support,
                shrinkage=rule.shrinkage,
            )
        else:
            here = slow_thresholds(
                scores,
                predicted,
                table.labels,
                table.weight,
                who,
                slow_bars(table.reference, margin, rule.margin_mode),
                min_support=rule.min_support,
                rule=rule.rule,
            )
        out = slow_exits(scores, predicted, here)
        left = [alive and not exit_ for alive, exit_ in zip(left, out, strict=True)]
        found.append(here)
    return found


def stacked(found):
    return np.stack([branch.thresholds for branch in found])


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("seed", range(3))
def test_thresholds_follow_the_cascade(seed, margin, rule):
    table = draw(seed)
    found = table.thresholds(margin, rule)
    slow = slow_cascade(table, margin, rule)
    assert len(found) == len(slow) == 3
    for branch, (fast, expected) in enumerate(zip(found, slow, strict=True)):
        assert fast.enabled.tolist() == [t.enabled for t in expected]
        assert fast.support.tolist() == [t.support for t in expected]
        np.testing.assert_array_equal(fast.precision, [t.precision for t in expected])
        exits = exits_at(table.scores[branch], table.predicted[branch], fast.thresholds)
        assert exits.tolist() == slow_exits(
            table.scores[branch], table.predicted[branch], expected
        )


def test_the_draws_tell_survivors_from_everyone():
    # Without this, the comparison above could not see a survivor mask that is ignored.
    table = draw(0)
    survivors = stacked(table.thresholds(0.2, RULES[0]))
    everyone = stacked(table.thresholds(0.2, RULES[2]))
    np.testing.assert_array_equal(survivors[0], everyone[0])
    assert not np.array_equal(survivors[1:], everyone[1:])


@pytest.mark.parametrize("margin_mode", ["relative", "absolute", "local"])
@pytest.mark.parametrize("name", ["smallest", "first_violation"])
def test_a_branch_agrees_with_the_public_calibrator(margin_mode, name):
    table = draw(4, n_classes=2)
    survivors = np.arange(80) % 3 > 0
    rule = CalibrationRule(margin_mode, 2, name)
    # Two classes at 1/2 or above: the confidence fixes the row.
    scores = np.maximum(table.scores, 0.5 + 1 / 16)
    rows = np.stack([scores, 1 - scores], axis=-1)
    X = np.where(table.predicted[..., None] == 0, rows, rows[..., ::-1])
    table = replace(table, scores=scores)
    for branch in range(3):
        found = table.branch_thresholds(branch, survivors, 0.1, rule)
        public = SurvivorThresholdCalibrator(
            0.1, margin_mode=margin_mode, min_support=2, rule=name
        ).fit(
            X[branch],
            table.labels,
            reference_precision=table.reference,
            reference_correct=table.last_correct,
            survivors=survivors,
            sample_weight=table.weight,
        )
        np.testing.assert_array_equal(found.thresholds, public.thresholds_)
        np.testing.assert_array_equal(found.enabled, public.enabled_)
        np.testing.assert_array_equal(found.precision, public.precision_)
        np.testing.assert_array_equal(found.support, public.support_)
        np.testing.assert_array_equal(found.bars, public.bars_)


def test_thresholds_are_computed_anew_for_each_margin():
    table, rule = draw(1), CalibrationRule(min_support=2)
    alone = {margin: stacked(table.thresholds(margin, rule)) for margin in MARGINS}
    again = {m: stacked(table.thresholds(m, rule)) for m in reversed(MARGINS)}
    for margin in MARGINS:
        np.testing.assert_array_equal(alone[margin], again[margin])
    # Only the first branch: behind it the survivors differ from margin to margin.
    first = np.stack([alone[margin][0] for margin in MARGINS])
    assert (first[1:] <= first[:-1]).all()


def test_absent_samples_leave_no_trace():
    table = draw(2)
    present = table.weight > 0
    without = CalibrationTable(
        table.scores[:, present],
        table.predicted[:, present],
        table.labels[present],
        table.weight[present],
        table.reference,
        table.last_correct[present],
    )
    for survivors_only in (True, False):
        rule = CalibrationRule(min_support=2, survivors_only=survivors_only)
        np.testing.assert_array_equal(
            stacked(table.thresholds(0.1, rule)), stacked(without.thresholds(0.1, rule))
        )


def depths(table, thresholds):
    answers = StageTable.empty(len(thresholds) + 1, table.scores.shape[1], 3)
    answers.confidence[:-1], answers.predicted[:-1] = table.scores, table.predicted
    return first_exits(ClassThresholds(thresholds), answers)


@pytest.mark.parametrize("seed", range(3))
def test_every_sample_supports_the_threshold_at_which_it_exits(seed):
    table = draw(seed)
    found = table.thresholds(0.2, CalibrationRule(min_support=2))
    depth = depths(table, stacked(found))
    for k, branch in enumerate(found):
        assert branch.support.sum() == table.weight[depth == k].sum()
    assert (depth < 3).any()
    assert (depth == 3).any()


@pytest.mark.parametrize("seed", range(5))
def test_first_exits_against_a_loop(seed):
    table = draw(seed, n_branches=4)
    rng = np.random.default_rng(seed)
    thresholds = rng.choice([0.5, 0.75, 0.9, np.inf, -np.inf], (4, 3), p=[0.2] * 5)
    slow = []
    for i in range(80):
        depth = 0
        while (
            depth < 4
            and table.scores[depth, i] < thresholds[depth, table.predicted[depth, i]]
        ):
            depth += 1
        slow.append(depth)
    found = depths(table, thresholds)
    assert found.tolist() == slow
    assert set(slow) > {0, 1}


def test_infinite_thresholds_keep_everyone_or_no_one():
    table = draw(0)
    never = depths(table, np.full((3, 3), np.inf))
    always = depths(table, np.full((3, 3), -np.inf))
    assert (never == 3).all()
    assert (always == 0).all()


def test_a_score_at_its_threshold_exits_and_nan_does_not():
    scores = np.array([0.5, 0.5, np.nan])
    exits = exits_at(scores, np.array([0, 1, 2]), np.array([0.5, 0.6, -np.inf]))
    assert exits.tolist() == [True, False, False]
