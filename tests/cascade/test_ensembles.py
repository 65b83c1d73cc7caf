"""Stages that answer together with those before them."""

import pickle

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit

from sk_calex import margin_curve, select_taps
from sk_calex.calibration import StageAnswer
from sk_calex.cascade._costs import depth_prices
from sk_calex.cascade._ensembles import Ensembles
from sk_calex.cascade._runtime import independent
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

X, Y = images(180)
TEST, TEST_Y = images(90, seed=1)
HELD = PredefinedSplit(np.where(np.arange(180) % 3 == 0, 0, -1))


def draw(seed=0, n=300, n_classes=3):
    """Three stages whose errors are their own, and weights."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    logits = rng.standard_normal((3, n, n_classes))
    logits[:, np.arange(n), y] += np.array([1.0, 1.5, 2.0])[:, None]
    proba = np.exp(logits)
    return proba / proba.sum(axis=2, keepdims=True), y, rng.integers(0, 3, n) * 1.0


def loss(w, logs, y, weight):
    """Cross-entropy of the weighted mean, and the prior on the weights."""
    z = np.einsum("jnc,j->nc", logs, np.exp(w) / len(w))
    each = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]
    return (weight * each).sum() / weight.sum() + (w**2).sum() / 2 / weight.sum()


def test_weights_against_a_general_optimiser():
    proba, y, weight = draw()
    found = Ensembles.fit(proba, y, weight)
    for k in range(3):
        logs = np.log(proba[: k + 1])
        slow = minimize(loss, np.zeros(k + 1), (logs, y, weight), tol=1e-10)
        np.testing.assert_allclose(found.exponents[k, : k + 1], slow.x, atol=1e-4)
        mean = np.einsum("jnc,j->nc", logs, np.exp(slow.x) / (k + 1))
        expected = np.exp(mean) / np.exp(mean).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(found.combine(proba)[k], expected, atol=1e-4)


def test_together_they_are_better_than_each_alone():
    proba, y, weight = draw(n=2000)
    both = Ensembles.fit(proba, y, weight).combine(draw(1, n=2000)[0])
    alone, y, _ = draw(1, n=2000)
    right = (both.argmax(axis=2) == y).mean(axis=1)
    assert (right[1:] > (alone.argmax(axis=2) == y).mean(axis=1)[1:] + 0.02).all()


def test_integer_weights_are_repetition():
    proba, y, weight = draw()
    rows = np.repeat(np.arange(len(y)), weight.astype(int))
    weighted = Ensembles.fit(proba, y, weight)
    repeated = Ensembles.fit(proba[:, rows], y[rows], np.ones(len(rows)))
    np.testing.assert_allclose(weighted.exponents, repeated.exponents, atol=1e-7)


def test_a_class_without_any_probability_stays_finite():
    proba, y, weight = draw()
    proba[0] = np.eye(3)[proba[0].argmax(axis=1)]
    together = Ensembles.fit(proba, y, weight).combine(proba)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together.sum(axis=2), 1)


def test_stage_after_stage_is_all_at_once():
    proba, y, weight = draw()
    ensembles = Ensembles.fit(proba, y, weight)
    said = None
    rows = np.arange(0, 300, 2)
    for k, expected in enumerate(ensembles.combine(proba)):
        alone = independent(lambda shown: shown)
        said = ensembles.answer(k, alone)(proba[k][rows], said)
        assert isinstance(said, StageAnswer)
        np.testing.assert_allclose(said.proba, expected[rows], rtol=1e-12)
        said = said.keep(np.arange(1, len(rows)))
        rows = rows[1:]


@pytest.fixture(scope="module")
def fitted():
    cascade = flat_cascade(
        tiny_backbone(), branch=small_branch(), cv=HELD, min_support=3, ensemble=True
    )
    return cascade.set_params(random_state=0).fit(X, Y)


def test_staged_and_cached_answers_are_the_same(fitted):
    features = fitted.backbone_.transform(TEST)
    cached = flat_cascade(
        fitted.backbone_,
        branch=small_branch(),
        cv=HELD,
        min_support=3,
        ensemble=True,
        input="features",
        random_state=0,
    ).fit(fitted.backbone_.transform(X), Y)
    for margin in (0.0, 0.1, 0.4):
        labels, depth = fitted.set_margin(margin).predict(TEST, return_depth=True)
        others = cached.set_margin(margin).predict(features, return_depth=True)
        np.testing.assert_array_equal(labels, others[0])
        np.testing.assert_array_equal(depth, others[1])
    assert 0 < depth.mean() < 2


def test_every_stage_answers_with_those_before(fitted):
    alone = flat_cascade(
        tiny_backbone(), branch=small_branch(), cv=HELD, min_support=3, random_state=0
    ).fit(X, Y)
    assert alone.ensembles_ is None
    expected = fitted.ensembles_.combine(alone.stage_probabilities(TEST))
    np.testing.assert_allclose(fitted.stage_probabilities(TEST), expected, atol=1e-6)
    # Thresholds and curves are those of the answers that are given.
    given = fitted.calibration_
    held = fitted.stage_probabilities(X[::3])
    np.testing.assert_allclose(given.answers.confidence, held.max(axis=2), atol=1e-6)
    np.testing.assert_array_equal(given.right[-1], held[-1].argmax(1) == Y[::3])
    curve = margin_curve(fitted, TEST, TEST_Y, margins=[0.1])
    last = fitted.stage_probabilities(TEST)[-1]
    assert curve.backbone_accuracy == (last.argmax(axis=1) == TEST_Y).mean()
    # Heads never rest, as the last stage takes all branches in.
    np.testing.assert_array_equal(fitted.depth_costs_, depth_prices(alone, None)[0])


def test_out_of_fold_answers_make_the_weights():
    settings = {"branch": LogisticRegression(), "cv": 3, "random_state": 0}
    features = X.reshape(180, -1)[:, :40]
    fitted = flat_cascade(**settings, ensemble=True).fit(features, Y)
    plain = flat_cascade(**settings).fit(features, Y)
    # A single branch: its answer alone, sharpened or flattened.
    np.testing.assert_array_equal(
        fitted.calibration_.answers.predicted[0],
        plain.calibration_.answers.predicted[0],
    )
    assert not np.array_equal(
        fitted.calibration_.answers.confidence[0],
        plain.calibration_.answers.confidence[0],
    )
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(
        again.predict_proba(features), fitted.predict_proba(features)
    )


def test_no_branch_can_be_left_out(fitted):
    with pytest.raises(TypeError, match=r"ensemble=True .* ensemble=False"):
        select_taps(fitted, TEST, TEST_Y, flops_budget=0.1)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_weights_are_fitted_whatever_mode_the_caller_is_in(mode):
    proba, y, weight = draw()
    expected = Ensembles.fit(proba, y, weight)
    with mode():
        inside = Ensembles.fit(proba, y, weight)
    np.testing.assert_array_equal(inside.combine(proba), expected.combine(proba))


@pytest.mark.parametrize("scale", [1e-300, 1e-310, 5e-324])
def test_weights_next_to_nothing_leave_probabilities(scale):
    proba, y, _ = draw()
    weight = np.full(len(y), scale)
    found = Ensembles.fit(proba, y, weight)
    together = found.combine(proba)
    np.testing.assert_allclose(together.sum(axis=2), 1)
    # So little weight says nothing against the prior: the plain geometric mean.
    np.testing.assert_allclose(found.exponents, 0, atol=1e-4)


def test_the_scale_of_large_weights_matters_to_the_prior_alone():
    proba, y, _ = draw()
    once = Ensembles.fit(proba, y, np.full(len(y), 1e6))
    again = Ensembles.fit(proba, y, np.full(len(y), 1e9))
    np.testing.assert_allclose(once.exponents, again.exponents, atol=1e-3)
