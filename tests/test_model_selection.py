"""The curve over margins."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

from sk_calex import CascadeClassifier, margin_curve
from tests._cascade_models import images, small_branch, tiny_backbone


@pytest.fixture(scope="module")
def fitted():
    X, y = make_classification(300, n_informative=6, n_classes=3, random_state=0)
    cascade = CascadeClassifier(
        branch=LogisticRegression(), min_support=3, random_state=0, margin=0.1
    )
    return cascade.fit(X, y), X, y


class Priced(LogisticRegression):
    """A classifier that says what its answer costs."""

    macs_ = 1000


def test_curve(fitted):
    """Accuracy and share by hand; costs are those of the two linear models."""
    cascade, X, y = fitted
    margins = (-0.1, 0.0, 0.3)
    curve = margin_curve(cascade, X, y, margins=iter(margins))
    np.testing.assert_array_equal(curve.margins, margins)
    last = cascade.final_estimator_.predict(X)
    codes = cascade.branches_[0].predict(X)
    confidence = cascade.branches_[0].predict_proba(X).max(axis=1)
    for i, margin in enumerate(margins):
        exits = confidence >= cascade.thresholds_at(margin)[0][codes]
        assert curve.accuracy[i] == np.where(exits, codes == y, last == y).mean()
        np.testing.assert_allclose(
            curve.depth_share[i], [exits.mean(), 1 - exits.mean()]
        )
        # Both models cost 3 x 20; one alone is what the plain last stage costs.
        cost = exits.mean() * 60 + (1 - exits.mean()) * 120
        assert curve.flops_reduction[i] == pytest.approx(1 - cost / 60)
    assert curve.backbone_accuracy == (last == y).mean()


def test_curve_is_the_cascade_at_each_margin():
    """One pass over images or features gives what a run at every margin gives."""
    X, y = images(150)
    Z, z = images(90, seed=5)
    backbone = tiny_backbone().fit(X)
    settings = {"branch": small_branch(), "min_support": 3, "random_state": 0}
    on_images = CascadeClassifier(backbone, **settings).fit(X, y)
    features = backbone.transform(X)
    on_features = CascadeClassifier(input="features", **settings).fit(features, y)
    margins = (-0.3, -0.05, 0.1, 0.4)
    for cascade, given in ((on_images, Z), (on_features, backbone.transform(Z))):
        before = cascade.thresholds_.copy()
        curve = margin_curve(cascade, given, z, margins=margins)
        np.testing.assert_array_equal(cascade.thresholds_, before)
        assert curve.backbone_accuracy == (backbone.predict(Z) == z).mean()
        for i, margin in enumerate(margins):
            cascade.set_margin(margin)
            labels, depth = cascade.predict(given, return_depth=True)
            assert curve.accuracy[i] == pytest.approx((labels == z).mean())
            saved = cascade.flops_reduction(given)
            assert curve.flops_reduction[i] == pytest.approx(saved)
            share = np.bincount(depth, minlength=3) / len(z)
            np.testing.assert_allclose(curve.depth_share[i], share)


def test_default_margins_rise_and_reach_below_zero(fitted):
    curve = margin_curve(*fitted)
    assert (np.diff(curve.margins) > 0).all()
    assert curve.margins[0] < 0 < curve.margins[-1]
    assert curve.accuracy.shape == curve.flops_reduction.shape == curve.margins.shape


def test_larger_margins_let_more_out_of_a_single_branch(fitted):
    curve = margin_curve(*fitted, margins=np.linspace(-0.5, 0.9, 30))
    assert (np.diff(curve.depth_share[:, 0]) >= 0).all()
    assert curve.depth_share[0, 0] < curve.depth_share[-1, 0]


def test_labels_of_any_kind(fitted):
    cascade, X, y = fitted
    names = np.array(["c", "a", "b"])[y]
    named = clone(cascade).fit(X, names)
    curve = margin_curve(named, X, names, margins=[0.0])
    assert curve.backbone_accuracy > 0.5


def test_costs_may_be_told(fitted):
    _, X, y = fitted
    cascade = CascadeClassifier(
        branch=Priced(), final_estimator=Priced(), min_support=3, random_state=0
    ).fit(X, y)
    np.testing.assert_array_equal(cascade.depth_costs_, [1000, 2000])


@pytest.mark.parametrize("margin", [1.0, np.nan, np.inf, -np.inf])
def test_bad_margins(fitted, margin):
    with pytest.raises(ValueError, match="margin="):
        margin_curve(*fitted, margins=[0.0, margin])


def test_bad_input(fitted):
    cascade, X, y = fitted
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        margin_curve(cascade, X, y[:-1])
    with pytest.raises(NotFittedError):
        margin_curve(CascadeClassifier(), X, y)
