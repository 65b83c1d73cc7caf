from itertools import product
from types import SimpleNamespace

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from sk_calex import SurvivorThresholdCalibrator, class_precision, precision_bars
from sk_calex.calibration._thresholds import exits_at, find_thresholds
from tests._reference.calibration import (
    slow_bars,
    slow_class_precision,
    slow_exits,
    slow_thresholds,
    top,
)

# Few distinct values: ties of scores, of classes within a row and of precision with
# the bar are the rule, not the exception. Weights are multiples of 1/4, so that sums
# are exact and no order of summation can excuse a difference.
margins = st.sampled_from([-1.0, -0.25, 0.0, 0.1, 0.25, 0.5, 0.9]) | st.floats(-2, 0.99)
precisions = st.sampled_from([0.0, 0.5, 2 / 3, 0.75, 1.0, float("nan")]) | st.floats(
    0, 1
)
quarters = st.integers(0, 12).map(lambda i: i / 4)
settings = st.fixed_dictionaries(
    {
        "margin_mode": st.sampled_from(["relative", "absolute"]),
        "min_support": st.sampled_from([0, 0.5, 1, 2, 2.25, 5]),
        "rule": st.sampled_from(["smallest", "first_violation"]),
    }
)
# Each class gets 0 to 3 shares of a row's probability.
SHARES = {
    c: [row for row in product(range(4), repeat=c) if any(row)] for c in (2, 3, 4)
}


@st.composite
def problems(draw, weights=quarters, n_classes=None):
    n_classes = n_classes or draw(st.integers(2, 4))
    n = draw(st.integers(1, 24))

    def column(element):
        return draw(st.lists(element, min_size=n, max_size=n))

    rows = np.array(column(st.sampled_from(SHARES[n_classes])), dtype=float)
    weight = np.array(column(weights), dtype=float)
    assume(weight.any())
    reference = st.lists(precisions, min_size=n_classes, max_size=n_classes)
    return SimpleNamespace(
        X=rows / rows.sum(axis=1, keepdims=True),
        y=np.array(column(st.integers(0, n_classes - 1))),
        weight=weight,
        survivors=np.array(column(st.booleans())),
        reference=np.array(draw(reference)),
    )


def fitted(problem, margin, settings, rows=slice(None), survivors=None, weight=None):
    """Calibrate on some rows, of which all survive unless told otherwise."""
    return SurvivorThresholdCalibrator(margin, **settings).fit(
        problem.X[rows],
        problem.y[rows],
        reference_precision=problem.reference,
        survivors=survivors,
        sample_weight=weight,
    )


def assert_same_thresholds(one, other):
    np.testing.assert_array_equal(one.thresholds_, other.thresholds_)
    np.testing.assert_array_equal(one.enabled_, other.enabled_)
    np.testing.assert_array_equal(one.precision_, other.precision_)
    np.testing.assert_array_equal(one.support_, other.support_)


@given(problems(), margins, settings)
def test_thresholds_are_those_of_the_definition(problem, margin, settings):
    found = fitted(
        problem, margin, settings, survivors=problem.survivors, weight=problem.weight
    )

    scores, predicted = top(problem.X)
    bars = slow_bars(problem.reference, margin, settings["margin_mode"])
    slow = slow_thresholds(
        scores,
        predicted,
        problem.y,
        problem.weight,
        problem.survivors,
        bars,
        min_support=settings["min_support"],
        rule=settings["rule"],
    )
    np.testing.assert_array_equal(found.bars_, bars)
    assert found.enabled_.tolist() == [t.enabled for t in slow]
    assert found.support_.tolist() == [t.support for t in slow]
    np.testing.assert_array_equal(found.precision_, [t.precision for t in slow])
    counted = problem.survivors & (problem.weight > 0)
    exits = found.exits(0, problem.X)
    assert exits[counted].tolist() == [
        e
        for e, here in zip(slow_exits(scores, predicted, slow), counted, strict=True)
        if here
    ]
    for threshold, t in zip(found.thresholds_, slow, strict=True):
        assert t.next_below < threshold <= t.lowest
        assert not t.enabled or threshold >= t.lowest - 1.001e-6


@given(problems(), margins, settings)
def test_exiting_calibration_survivors_reach_the_bar(problem, margin, settings):
    found = fitted(
        problem, margin, settings, survivors=problem.survivors, weight=problem.weight
    )

    here = found.exits(0, problem.X) & problem.survivors
    predicted = problem.X.argmax(axis=1)
    support = np.bincount(
        predicted[here], weights=problem.weight[here], minlength=len(found.bars_)
    )
    np.testing.assert_array_equal(support, found.support_)
    assert (support[found.enabled_] >= settings["min_support"]).all()
    assert (support[~found.enabled_] == 0).all()
    if support.any():
        precision = class_precision(
            problem.y[here], predicted[here], len(found.bars_), problem.weight[here]
        )
        assert (precision >= found.bars_)[found.enabled_].all()


