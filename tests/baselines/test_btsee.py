"""BTS-EE and the unaligned reference: CascadeClassifier with other settings."""

from functools import partial

import numpy as np
import pytest
from sklearn.base import clone

from sk_calex import BranchClassifier, CascadeClassifier
from sk_calex.baselines import BTSEEClassifier, NoAlignmentClassifier
from tests._cascade_models import flat_cascade, small_branch
from tests.baselines._every_cascade import CHECKS, FIXED, X, Y, features

SMALL = {"margin": 0.05, "min_support": 3, "random_state": 0, "cv": FIXED}
PAPERS = {"targets": "argmax", "margin_mode": "relative"}
BTSEE = {**PAPERS, "alignment": "hard", "alignment_margin": -0.1}
REFERENCE = {**PAPERS, "alignment": "none", "calibrate_on": "all"}
METHODS = pytest.mark.parametrize(
    ("method", "settings"),
    [(BTSEEClassifier, BTSEE), (NoAlignmentClassifier, REFERENCE)],
    ids=["btsee", "no_alignment"],
)


@METHODS
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_every_cascade(method, settings, check):
    branch = small_branch("conv1d", head_params={"width": 6})
    check(partial(method, **{**SMALL, "branch": branch}), -0.1)


def equal(a, b, given):
    for name in ("thresholds_", "enabled_", "precision_", "support_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    for name in ("effective_sample_size_", "reference_precision_", "depth_costs_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(
        a.stage_probabilities(given), b.stage_probabilities(given)
    )
    for left, right in zip(
        a.predict(given, return_depth=True),
        b.predict(given, return_depth=True),
        strict=True,
    ):
        np.testing.assert_array_equal(left, right)


@METHODS
@pytest.mark.parametrize("margin", [-0.2, 0.1])
def test_bit_for_bit_the_cascade_with_these_settings(method, settings, margin):
    train, test = features()
    given = {**SMALL, "input": "features", "branch": small_branch()}
    baseline = method(**given).fit(train, Y)
    same = flat_cascade(**given, **settings).fit(train, Y)
    equal(baseline, same, test)
    equal(baseline.set_operating_point(margin), same.set_margin(margin), test)


@pytest.mark.parametrize("alignment_margin", [-0.3, 0.4, "same"])
def test_survivors_of_another_margin(alignment_margin):
    train, test = features()
    given = {**SMALL, "input": "features", "branch": small_branch()}
    given["alignment_margin"] = alignment_margin
    baseline = BTSEEClassifier(**given).fit(train, Y)
    assert baseline.effective_sample_size_[1] < baseline.effective_sample_size_[0]
    equal(baseline, flat_cascade(**{**BTSEE, **given}).fit(train, Y), test)
    if alignment_margin == "same":
        with pytest.raises(ValueError, match=r"alignment_margin='same'.*fit again"):
            baseline.set_operating_point(0.2)


def test_the_reference_trains_every_branch_on_all_samples():
    train, _ = features()
    given = {**SMALL, "input": "features", "branch": small_branch()}
    fitted = NoAlignmentClassifier(**given).fit(train, Y)
    np.testing.assert_allclose(fitted.effective_sample_size_, [120, 120])


def test_branches_of_the_methods():
    """BTS-EE's is a 1-D convolution, the reference's the same as CalexNet's."""
    train, _ = features()
    given = {**SMALL, "input": "features"}
    own = BTSEEClassifier(**given).fit(train, Y)
    kinds = {type(branch) for branch in own.branches_}
    assert kinds == {BranchClassifier}
    assert {branch.head for branch in own.branches_} == {"conv1d"}
    given["branch"] = BranchClassifier("conv1d")
    equal(own, BTSEEClassifier(**given).fit(train, Y), train)
    plain = NoAlignmentClassifier(**SMALL, input="features").fit(train, Y)
    calex = CascadeClassifier(input="features", cv=SMALL["cv"]).fit(train, Y)
    for theirs, ours in zip(plain.branches_, calex.branches_, strict=True):
        assert type(theirs) is type(ours)
        assert getattr(theirs, "widths", None) == getattr(ours, "widths", None)


@METHODS
def test_what_makes_the_method_is_no_parameter(method, settings):
    made = method(margin=0.3, random_state=1)
    settings = {k: v for k, v in settings.items() if k != "alignment_margin"}
    assert not {*settings, "rule", "cross_fit", "margin_mode"} & set(made.get_params())
    assert clone(made).get_params() == made.get_params()
    rule, alignment = made._rule(), made._alignment()
    assert (rule.margin, rule.margin_mode) == (0.3, "relative")
    assert rule.calibrate_on == settings.get("calibrate_on", "survivors")
    assert alignment.kind == settings["alignment"]
    assert made.targets == settings["targets"]
    for name, value in settings.items():
        with pytest.raises(ValueError, match=f"Invalid parameter '{name}'"):
            made.set_params(**{name: value})
    with pytest.raises(TypeError, match="alignment"):
        method(alignment="soft")


@METHODS
@pytest.mark.parametrize(
    "params",
    [{"min_support": -1}, {"input": "images"}, {"branch": 3}, {"calibrator": "oracle"}],
    ids=lambda params: next(iter(params)),
)
def test_settings_out_of_range(method, settings, params):
    (name,) = params
    with pytest.raises(ValueError, match=f"'{name}' parameter of {method.__name__}"):
        method(**params).fit(X, Y)


@METHODS
def test_margins_are_below_one(method, settings):
    with pytest.raises(ValueError, match=r"margin=1.* a finite number below 1"):
        method(margin=1.0).fit(X, Y)
