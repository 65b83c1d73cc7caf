"""New rows choose the thresholds; classes that the labels lack never exit."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

import sk_calex
from sk_calex import CascadeClassifier, MarginSearchCV
from sk_calex.baselines import SDNClassifier
from sk_calex.policies import Quota, SharedThreshold
from tests._cascade_models import images, small_branch, tiny_backbone

X, Y = images(150)
NEW, TRUTH = images(120, seed=5)
NAMES = np.array(["ant", "bee", "cat"])


def cascade(**params):
    settings = {"branch": small_branch("gap"), "random_state": 0, "margin": 0.3}
    return CascadeClassifier(tiny_backbone(), **(settings | params))


@pytest.mark.parametrize("params", [{}, {"ensemble": True}], ids=str)
def test_thresholds_are_those_of_the_new_rows(params):
    fitted = cascade(**params).fit(X, Y)
    branches = list(fitted.branches_)
    weight = np.random.default_rng(0).integers(0, 3, len(NEW)).astype(float)
    assert fitted.recalibrate(NEW, TRUTH, weight) is fitted
    assert all(a is b for a, b in zip(branches, fitted.branches_, strict=True))
    by_hand = clone(fitted._exit_rule())
    by_hand.fit(fitted.stage_probabilities(NEW), TRUTH, weight)
    np.testing.assert_allclose(fitted.thresholds_, by_hand.thresholds_, atol=1e-6)
    # Also those of another margin.
    by_hand.set_params(margin=0.1).fit(fitted.stage_probabilities(NEW), TRUTH, weight)
    np.testing.assert_allclose(
        fitted.thresholds_at(0.1), by_hand.thresholds_, atol=1e-6
    )
    assert fitted.calibration_.answers.n_samples == len(NEW)


def test_any_method_and_rule_may_be_calibrated_anew():
    sdn = SDNClassifier(tiny_backbone(), calibrator=Quota(), max_iter=2, random_state=0)
    sdn.fit(X, Y).recalibrate(NEW, TRUTH)
    share = np.bincount(sdn.exit_depth(NEW), minlength=3) / len(NEW)
    np.testing.assert_allclose(share, 1 / 3, atol=0.02)


def test_what_is_refused_changes_nothing(monkeypatch):
    with pytest.raises(NotFittedError):
        cascade().recalibrate(NEW, TRUTH)
    fitted = cascade().fit(X, NAMES[Y])
    before = fitted.calibration_, fitted.calibrator_, fitted.row_digests_
    with pytest.raises(ValueError, match=r"labels that fit did not see: \['dog'\]"):
        fitted.recalibrate(NEW, np.where(TRUTH == 0, "dog", "bee"))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fitted.recalibrate(NEW, NAMES[TRUTH][:-1])

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(fitted.calibrator_), "fit_on", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fitted.recalibrate(NEW, NAMES[TRUTH])
    after = fitted.calibration_, fitted.calibrator_, fitted.row_digests_
    assert all(a is b for a, b in zip(before, after, strict=True))


def test_rows_that_calibrated_are_remembered():
    fitted = cascade().fit(X, Y)
    one = fitted.row_digests_
    fitted.recalibrate(NEW, TRUTH)
    assert len(fitted.row_digests_) == len(one) + len(NEW)


# -- classes without samples -----------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [None, SharedThreshold(0.4), Quota(0.5)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("targets", ["soft", "labels"])
def test_a_class_that_the_labels_lack_never_exits(rule, targets):
    backbone = tiny_backbone(classes=NAMES)
    two = Y < 2
    fitted = CascadeClassifier(
        backbone,
        branch=small_branch("gap"),
        targets=targets,
        margin="auto" if rule is not None else 0.9,
        calibrator=rule,
        random_state=0,
    ).fit(X[two], NAMES[Y[two]])
    assert fitted.classes_.tolist() == NAMES.tolist()
    assert (fitted.thresholds_[:, 2] == np.inf).all()
    assert np.isfinite(fitted.thresholds_[:, :2]).any()
    labels, depth = fitted.predict(X, return_depth=True)
    assert (depth[labels == "cat"] == 2).all()
    if rule is None:
        fitted.set_margin(0.05)
    last = fitted.set_calibrator(SharedThreshold(np.inf)).predict(X)
    assert "cat" in last  # the backbone knows it
    assert fitted.predict_proba(X).shape == (150, 3)


def test_depths_come_with_the_probabilities():
    fitted = cascade().fit(X, Y)
    proba, depth = fitted.predict_proba(NEW, return_depth=True)
    np.testing.assert_array_equal(proba, fitted.predict_proba(NEW))
    np.testing.assert_array_equal(depth, fitted.exit_depth(NEW))


def test_thresholds_answer_only_in_the_precision_that_chose_them(tmp_path):
    fitted = cascade().fit(X, Y)
    before = fitted.predict_proba(NEW)
    fitted.backbone_.set_params(amp="bfloat16")
    for ask in (fitted.predict, fitted.predict_details, fitted.exit_depth, fitted.cost):
        with pytest.raises(ValueError, match=r"amp='bfloat16', but .* amp=None"):
            ask(NEW)
    fitted.recalibrate(NEW, TRUTH)
    by_hand = clone(fitted._exit_rule())
    by_hand.fit(fitted.stage_probabilities(NEW), TRUTH)
    np.testing.assert_allclose(fitted.thresholds_, by_hand.thresholds_, atol=1e-6)
    lowered = fitted.predict_proba(NEW)
    assert not np.array_equal(lowered, before)
    fitted.save(tmp_path / "saved")
    for twin in (
        pickle.loads(pickle.dumps(fitted)),
        sk_calex.load(tmp_path / "saved", backbone=tiny_backbone().module),
    ):
        np.testing.assert_allclose(twin.predict_proba(NEW), lowered, atol=1e-6)
        twin.backbone_.set_params(amp=None)
        with pytest.raises(ValueError, match=r"amp=None, but .* amp='bfloat16'"):
            twin.predict(NEW)


def test_a_search_notes_the_precision_of_its_backbone():
    search = MarginSearchCV(
        CascadeClassifier(
            tiny_backbone(amp="bfloat16"), branch=small_branch("gap"), random_state=0
        ),
        max_accuracy_drop=0.5,
        margins=[0.3],
        cv=2,
    ).fit(X, Y)
    search.predict(NEW)
    search.best_estimator_.backbone_.set_params(amp=None)
    with pytest.raises(ValueError, match="calibrated with amp='bfloat16'"):
        search.predict(NEW)
