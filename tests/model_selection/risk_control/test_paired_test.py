import numpy as np
import pytest
from scipy.stats import binomtest

from sk_calex import accuracy_drop_bound, paired_drop_p_value
from sk_calex.model_selection._risk_control._paired_test import (
    disagreement_p_value,
    drop_bound,
    drop_p_value,
    fewest_rows,
    nuisance_error_of,
)
from tests._reference.risk import (
    binomial_cdf,
    outcome_grid,
    outcome_probabilities,
    slow_drop_p_value,
    slow_net_cdf,
)


def labels(n, lost, gained):
    """Make labels where so many rows are lost and gained."""
    truth = np.array(["cat"] * n)
    reference, predicted = truth.copy(), truth.copy()
    predicted[:lost] = "dog"
    reference[lost : lost + gained] = "dog"
    predicted[-1], reference[-1] = "ant", "bee"  # both wrong: no difference
    return truth, reference, predicted


@pytest.mark.parametrize("n", [4, 11, 25])
@pytest.mark.parametrize("max_drop", [-0.2, 0.0, 0.05, 0.3])
def test_p_value_is_never_below_the_brute_force_one(n, max_drop):
    for lost, gained in outcome_grid(n)[:: max(1, n // 6)]:
        slow = slow_drop_p_value(lost, gained, n, max_drop, 0.01, steps=15)
        fast = drop_p_value(lost, gained, n, max_drop, 0.01)
        assert fast >= min(1.0, slow) - 1e-9


def test_p_value_equals_the_brute_force_one_where_it_is_exact():
    """Few rows differ, and far fewer are lost than allowed."""
    for lost, gained in [(0, 0), (0, 3), (1, 1), (2, 4)]:
        slow = slow_drop_p_value(lost, gained, 40, 0.15, 0.01)
        assert drop_p_value(lost, gained, 40, 0.15, 0.01) == pytest.approx(slow, 1e-9)


@pytest.mark.parametrize("n", [6, 17, 30])
@pytest.mark.parametrize("error", [0.1, 0.3])
def test_test_keeps_its_size_on_every_null(n, error):
    """By adding up all outcomes: no simulation, no luck."""
    for max_drop in (-0.1, 0.0, 0.05, 0.2, 0.5):
        rejected = [
            outcome
            for outcome in outcome_grid(n)
            if drop_p_value(*outcome, n, max_drop, nuisance_error_of(error)) <= error
        ]
        for share in np.linspace(0.02, 1, 12):
            for drop in (max_drop, max_drop + 0.1, max_drop + 0.4):
                if abs(drop) > share:
                    continue
                probabilities = outcome_probabilities(n, share, drop)
                size = sum(probabilities[outcome] for outcome in rejected)
                assert size <= error + 1e-12


def test_bound_covers_every_truth():
    n, error = 25, 0.1
    bounds = {(a, b): drop_bound(a, b, n, error) for a, b in outcome_grid(n)}
    for share in (0.04, 0.2, 0.5, 0.9):
        for drop in np.linspace(-share, share, 5):
            probabilities = outcome_probabilities(n, share, drop)
            missed = sum(p for o, p in probabilities.items() if bounds[o] < drop)
            assert missed <= error + 1e-12


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (3, 1), (1, 8), (30, 20)])
def test_bound_is_the_smallest_drop_that_is_rejected(lost, gained):
    error = 0.05
    bound = drop_bound(lost, gained, 200, error)
    p_values = [
        drop_p_value(lost, gained, 200, bound + step, nuisance_error_of(error))
        for step in (0.0, 1e-6, -1e-6)
    ]
    assert max(p_values[:2]) <= error < p_values[2]
    assert bound > (lost - gained) / 200


def test_bound_is_negative_where_the_second_classifier_is_better():
    assert -0.2 < drop_bound(0, 40, 200, 0.05) < -0.1


def test_p_value_with_most_rows_differing_is_still_valid():
    """The proof of the exact test stops at one half; Chernoff's bound goes on."""
    for lost, gained in [(10, 12), (5, 20), (11, 11)]:
        exact = max(slow_net_cdf(lost - gained, 24, q, 0.3) for q in (0.31, 0.6, 1.0))
        assert 1 > drop_p_value(lost, gained, 24, 0.3, 0.01) >= exact


def test_labels_are_counted_row_by_row():
    truth, reference, predicted = labels(400, lost=5, gained=3)
    p_value = paired_drop_p_value(
        truth, reference, predicted, max_drop=0.03, nuisance_error=0.002
    )
    assert p_value == drop_p_value(5, 3, 400, 0.03, 0.002)
    bound = accuracy_drop_bound(truth, reference, predicted, confidence_level=0.9)
    assert bound == pytest.approx(drop_bound(5, 3, 400, 0.1))


def test_more_confidence_asks_for_a_larger_bound():
    given = labels(400, lost=5, gained=3)
    bounds = [accuracy_drop_bound(*given, confidence_level=c) for c in (0.5, 0.9, 0.99)]
    assert bounds == sorted(bounds)
    assert len(set(bounds)) == 3


def test_disagreement_is_a_binomial_test():
    for k, n, risk in [(0, 30, 0.1), (4, 100, 0.08), (100, 100, 0.5)]:
        expected = binomtest(k, n, risk, alternative="less").pvalue
        assert disagreement_p_value(k, n, risk) == pytest.approx(expected)
        assert disagreement_p_value(k, n, risk) == pytest.approx(
            binomial_cdf(k, n, risk)
        )


@pytest.mark.parametrize("risk", ["accuracy_drop", "disagreement"])
@pytest.mark.parametrize("max_risk", [0.005, 0.02, 0.3])
def test_fewest_rows_are_enough_and_one_less_is_not(risk, max_risk):
    def p_value(n):
        if risk == "disagreement":
            return disagreement_p_value(0, n, max_risk)
        return drop_p_value(0, 0, n, max_risk, nuisance_error_of(0.1))

    n = fewest_rows(risk, max_risk, 0.1)
    assert p_value(n) <= 0.1 < p_value(n - 1)


def test_a_million_rows_are_tested_like_the_normal_law_says():
    """An independent check of the long sum: the normal approximation, 3 sd out."""
    n, share, drop = 1_000_000, 0.1, 0.01
    net = n * drop - 3 * np.sqrt(n * (share - drop**2))
    lost = int((n * share + net) / 2)
    gained = int(n * share) - lost
    assert drop_p_value(lost, gained, n, drop, 1e-5) == pytest.approx(
        0.00135 + 1e-5, rel=0.1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_pred": ["cat"] * 3}, "inconsistent numbers"),
        ({"confidence_level": 1.0}, "confidence_level"),
        ({"y_true": np.full(10, np.nan)}, "y_true contains NaN"),
    ],
)
def test_bound_refuses_what_it_cannot_use(change, message):
    truth, reference, predicted = labels(10, lost=1, gained=0)
    given = {"y_true": truth, "y_reference": reference, "y_pred": predicted} | change
    with pytest.raises(ValueError, match=message):
        accuracy_drop_bound(**given)


def test_tests_refuse_no_rows_and_impossible_drops():
    with pytest.raises(ValueError, match="0 rows"):
        paired_drop_p_value([], [], [])
    with pytest.raises(ValueError, match="max_drop"):
        paired_drop_p_value([0], [0], [0], max_drop=1.0)
