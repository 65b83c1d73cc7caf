"""Accuracy and cost over margins, and over the knob of any method."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_calex import margin_curve, operating_curve
from sk_calex.baselines import SDNClassifier
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone


@pytest.fixture(scope="module")
def fitted():
    X, y = make_classification(300, n_informative=6, n_classes=3, random_state=0)
    cascade = flat_cascade(
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
        thresholds = cascade.thresholds_at(margin)[0]
        exits = confidence >= thresholds[codes]
        assert curve.accuracy[i] == np.where(exits, codes == y, last == y).mean()
        np.testing.assert_allclose(
            curve.depth_share[i], [exits.mean(), 1 - exits.mean()]
        )
        # Both models cost 3 x 20; one alone is what the plain last stage costs.
        head = 60 * (thresholds < np.inf).any()
        cost = exits.mean() * 60 + (1 - exits.mean()) * (60 + head)
        assert curve.flops_reduction[i] == pytest.approx(1 - cost / 60)
    assert curve.backbone_accuracy == (last == y).mean()


def test_curve_is_the_cascade_at_each_margin():
    """One pass over images or features gives what a run at every margin gives."""
    X, y = images(150)
    Z, z = images(90, seed=5)
    backbone = tiny_backbone().fit(X)
    settings = {"branch": small_branch(), "min_support": 3, "random_state": 0}
    on_images = flat_cascade(backbone, **settings).fit(X, y)
    features = backbone.transform(X)
    on_features = flat_cascade(input="features", **settings).fit(features, y)
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


def test_costs_can_be_passed_in(fitted):
    _, X, y = fitted
    cascade = flat_cascade(
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
        margin_curve(flat_cascade(), X, y)


# -- any knob --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_features():
    """A cascade of two branches, features and labels that it has not seen."""
    X, y = images(150)
    Z, z = images(90, seed=5)
    backbone = tiny_backbone().fit(X)
    settings = {"branch": small_branch(), "min_support": 3, "random_state": 0}
    cascade = flat_cascade(input="features", **settings)
    return cascade.fit(backbone.transform(X), y), backbone.transform(Z), z


def check_curve(curve, cascade, X, y, move):
    """The curve is what the cascade does, value by value."""
    for i, value in enumerate(curve.knob_values.tolist()):
        move(value)
        labels, depth = cascade.predict(X, return_depth=True)
        assert curve.accuracy[i] == pytest.approx((labels == y).mean())
        saved = cascade.flops_reduction(X)
        assert curve.flops_reduction[i] == pytest.approx(saved)
        share = np.bincount(depth, minlength=3) / len(y)
        np.testing.assert_allclose(curve.depth_share[i], share)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        (SharedThreshold(), [-np.inf, 0.4, 0.6, np.inf]),
        (SharedThreshold(score="gap"), [0.0, 0.2, 0.5]),
        (EntropyThreshold(), [0.2, 0.8, 1.0]),
        (Patience(), [0, 1, 2]),
        (SurvivorThresholdCalibrator(min_support=3), [-0.2, 0.2]),
        (Quota(), [0.1, 1.0, 10.0]),
        (LearnedGate(), [0.5, 0.8]),
        (RegretPriced(), [0.0, 0.3, 5.0]),
        (OptimalStopping(), [0.0, 0.3, 5.0]),
    ],
    ids=repr,
)
def test_curve_over_the_knob_of_a_rule(on_features, rule, values):
    cascade, X, y = on_features
    cascade.set_calibrator(rule)
    thresholds = cascade.calibrator_.thresholds_.copy()
    curve = operating_curve(cascade, X, y, iter(values))
    np.testing.assert_array_equal(curve.knob_values, values)
    np.testing.assert_array_equal(cascade.calibrator_.thresholds_, thresholds)
    assert cascade.calibrator is rule
    assert getattr(rule, rule.knob) == getattr(type(rule)(), rule.knob)
    assert len(set(curve.flops_reduction.tolist())) > 1
    assert curve.backbone_accuracy == pytest.approx(
        (X[:, -3:].argmax(axis=1) == y).mean()
    )

    check_curve(curve, cascade, X, y, cascade.set_operating_point)
    cascade.set_operating_point(getattr(rule, rule.knob))


def test_curve_over_the_knob_of_another_method(on_features):
    """Given as a parameter by its name, too."""
    _, X, y = on_features
    cascade = SDNClassifier(
        tiny_backbone(), max_iter=8, device="cpu", random_state=0, input="features"
    ).fit(X, y)
    curve = operating_curve(cascade, X, y, [0.3, 0.6, 0.95])
    check_curve(curve, cascade, X, y, cascade.set_operating_point)
    assert (np.diff(curve.flops_reduction) <= 0).all()


def test_margins_are_the_knob_of_the_cascade_itself(on_features):
    cascade, X, y = on_features
    cascade.set_calibrator(None)
    margins = [-0.3, 0.0, 0.2]
    over_margins = margin_curve(cascade, X, y, margins=margins)
    over_values = operating_curve(cascade, X, y, margins)
    np.testing.assert_array_equal(over_margins.margins, over_values.knob_values)
    for field in ("accuracy", "flops_reduction", "depth_share", "backbone_accuracy"):
        np.testing.assert_array_equal(over_margins[field], over_values[field])
    assert "knob_values" not in over_margins


def test_a_rule_has_no_margin(on_features):
    cascade, X, y = on_features
    cascade.set_calibrator(Quota())
    with pytest.raises(
        ValueError, match=r"calibrator=Quota\(\).*over values of 'decay'"
    ):
        margin_curve(cascade, X, y)
    cascade.set_calibrator(None)


def test_values_that_the_knob_refuses(on_features):
    cascade, X, y = on_features
    for rule, value in ((Quota(), 0.0), (Patience(), 0.5), (LearnedGate(), 2.0)):
        cascade.set_calibrator(rule)
        with pytest.raises(ValueError, match=f"'{rule.knob}' parameter of"):
            operating_curve(cascade, X, y, [value])
    cascade.set_calibrator(None)
    with pytest.raises(ValueError, match=r"margin=1\.0"):
        operating_curve(cascade, X, y, [0.0, 1.0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        operating_curve(cascade, X, y[:-1], [0.0])
    with pytest.raises(NotFittedError):
        operating_curve(clone(cascade), X, y, [0.0])


def test_weight_is_repetition(on_features):
    cascade, X, y = on_features
    weight = np.random.default_rng(0).integers(0, 4, len(y))
    rows = np.repeat(np.arange(len(y)), weight)
    weighted = margin_curve(cascade, X, y, margins=[-0.1, 0.2], sample_weight=weight)
    repeated = margin_curve(cascade, X[rows], y[rows], margins=[-0.1, 0.2])
    for field in ("accuracy", "flops_reduction", "depth_share", "backbone_accuracy"):
        np.testing.assert_allclose(weighted[field], repeated[field], rtol=1e-12)
    with pytest.raises(ValueError, match="sample_weight is zero"):
        operating_curve(cascade, X, y, [0.0], sample_weight=0 * weight)


def test_what_has_no_margin_of_its_own_is_refused():
    X, y = images(60)
    features = tiny_backbone().fit(X).transform(X)
    thresholds = SDNClassifier(
        input="features", solver="adam", max_iter=1, cv=0.5, random_state=0
    ).fit(features, y)
    with pytest.raises(ValueError, match=r"moves by 'threshold', not by a margin"):
        margin_curve(thresholds, features, y)
    with pytest.raises(TypeError, match="got Pipeline"):
        margin_curve(make_pipeline(thresholds), features, y)
    bound = flat_cascade(
        input="features",
        branch=small_branch("gap"),
        alignment_margin="same",
        random_state=0,
    ).fit(features, y)
    with pytest.raises(ValueError, match="alignment__margin"):
        margin_curve(bound, features, y)
