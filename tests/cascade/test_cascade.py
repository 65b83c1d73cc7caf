"""What a cascade is trained on, calibrated on, and may be changed into afterwards."""

import inspect

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, KFold, PredefinedSplit, StratifiedKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier

from sk_calex import (
    PrototypePoolingClassifier,
    class_precision,
    effective_sample_size,
)
from tests._cascade_models import flat_cascade, small_branch, tiny_backbone
from tests._quick_cascade import (
    FIXED,
    HELD,
    TEST,
    TEST_Y,
    X,
    Y,
    cascade,
    on_images,
    same_cascade,
)
from tests._reference.cascade import slow_cascade


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(X)


# -- fit -------------------------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["soft", "hard", "none"])
@pytest.mark.parametrize("targets", ["soft", "argmax", "labels"])
@pytest.mark.parametrize("mode", ["local", "relative"])
def test_fit_is_the_slow_loop(features, alignment, targets, mode):
    """On a real backbone's features, from reference precision to thresholds."""
    settings = {"alignment": alignment, "targets": targets, "margin_mode": mode}
    got = cascade(**settings).fit(features, Y)
    layout = got.layout_
    logits = np.asarray(layout.block(features, 2), dtype=float)
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    held = HELD == 0
    reference = class_precision(Y[held], soft.argmax(axis=1)[held], 3)
    np.testing.assert_array_equal(got.reference_precision_, reference)
    expected = slow_cascade(
        [layout.block(features, k) for k in range(2)],
        Y,
        [(np.flatnonzero(~held), np.flatnonzero(held))],
        n_classes=3,
        reference=reference,
        kind=alignment,
        margin=0.05,
        margin_mode=mode,
        last_correct=soft.argmax(axis=1) == Y,
        min_support=3,
        soft=soft if targets == "soft" else None,
        targets=soft.argmax(axis=1) if targets == "argmax" else Y,
    )
    np.testing.assert_allclose(got.thresholds_, expected.thresholds, rtol=1e-3)
    sizes = [effective_sample_size(list(w.values())) for w in expected.weights]
    np.testing.assert_allclose(got.effective_sample_size_, sizes, rtol=1e-3)
    assert got.effective_sample_size_[0] == 120
    assert (got.effective_sample_size_[1] < 120) == (alignment != "none")


def test_alignment_changes_later_branches_only(features):
    """What a branch is trained on follows from the branches before it."""
    fits = {a: cascade(alignment=a).fit(features, Y) for a in ("soft", "hard", "none")}
    first = [fit.branches_[0].coef_ for fit in fits.values()]
    for coef in first:
        np.testing.assert_array_equal(coef, first[0])
    later = [fit.branches_[1].coef_ for fit in fits.values()]
    for i in range(3):
        assert np.abs(later[i] - later[i - 1]).max() > 1e-3


@pytest.mark.parametrize("branch", [LogisticRegression(), small_branch()])
def test_a_sharp_soft_alignment_is_the_hard_one(features, branch):
    hard = cascade(alignment="hard", branch=branch).fit(features, Y)
    sharp = cascade(alignment="soft", alignment_bandwidth=0.0, branch=branch)
    same_cascade(hard, sharp.fit(features, Y), features)
    near = cascade(alignment="soft", alignment_bandwidth=1e-9, branch=branch)
    same_cascade(hard, near.fit(features, Y), features)


def test_a_mixture_of_nothing_is_no_alignment(features):
    mixed = cascade(alignment="soft", alignment_mixture=0.0).fit(features, Y)
    same_cascade(mixed, cascade(alignment="none").fit(features, Y), features)


def test_the_alignment_margin_decides_who_trains(features):
    """And leaves the branches independent of the margin, unless it is the same."""
    fixed = [cascade(margin=m).fit(features, Y) for m in (-0.3, 0.3)]
    np.testing.assert_array_equal(
        fixed[0].branches_[1].coef_, fixed[1].branches_[1].coef_
    )
    strict, lax = (
        cascade(alignment_margin=m).fit(features, Y).effective_sample_size_[1]
        for m in (-0.3, 0.3)
    )
    assert lax < strict
    follows = [
        cascade(margin=m, alignment_margin="same").fit(features, Y) for m in (-0.3, 0.3)
    ]
    assert follows[0].effective_sample_size_[1] == strict
    assert follows[1].effective_sample_size_[1] == lax


