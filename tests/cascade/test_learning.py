"""What every fitted cascade shares: other exit rules, other values of its knob."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sk_calex import CascadeClassifier
from sk_calex.baselines import SDNClassifier
from sk_calex.model_selection import operating_curve
from sk_calex.policies import Oracle, RegretPriced, SharedThreshold
from tests._cascade_models import images, small_branch, tiny_backbone

X, Y = images(150)
TEST, TEST_Y = images(60, seed=1)


def calexnet(**params):
    return CascadeClassifier(
        tiny_backbone(), branch=small_branch(), min_support=3, random_state=0, **params
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
def test_a_policy_takes_the_place_of_the_knob(make, value, refused):
    fitted = make(policy=SharedThreshold(0.7)).fit(X, Y)
    with pytest.raises(ValueError, match=f"'{fitted.knob}'. Give set_policy one"):
        fitted.set_operating_point(value)


@CASES
def test_not_before_fit(make, value, refused):
    with pytest.raises(NotFittedError):
        make().set_operating_point(value)
    with pytest.raises(NotFittedError):
        make().set_policy(None)
    assert clone(make()).knob in make().get_params()


def test_branches_that_depend_on_the_margin_do_not_move():
    bound = calexnet(alignment_margin="same").fit(X, Y)
    with pytest.raises(ValueError, match=r"alignment_margin='same'.*fit again"):
        bound.set_operating_point(0.2)


@CASES
def test_another_rule_is_another_fit(make, value, refused):
    rule = RegretPriced(0.2)
    swapped = make().fit(X, Y)
    assert swapped.set_policy(rule) is swapped
    assert swapped.get_params()["policy"] is rule
    assert not hasattr(rule, "thresholds_")  # a clone was fitted
    fresh = make(policy=rule).fit(X, Y)
    np.testing.assert_array_equal(swapped.exit_depth(TEST), fresh.exit_depth(TEST))
    # And back to the method's own rule, whose knob moves again.
    swapped.set_policy(None).set_operating_point(value)
    own = make(**{swapped.knob: value}).fit(X, Y)
    np.testing.assert_array_equal(swapped.exit_depth(TEST), own.exit_depth(TEST))


@CASES
def test_a_rule_that_is_refused_changes_nothing(make, value, refused):
    fitted = make().fit(X, Y)
    depth = fitted.exit_depth(TEST)
    for no_rule in (Oracle(), 0.9):
        with pytest.raises(TypeError, match=r"policy must be a rule of sk_calex.polic"):
            fitted.set_policy(no_rule)
    for rule in (RegretPriced(-1), SharedThreshold(score="gut feeling")):
        with pytest.raises(ValueError, match="parameter of"):
            fitted.set_policy(rule)
    assert fitted.policy is None
    np.testing.assert_array_equal(fitted.exit_depth(TEST), depth)