@given(problems(), margins, margins, settings)
def test_a_larger_margin_never_raises_a_threshold(problem, one, other, settings):
    small, large = sorted([one, other])
    strict = fitted(problem, small, settings, weight=problem.weight)
    lax = fitted(problem, large, settings, weight=problem.weight)
    assert (lax.bars_ <= strict.bars_).all()
    assert (lax.thresholds_ <= strict.thresholds_).all()
    assert (lax.support_ >= strict.support_).all()


@given(problems(), margins, settings)
def test_the_first_violation_never_lies_below_the_smallest_threshold(
    problem, margin, settings
):
    smallest = fitted(problem, margin, {**settings, "rule": "smallest"})
    first = fitted(problem, margin, {**settings, "rule": "first_violation"})
    assert (first.thresholds_ >= smallest.thresholds_).all()
    assert (first.support_ <= smallest.support_).all()


@given(problems(weights=st.integers(0, 3)), margins, settings)
def test_an_integer_weight_is_a_repetition(problem, margin, settings):
    repeated = np.repeat(np.arange(len(problem.y)), problem.weight.astype(int))
    assert_same_thresholds(
        fitted(problem, margin, settings, weight=problem.weight),
        fitted(problem, margin, settings, rows=repeated),
    )


@given(problems(), margins, settings)
def test_weight_zero_is_absence(problem, margin, settings):
    present = problem.weight > 0
    assert_same_thresholds(
        fitted(problem, margin, settings, weight=problem.weight),
        fitted(problem, margin, settings, present, weight=problem.weight[present]),
    )


@given(problems(), margins, settings)
def test_a_mask_of_survivors_is_the_subset(problem, margin, settings):
    alive = problem.survivors
    assume(problem.weight[alive].any())
    assert_same_thresholds(
        fitted(problem, margin, settings, survivors=alive, weight=problem.weight),
        fitted(problem, margin, settings, alive, weight=problem.weight[alive]),
    )


@given(problems(), margins, settings, st.randoms(use_true_random=False))
def test_the_order_of_the_samples_does_not_matter(problem, margin, settings, random):
    order = np.array(random.sample(range(len(problem.y)), len(problem.y)))
    found = fitted(
        problem, margin, settings, survivors=problem.survivors, weight=problem.weight
    )
    assert_same_thresholds(
        found,
        fitted(
            problem,
            margin,
            settings,
            order,
            survivors=problem.survivors[order],
            weight=problem.weight[order],
        ),
    )
    exits = found.exits(0, problem.X)
    np.testing.assert_array_equal(found.exits(0, problem.X[order]), exits[order])


@given(problems(n_classes=3), problems(n_classes=3), margins, settings)
def test_exits_are_the_samples_at_or_above_their_threshold(
    problem, fresh, margin, settings
):
    found = fitted(problem, margin, settings)
    scores, predicted = top(fresh.X)
    assert found.exits(0, fresh.X).tolist() == [
        bool(s >= found.thresholds_[c]) for s, c in zip(scores, predicted, strict=True)
    ]


@given(problems(), margins, settings)
def test_the_same_samples_exit_in_float32(problem, margin, settings):
    found = fitted(problem, margin, settings)
    np.testing.assert_array_equal(
        found.exits(0, problem.X.astype(np.float32)), found.exits(0, problem.X)
    )


@given(
    problems(), margins, settings, st.integers(0, 2**32 - 1), st.sampled_from([6, 20])
)
def test_noise_in_the_last_bits_flips_no_calibration_sample(
    problem, margin, settings, seed, bits
):
    # Scores lie at least 2**-20, about a hair, apart: noise of 1e-7 is a fifth of that.
    scores = 0.5 + np.round(problem.X.max(axis=1) * 16) * 2.0**-bits
    predicted = problem.X.argmax(axis=1)
    settings = {k: settings[k] for k in ("min_support", "rule")}
    found = find_thresholds(
        scores,
        predicted,
        predicted == problem.y,
        np.ones(len(scores)),
        precision_bars(problem.reference, margin),
        **settings,
    )
    noise = np.random.default_rng(seed).choice([-1e-7, 0, 1e-7], len(scores))
    np.testing.assert_array_equal(
        exits_at(scores + noise, predicted, found.thresholds),
        exits_at(scores, predicted, found.thresholds),
    )


@given(problems())
def test_class_precision_is_that_of_the_definition(problem):
    predicted = problem.X.argmax(axis=1)
    n_classes = problem.X.shape[1]
    np.testing.assert_array_equal(
        class_precision(problem.y, predicted, n_classes, problem.weight),
        slow_class_precision(problem.y, predicted, n_classes, problem.weight),
    )


@given(
    st.lists(precisions, min_size=1, max_size=5),
    margins,
    st.sampled_from(["relative", "absolute"]),
)
def test_bars_are_those_of_the_definition(reference, margin, mode):
    bars = precision_bars(reference, margin, mode)
    np.testing.assert_array_equal(bars, slow_bars(reference, margin, mode))
    assert ((bars >= 0) & (bars <= 1)).all()
    assert (bars[np.isnan(reference)] == 1).all()