def test_survivors_or_all_calibrate(features):
    """The first branch sees all samples; later ones those who are left, or all."""
    plain = cascade(alignment="none", margin_mode="relative")
    survivors = clone(plain).fit(features, Y)
    everyone = plain.set_params(calibrator__calibrate_on="all").fit(features, Y)
    np.testing.assert_array_equal(survivors.thresholds_[0], everyone.thresholds_[0])
    assert not np.array_equal(survivors.thresholds_[1], everyone.thresholds_[1])
    given = survivors.calibration_.answers
    left = ~survivors.calibrator_.exits(0, given.stage(0))
    exits = left & survivors.calibrator_.exits(1, given.stage(1))
    assert survivors.support_[1].sum() == exits.sum()


@pytest.mark.parametrize(
    "setting",
    [
        {"margin_mode": "absolute"},
        {"margin_mode": "local"},
        {"rule": "first_violation"},
        {"min_support": 15},
        {"margin_mode": "local", "shrinkage": 0},
    ],
)
def test_settings_of_the_thresholds_reach_them(features, setting):
    mode = "local" if "shrinkage" in setting else "relative"
    plain = cascade(alignment="none", margin_mode=mode).fit(features, Y)
    changed = {f"calibrator__{name}": value for name, value in setting.items()}
    other = clone(plain).set_params(**changed).fit(features, Y)
    assert not np.array_equal(plain.thresholds_, other.thresholds_)
    if "min_support" in setting:
        assert (other.support_[other.enabled_] >= 15).all()


def test_calibrated_precision_clears_the_bar(features):
    fitted = cascade(margin_mode="relative").fit(features, Y)
    bars = np.clip(0.95 * fitted.reference_precision_, 0, 1)
    on = fitted.enabled_
    assert on.any()
    assert (fitted.precision_ >= bars)[on].all()
    assert np.isnan(fitted.precision_[~on]).all()
    assert np.isinf(fitted.thresholds_[~on]).all()
    assert (fitted.support_[on] >= 3).all()


def test_fitting_again_forgets(features):
    once = cascade().fit(features, Y)
    twice = cascade(cv=0.3, final_estimator=GaussianNB()).fit(features[:90], Y[:90] + 5)
    twice.set_params(cv=FIXED, final_estimator=None).fit(features, Y)
    same_cascade(once, twice, features)
    assert twice.final_estimator_ is None
    assert twice.classes_.tolist() == [0, 1, 2]


