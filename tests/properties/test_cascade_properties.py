"""Whatever the thresholds, the order, the batches: what always holds of a cascade."""

from functools import cache

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit
from sklearn.naive_bayes import GaussianNB

from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

TEST, _ = images(40, seed=7)

# Confidences of three classes lie in [1/3, 1]; none lies on such a threshold.
levels = st.sampled_from([-np.inf, np.inf]) | st.floats(0.34, 0.999)
thresholds = st.lists(levels, min_size=6, max_size=6).map(
    lambda values: np.array(values).reshape(2, 3)
)


@cache
def fitted():
    """The same cascade on images and on features, and the test images' features."""
    X, y = images(150)
    backbone = tiny_backbone().fit(X)
    common = {"branch": small_branch(), "min_support": 3, "random_state": 0}
    staged = flat_cascade(backbone, **common).fit(X, y)
    cached = flat_cascade(input="features", **common)
    return staged, cached.fit(backbone.transform(X), y), backbone.transform(TEST)


@settings(max_examples=25)
@given(tau=thresholds, size=st.integers(1, 50))
def test_staged_is_vectorised_at_any_thresholds(tau, size):
    staged, cached, features = fitted()
    staged.calibrator_.thresholds_ = cached.calibrator_.thresholds_ = tau
    staged.backbone_.batch_size = size
    labels, depth = staged.predict(TEST, return_depth=True)
    expected, expected_depth = cached.predict(features, return_depth=True)
    np.testing.assert_array_equal(depth, expected_depth)
    np.testing.assert_array_equal(labels, expected)


@settings(max_examples=25)
@given(tau=thresholds)
def test_depth_follows_the_gate(tau):
    """Who exits reaches the threshold of what was predicted; who goes on does not."""
    _, cached, features = fitted()
    cached.calibrator_.thresholds_ = tau
    proba, depth = cached.predict_proba(features), cached.exit_depth(features)
    for k, branch in enumerate(cached.branches_):
        said = branch.predict_proba(cached.layout_.block(features, k))
        gate = said.max(axis=1) >= tau[k][said.argmax(axis=1)]
        assert gate[depth == k].all()
        assert not gate[depth > k].any()
        np.testing.assert_allclose(proba[depth == k], said[depth == k], rtol=1e-5)


@settings(max_examples=25)
@given(tau=thresholds, other=thresholds)
def test_lower_thresholds_never_send_anyone_further(tau, other):
    _, cached, features = fitted()
    cached.calibrator_.thresholds_ = tau
    depth = cached.exit_depth(features)
    cached.calibrator_.thresholds_ = np.minimum(tau, other)
    # It may cost more: heads run that rested before.
    assert (cached.exit_depth(features) <= depth).all()


@settings(max_examples=12)
@given(
    tau=thresholds,
    rows=st.lists(st.integers(0, 39), min_size=1, max_size=60),
    size=st.integers(1, 50),
)
def test_a_sample_is_answered_alike_in_any_company(tau, rows, size):
    """Rows picked, repeated and reordered, in batches of any size."""
    staged, cached, features = fitted()
    staged.calibrator_.thresholds_ = cached.calibrator_.thresholds_ = tau
    staged.backbone_.batch_size = 256
    for cascade, given_ in ((staged, TEST), (cached, features)):
        labels, depth = cascade.predict(given_, return_depth=True)
        staged.backbone_.batch_size = size
        some, some_depth = cascade.predict(given_[rows], return_depth=True)
        np.testing.assert_array_equal(some, labels[rows])
        np.testing.assert_array_equal(some_depth, depth[rows])


@given(depth=st.lists(st.integers(0, 2), min_size=1, max_size=20))
def test_cost_rises_with_depth_and_heads_are_paid_for(depth):
    _, cached, _ = fitted()
    cached.calibrator_.thresholds_ = np.full((2, 3), 0.6)  # samples may exit anywhere
    costs = cached.depth_costs_
    assert (np.diff(costs) > 0).all()
    plain = sum(cached.layout_.stage_macs)
    heads = sum(branch.macs_ for branch in cached.branches_)
    assert costs[-1] == plain + heads
    reduction = 1 - costs[depth].mean() / plain
    assert -heads / plain <= reduction + 1e-12 < 1


# -- fits ------------------------------------------------------------------------------

