"""What every fitted cascade shares: other exit rules, other values of its knob."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sk_calex.baselines import SDNClassifier
from sk_calex.cascade._knob import default_of
from sk_calex.model_selection import operating_curve
from sk_calex.policies import Oracle, RegretPriced, SharedThreshold
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

X, Y = images(150)
TEST, TEST_Y = images(60, seed=1)


def calexnet(**params):
    return flat_cascade(
        tiny_backbone(), branch=small_branch(), random_state=0, **params
    )


def sdn(**params):
    return SDNClassifier(
        tiny_backbone(), max_iter=8, device="cpu", random_state=0, **params
    )


CASES = pytest.mark.parametrize(
    ("make", "value", "refused"),
    [(calexnet, 0.3, 1.0), (sdn, 0.5, "high")],
    ids=["margin", "threshold"],
)


@CASES
def test_another_operating_point_is_another_fit(make, value, refused):
    moved = make().fit(X, Y)
    fresh = make(**{moved.knob: value}).fit(X, Y)
    curve = operating_curve(moved, TEST, TEST_Y, [value])
    assert moved.set_operating_point(value) is moved
    assert moved.get_params()[moved.knob] == value
    for left, right in zip(
        moved.predict(TEST, return_depth=True),
        fresh.predict(TEST, return_depth=True),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)
    assert curve.accuracy == [moved.score(TEST, TEST_Y)]


@CASES
def test_a_value_that_is_refused_changes_nothing(make, value, refused):
    fitted = make().fit(X, Y)
    before, depth = getattr(fitted, fitted.knob), fitted.exit_depth(TEST)
    with pytest.raises((ValueError, TypeError), match=fitted.knob):
        fitted.set_operating_point(refused)
    assert getattr(fitted, fitted.knob) == before
    np.testing.assert_array_equal(fitted.exit_depth(TEST), depth)


@CASES
def test_a_calibrator_moves_by_its_own_knob(make, value, refused):
    fitted = make(calibrator=SharedThreshold(0.7)).fit(X, Y)
    rule = fitted.calibrator
    fitted.set_operating_point(value)
    assert fitted.calibrator.threshold == fitted.calibrator_.threshold == value
    assert rule.threshold == 0.7  # that of the caller is not changed
    fresh = make(calibrator=SharedThreshold(value)).fit(X, Y)
    np.testing.assert_array_equal(fitted.exit_depth(TEST), fresh.exit_depth(TEST))


@CASES
def test_a_knob_that_has_no_effect_is_refused(make, value, refused):
    knob = make().knob
    stray = make(calibrator=RegretPriced(), **{knob: value})
    message = (
        rf"{knob}={value} has no effect.*set calibrator__price.*default, '?[\w.]+'?\."
    )
    with pytest.raises(ValueError, match=message):
        stray.fit(X, Y)
    fitted = make(**{knob: value}).fit(X, Y)
    default = default_of(make(), knob)
    # Exchanged later it goes back to the default: the parameters can be fitted again.
    assert getattr(fitted.set_calibrator(RegretPriced()), knob) == default
    clone(fitted).fit(X, Y)


@CASES
def test_not_before_fit(make, value, refused):
    with pytest.raises(NotFittedError):
        make().set_operating_point(value)
    with pytest.raises(NotFittedError):
        make().set_calibrator(None)
    assert clone(make()).knob in make().get_params()


def test_branches_that_depend_on_the_margin_do_not_move():
    bound = calexnet(alignment_margin="same", margin=0.1).fit(X, Y)
    with pytest.raises(ValueError, match=r"alignment__margin='same'.*fit again"):
        bound.set_operating_point(0.2)


@CASES
def test_another_rule_is_another_fit(make, value, refused):
    rule = RegretPriced(0.2)
    swapped = make().fit(X, Y)
    assert swapped.set_calibrator(rule) is swapped
    assert swapped.get_params()["calibrator"] is rule
    assert not hasattr(rule, "thresholds_")  # a clone was fitted
    fresh = make(calibrator=rule).fit(X, Y)
    np.testing.assert_array_equal(swapped.exit_depth(TEST), fresh.exit_depth(TEST))
    # And back to the method's own rule, whose knob moves again.
    swapped.set_calibrator(None).set_operating_point(value)
    own = make(**{swapped.knob: value}).fit(X, Y)
    np.testing.assert_array_equal(swapped.exit_depth(TEST), own.exit_depth(TEST))


@CASES
def test_a_rule_that_is_refused_changes_nothing(make, value, refused):
    fitted = make().fit(X, Y)
    depth = fitted.exit_depth(TEST)
    for no_rule in (Oracle(), 0.9):
        with pytest.raises(
            TypeError, match=r"calibrator must be a Survivor.*sk_calex.polic"
        ):
            fitted.set_calibrator(no_rule)
    for rule in (RegretPriced(-1), SharedThreshold(score="gut feeling")):
        with pytest.raises(ValueError, match="parameter of"):
            fitted.set_calibrator(rule)
    assert fitted.calibrator is None
    np.testing.assert_array_equal(fitted.exit_depth(TEST), depth)
