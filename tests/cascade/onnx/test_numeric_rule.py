"""Rules as numbers decide as the rules do, to the last bit that matters."""

import json

import numpy as np
import pytest

from sk_calex import SurvivorThresholdCalibrator
from sk_calex.calibration import StageAnswer, StageTable
from sk_calex.cascade._onnx._export import _rule_to_json
from sk_calex.cascade._onnx._numeric_rule import NumericRule
from sk_calex.policies import (
    EntropyThreshold,
    ExitPolicy,
    LearnedGate,
    OptimalStopping,
    OwnGate,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)

N_STAGES, N_CLASSES = 4, 3
COSTS = np.arange(1.0, N_STAGES + 1)


def answers(n, seed):
    """Probabilities, ties and certainty among them, and a gate."""
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet([0.5] * N_CLASSES, size=(N_STAGES, n))
    proba[:, ::10] = np.round(proba[:, ::10] * 4) / 4
    proba[:, ::10, -1] = 1 - proba[:, ::10, :-1].sum(axis=2)
    proba = proba.clip(0)
    said, before = [], None
    for k in range(N_STAGES):
        before = StageAnswer(proba[k], before, gate=rng.random(n))
        said.append(before)
    return said


def table_of(said):
    table = StageTable.empty(N_STAGES, len(said[0].proba), N_CLASSES)
    for k, answer in enumerate(said):
        table.put(k, slice(None), answer)
    return table


class OnConfidence(ExitPolicy):
    """A user's rule, which finds thresholds in a way of its own."""

    knob = "level"

    def __init__(self, level=0.7):
        self.level = level

    def _fit(self, given):
        self._set_all(given, self.level)


class OnSums(OnConfidence):
    """A user's rule with scores of its own."""

    def _scores(self, branch, said):
        return said.confidence + said.gap


@pytest.mark.parametrize(
    "rule",
    [
        SurvivorThresholdCalibrator(margin=0.1, margin_mode="local", min_support=2),
        SharedThreshold(0.6),
        SharedThreshold(0.25, score="gap"),
        SharedThreshold(np.inf),
        EntropyThreshold(0.5),
        Patience(1),
        OwnGate(0.4),
        Quota(0.7),
        RegretPriced(0.2),
        LearnedGate(0.6),
        OptimalStopping(0.2),
        OnConfidence(),
    ],
    ids=repr,
)
def test_rule_as_numbers_decides_as_the_rule(rule):
    said = answers(300, seed=0)
    truth = np.random.default_rng(1).integers(N_CLASSES, size=300)
    rule.fit(table_of(said), truth, costs=COSTS)
    text = json.dumps(_rule_to_json(rule), allow_nan=False)
    found = NumericRule.from_json(json.loads(text), N_STAGES - 1, N_CLASSES)
    for given in (said, answers(300, seed=2)):
        for k in range(N_STAGES - 1):
            # A regression may be off by rounding: nothing may lie that near.
            distance = np.abs(
                rule.scores(k, given[k]) - rule.thresholds_[k][given[k].predicted]
            )
            far = ~(distance < 1e-12) | (distance == 0)
            np.testing.assert_array_equal(
                found.exits(k, given[k])[far], rule.exits(k, given[k])[far]
            )
            assert far.mean() > 0.9


def test_branch_without_a_regression_never_exits():
    said = answers(50, seed=0)
    table, right = table_of(said), answers(50, seed=0)[0].predicted
    rule = LearnedGate(0.5).fit(table, right)
    rule.gates_[0], rule.thresholds_[0] = None, 0.5
    found = NumericRule.from_json(_rule_to_json(rule), N_STAGES - 1, N_CLASSES)
    assert not found.exits(0, said[0]).any()


def test_rule_with_scores_of_its_own_is_refused_by_name():
    said = answers(30, seed=0)
    rule = OnSums().fit(table_of(said), np.zeros(30, dtype=int))
    with pytest.raises(TypeError, match=r"OnSums\(.*set_calibrator"):
        _rule_to_json(rule)