problems = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "n": st.integers(60, 120),
        "n_classes": st.integers(2, 4),
        "spread": st.sampled_from([0.5, 1.0, 2.0]),
    }
)
choices = st.fixed_dictionaries(
    {
        "alignment": st.sampled_from(["soft", "hard", "none"]),
        "alignment_bandwidth": st.sampled_from([0.0, 0.05, 0.5]),
        "alignment_mixture": st.sampled_from([0.0, 0.5, 1.0]),
        "alignment_margin": st.sampled_from([-0.2, 0.0, 0.3, "same"]),
        "targets": st.sampled_from(["soft", "argmax", "labels"]),
        "calibrate_on": st.sampled_from(["survivors", "all"]),
        "margin_mode": st.sampled_from(["relative", "absolute"]),
        "rule": st.sampled_from(["smallest", "first_violation"]),
        "min_support": st.sampled_from([0, 1, 5, 20]),
        "margin": st.sampled_from([-0.5, 0.0, 0.1, 0.6]),
    }
)


def data(seed, n, n_classes, spread):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    X = rng.standard_normal((n_classes, 5))[y] + spread * rng.standard_normal((n, 5))
    held = np.where(np.arange(n) // n_classes % 2, -1, 0)
    return X, y, held


def bars_of(cascade):
    reference = cascade.reference_precision_
    if cascade.calibrator.margin_mode == "relative":
        bars = (1 - cascade.margin) * reference
    else:
        bars = reference - cascade.margin
    return np.where(np.isnan(bars), 1, bars.clip(0, 1))


@settings(max_examples=25)
@given(problem=problems, chosen=choices)
def test_calibrated_precision_clears_the_bar(problem, chosen):
    """Counted anew from the fitted branch, for every class that exits."""
    X, y, held = data(**problem)
    cascade = flat_cascade(branch=GaussianNB(), cv=PredefinedSplit(held), **chosen)
    cascade.fit(X, y)
    n_train = int((held < 0).sum())
    assert 1 <= cascade.effective_sample_size_[0] <= n_train * (1 + 1e-12)
    branch, tau = cascade.branches_[0], cascade.thresholds_[0]
    said = branch.predict_proba(X[held == 0])
    codes, truth = said.argmax(axis=1), y[held == 0]
    out = said.max(axis=1) >= tau[codes]
    bars = bars_of(cascade)
    for c in range(problem["n_classes"]):
        at = out & (codes == c)
        if not cascade.enabled_[0, c]:
            assert not at.any()
            assert tau[c] == np.inf
            continue
        assert (truth[at] == c).mean() >= bars[c]
        assert at.sum() == cascade.support_[0, c] >= chosen["min_support"]
        assert (truth[at] == c).mean() == cascade.precision_[0, c]


@settings(max_examples=25)
@given(problem=problems, chosen=choices, more=st.floats(0.0, 0.3))
def test_larger_margins_let_no_one_out_later(problem, chosen, more):
    """Of the first branch, where the scores are the same at every margin."""
    X, y, held = data(**problem)
    chosen = chosen | {"alignment_margin": 0.0}
    cascade = flat_cascade(branch=GaussianNB(), cv=PredefinedSplit(held), **chosen)
    cascade.fit(X, y)
    before = cascade.thresholds_.copy(), cascade.exit_depth(X)
    cascade.set_margin(cascade.margin + more)
    assert (cascade.thresholds_[0] <= before[0][0]).all()
    assert (cascade.exit_depth(X) <= before[1]).all()


@settings(max_examples=12)
@given(problem=problems, chosen=choices, seed=st.integers(0, 1000))
def test_the_order_of_the_training_rows_does_not_matter(problem, chosen, seed):
    X, y, held = data(**problem)
    order = np.random.default_rng(seed).permutation(len(y))
    branch = LogisticRegression(tol=1e-10, max_iter=5000)
    fits = [
        flat_cascade(
            branch=branch,
            final_estimator=branch,
            cv=PredefinedSplit(held[rows]),
            **chosen,
        ).fit(X[rows], y[rows])
        for rows in (np.arange(len(y)), order)
    ]
    np.testing.assert_allclose(fits[0].thresholds_, fits[1].thresholds_, rtol=1e-4)
    np.testing.assert_allclose(
        fits[0].branches_[0].predict_proba(X),
        fits[1].branches_[0].predict_proba(X),
        rtol=1e-3,
        atol=1e-6,
    )


@settings(max_examples=12)
@given(problem=problems, chosen=choices)
def test_labels_are_only_names(problem, chosen):
    X, y, held = data(**problem)
    names = np.array(["a", "bb", "ccc", "dddd"])
    settings_ = {"branch": GaussianNB(), "cv": PredefinedSplit(held)} | chosen
    codes = flat_cascade(**settings_).fit(X, y)
    named = flat_cascade(**settings_).fit(X, names[y])
    np.testing.assert_array_equal(named.thresholds_, codes.thresholds_)
    np.testing.assert_array_equal(named.predict(X), names[codes.predict(X)])