def test_the_seed_decides():
    settings = {"branch": small_branch(random_state=None), "cv": 0.25}
    a, b, other = (
        on_images(random_state=seed, **settings).fit(X, Y) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(a.predict_proba(TEST), b.predict_proba(TEST))
    assert np.abs(a.predict_proba(TEST) - other.predict_proba(TEST)).max() > 1e-6
    # Branches get seeds of their own.
    assert a.branches_[0].random_state != a.branches_[1].random_state


def test_templates_are_not_touched(features):
    branch, final = small_branch(random_state=None), LogisticRegression()
    before = branch.get_params()
    cascade(branch=branch, final_estimator=final).fit(features, Y)
    assert branch.get_params() == before
    assert not hasattr(branch, "head_")
    assert not hasattr(final, "coef_")


# -- who calibrates --------------------------------------------------------------------


def test_a_single_split_trains_on_one_part_and_calibrates_on_the_other(features):
    fitted = cascade(branch=KNeighborsClassifier(1), targets="labels", alignment="none")
    fitted.fit(features, Y)
    assert [branch.n_samples_fit_ for branch in fitted.branches_] == [120, 120]
    np.testing.assert_array_equal(fitted.calibration_.labels, Y[HELD == 0])


@pytest.mark.parametrize(
    "cv", [3, KFold(3), [*StratifiedKFold(3).split(X, Y)]], ids=str
)
def test_folds_calibrate_on_all_out_of_fold(features, cv):
    """A branch that knows its rows by heart is not believed."""
    fitted = cascade(
        branch=KNeighborsClassifier(1), targets="labels", alignment="none", cv=cv
    ).fit(features, Y)
    assert [branch.n_samples_fit_ for branch in fitted.branches_] == [180, 180]
    np.testing.assert_array_equal(fitted.calibration_.labels, Y)
    for k, branch in enumerate(fitted.branches_):
        assert branch.score(fitted.layout_.block(features, k), Y) == 1
        assert (fitted.calibration_.answers.predicted[k] == Y).mean() < 0.95


def test_the_final_estimator_is_judged_out_of_fold(features):
    """Its precision, and the targets that it makes, come from rows it did not see."""
    fitted = cascade(final_estimator=KNeighborsClassifier(1), cv=3, targets="argmax")
    fitted.fit(features, Y)
    assert fitted.final_estimator_.n_samples_fit_ == 180
    outputs = fitted.layout_.block(features, 2)
    assert fitted.final_estimator_.score(outputs, Y) == 1
    assert (fitted.reference_precision_ < 1).any()
    own = cascade(final_estimator=KNeighborsClassifier(1), targets="argmax")
    own.fit(features, Y)
    assert own.final_estimator_.n_samples_fit_ == 120


def test_groups_stay_together(features):
    groups = np.arange(180) // 6
    cv = GroupKFold(3)
    routed = cascade(cv=cv).fit(features, Y, groups=groups)
    explicit = cascade(cv=[*cv.split(X, Y, groups)]).fit(features, Y)
    same_cascade(routed, explicit, features)
    np.testing.assert_array_equal(routed.calibration_.labels, Y)


def test_cross_fitting_takes_scores_out_of_fold(features):
    """Own scores are over-confident: they let too many training rows go."""
    settings = {
        "branch": KNeighborsClassifier(5),
        "targets": "labels",
        "alignment": "hard",
        "alignment_margin": 0.1,
    }
    own = cascade(**settings).fit(features, Y)
    crossed = cascade(cross_fit=3, **settings).fit(features, Y)
    np.testing.assert_array_equal(own.thresholds_[0], crossed.thresholds_[0])
    sizes = own.effective_sample_size_[1], crossed.effective_sample_size_[1]
    assert sizes[0] < sizes[1] < 120


# -- sample weights --------------------------------------------------------------------


@pytest.mark.parametrize("alignment", ["soft", "hard"])
@pytest.mark.parametrize("branch", [LogisticRegression(tol=1e-10, max_iter=5000), None])
@pytest.mark.parametrize("final", [None, LogisticRegression(tol=1e-10, max_iter=5000)])
def test_weight_is_repetition(features, alignment, branch, final):
    """Under a fixed split, for branches, final estimator, weights and thresholds."""
    branch = small_branch("gap") if branch is None else branch
    features = features.astype(np.float64)  # in which scikit-learn then computes
    weight = np.random.default_rng(0).integers(0, 4, 180)
    rows = np.repeat(np.arange(180), weight)
    settings = {"alignment": alignment, "branch": branch, "final_estimator": final}
    weighted = cascade(**settings).fit(features, Y, sample_weight=weight)
    repeated = cascade(cv=PredefinedSplit(HELD[rows]), **settings)
    repeated.fit(features[rows], Y[rows])
    same_cascade(weighted, repeated, features, rtol=1e-4)
    np.testing.assert_allclose(weighted.support_, repeated.support_)
    np.testing.assert_allclose(weighted.precision_, repeated.precision_)
    np.testing.assert_allclose(
        weighted.reference_precision_, repeated.reference_precision_
    )


@pytest.mark.parametrize("cv", [0.3, 3, "fixed"])
@pytest.mark.parametrize("final", [None, LogisticRegression()])
def test_zero_weight_is_absence(features, cv, final):
    weight = np.random.default_rng(0).choice([0.0, 0.5, 2.0], 180)
    there = weight > 0
    everyone = cascade(cv=FIXED if cv == "fixed" else cv, final_estimator=final)
    everyone.fit(features, Y, sample_weight=weight)
    cv = PredefinedSplit(HELD[there]) if cv == "fixed" else cv
    present = cascade(cv=cv, final_estimator=final)
    present.fit(features[there], Y[there], sample_weight=weight[there])
    same_cascade(everyone, present, features, rtol=1e-9)
    np.testing.assert_allclose(
        everyone.effective_sample_size_, present.effective_sample_size_
    )


# -- branches and last stage -----------------------------------------------------------


@pytest.mark.parametrize(
    "branch",
    [
        RandomForestClassifier(5, random_state=0),
        GaussianNB(),
        small_branch("sdn"),
        PrototypePoolingClassifier(widths=(6,), max_iter=5, random_state=0),
    ],
    ids=lambda branch: type(branch).__name__,
)
def test_any_classifier_may_be_a_branch(branch):
    fitted = on_images(branch=branch, margin_mode="relative").fit(X, Y)
    labels, depth = fitted.predict(TEST, return_depth=True)
    assert 0 < (depth < 2).mean()
    assert (labels == TEST_Y).mean() > 0.55
    assert type(fitted.branches_[0]) is type(branch)


def test_a_branch_for_each_tap(features):
    fitted = cascade(branch=[small_branch("gap"), GaussianNB()]).fit(features, Y)
    assert [type(b).__name__ for b in fitted.branches_] == [
        "BranchClassifier",
        "GaussianNB",
    ]
    assert fitted.branches_[0].feature_shape_ == (4, 4, 4)


def test_a_backbone_that_never_saw_the_classes():
    """Transfer: seven outputs are features of a final estimator for three classes."""
    backbone = tiny_backbone(7)
    names = np.array(["ant", "bee", "cat"])
    final = LogisticRegression(max_iter=500)
    fitted = on_images(backbone=backbone, final_estimator=final)
    fitted.fit(X, names[Y])
    assert fitted.final_estimator_.coef_.shape == (3, 7)
    stages = fitted.backbone_.stage_macs_
    heads = [branch.macs_ for branch in fitted.branches_]
    fitted.thresholds_[:] = 0.5
    assert fitted.depth_costs_[-1] == sum(stages) + sum(heads) + 3 * 7
    assert set(fitted.predict(TEST)) == set(names)
    fitted.thresholds_[:] = np.inf
    outputs = fitted.layout_.block(fitted.backbone_.transform(TEST), 2)
    expected = fitted.final_estimator_.predict(outputs)
    np.testing.assert_array_equal(fitted.predict(TEST), names[expected])
    assert fitted.score(TEST, names[TEST_Y]) > 0.6


def test_named_outputs_are_put_in_the_order_of_the_labels():
    """Output j is class names[j], whatever the alphabet says."""
    names = np.array(["wren", "auk", "crow"])
    backbone = tiny_backbone(classes=names)
    fitted = on_images(backbone=backbone).fit(X, names[Y])
    assert fitted.classes_.tolist() == ["auk", "crow", "wren"]
    fitted.thresholds_[:] = np.inf
    np.testing.assert_array_equal(fitted.predict(TEST), fitted.backbone_.predict(TEST))
    np.testing.assert_allclose(
        fitted.predict_proba(TEST),
        fitted.backbone_.predict_proba(TEST)[:, [1, 2, 0]],
        rtol=1e-5,
    )
    plain = on_images().fit(X, Y)
    np.testing.assert_allclose(
        np.sort(plain.reference_precision_), np.sort(fitted.reference_precision_)
    )


def test_plain_data_without_a_backbone():
    """The branch and a logistic regression see the same columns."""
    given, labels = make_classification(
        200, n_informative=6, n_classes=3, random_state=0
    )
    fitted = flat_cascade(
        branch=GaussianNB(), margin=0.1, min_support=3, random_state=0
    ).fit(given, labels)
    assert isinstance(fitted.final_estimator_, LogisticRegression)
    assert fitted.backbone_ is None
    predicted, depth = fitted.predict(given, return_depth=True)
    assert set(depth) == {0, 1}
    for k, model in enumerate((fitted.branches_[0], fitted.final_estimator_)):
        at = depth == k
        np.testing.assert_array_equal(predicted[at], model.predict(given[at]))
        np.testing.assert_allclose(
            fitted.predict_proba(given)[at], model.predict_proba(given[at])
        )


# -- predict ---------------------------------------------------------------------------


def test_predict_never_sees_the_labels():
    """What it stores of y, and y itself, may be lost without a trace."""
    labels = Y.copy()
    fitted = on_images().fit(X, labels)
    expected = fitted.predict(TEST, return_depth=True)
    labels[:] = -1
    fitted.calibration_.labels[:] = 0
    fitted.calibrator_.reference_precision_ = None
    for got, before in zip(
        fitted.predict(TEST, return_depth=True), expected, strict=True
    ):
        np.testing.assert_array_equal(got, before)
    for method in ("predict", "predict_proba", "exit_depth", "cost"):
        assert "y" not in inspect.signature(getattr(fitted, method)).parameters


def test_answers_agree_and_repeat():
    fitted = on_images().fit(X, Y)
    before = fitted.thresholds_.copy()
    labels, depth = fitted.predict(TEST, return_depth=True)
    proba = fitted.predict_proba(TEST)
    assert proba.shape == (90, 3)
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(axis=1)], labels)
    np.testing.assert_array_equal(fitted.exit_depth(TEST), depth)
    np.testing.assert_array_equal(fitted.predict(TEST), labels)
    np.testing.assert_array_equal(fitted.predict_proba(TEST), proba)
    np.testing.assert_array_equal(fitted.thresholds_, before)
    assert fitted.score(TEST, TEST_Y) == (labels == TEST_Y).mean()


@pytest.mark.parametrize(
    "form",
    [
        lambda given: given[::-1][::-1],
        np.asfortranarray,
        lambda given: np.repeat(given, 2, axis=0)[::2],
        lambda given: given.astype(np.float64),
    ],
    ids=["reversed", "fortran", "strided", "float64"],
)
def test_the_form_of_features_does_not_matter(features, form):
    fitted = cascade(branch=small_branch()).fit(features, Y)
    given = np.asarray(features)
    other = form(given)
    other.flags.writeable = False
    np.testing.assert_allclose(
        fitted.predict_proba(other), fitted.predict_proba(given), rtol=1e-5
    )
    turned = fitted.predict_proba(given[::-1])
    np.testing.assert_allclose(turned[::-1], fitted.predict_proba(given), rtol=1e-5)
