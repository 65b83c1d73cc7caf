"""Any classifier as a branch: seeds, fits, probabilities and costs."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import (
    AdaBoostClassifier,
    BaggingClassifier,
    ExtraTreesClassifier,
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.naive_bayes import BernoulliNB, GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

import sk_calex
from sk_calex import BranchClassifier, CascadeClassifier, PrototypePoolingClassifier
from sk_calex.branches._as_branch import (
    as_torch_branch,
    count_target_classes,
    fit_as_branch,
    macs_of,
    probabilities_of,
    share_soft_targets,
    takes_frames,
)

X, Y = make_classification(
    240, 10, n_informative=6, n_classes=3, n_clusters_per_class=1, random_state=0
)


def mean_path(tree):
    """Comparisons of a tree on its training samples, one by one."""
    paths = tree.decision_path(X).toarray()
    inner = tree.tree_.children_left >= 0
    return paths[:, inner].sum(axis=1).mean()


# -- costs -----------------------------------------------------------------------------


def test_a_tree_costs_the_comparisons_on_the_mean_path():
    tree = DecisionTreeClassifier(max_depth=4, random_state=0).fit(X, Y)
    assert macs_of(tree, "branch") == int(np.ceil(mean_path(tree)))


@pytest.mark.parametrize(
    "ensemble",
    [
        ExtraTreesClassifier(5, max_depth=3, random_state=0),
        BaggingClassifier(
            DecisionTreeClassifier(max_depth=3), 4, bootstrap=False, random_state=0
        ),
    ],
)
def test_ensembles_of_trees_cost_the_sum_of_their_trees(ensemble):
    ensemble.fit(X, Y)
    expected = sum(mean_path(tree) for tree in ensemble.estimators_)
    assert macs_of(ensemble, "branch") == int(np.ceil(expected - 1e-9))


def test_boosted_trees_cost_all_trees_of_all_rounds():
    boosted = GradientBoostingClassifier(n_estimators=4, max_depth=2, random_state=0)
    # Every sample is compared at least once and at most twice in each of 4 x 3 trees.
    assert 12 < macs_of(boosted.fit(X, Y), "branch") <= 24
    histogram = HistGradientBoostingClassifier(max_iter=4, max_depth=2)
    assert 12 < macs_of(histogram.fit(X, Y), "branch") <= 24


@pytest.mark.parametrize(
    ("estimator", "macs"),
    [
        (LogisticRegression(), 30),
        (LinearDiscriminantAnalysis(), 30),
        (GaussianNB(), 30),
        (BernoulliNB(), 30),
        (KNeighborsClassifier(), 2400),
        (MLPClassifier((7,), max_iter=2000, random_state=0), 10 * 7 + 7 * 3),
        (make_pipeline(StandardScaler(), PCA(4), LogisticRegression()), 40 + 12),
        (OneVsRestClassifier(LogisticRegression()), 30),
        (CalibratedClassifierCV(LogisticRegression(), cv=2), 60),
        (GridSearchCV(LogisticRegression(), {"C": [1.0]}, cv=2), 30),
        (
            VotingClassifier(
                [("a", LogisticRegression()), ("b", GaussianNB())], voting="soft"
            ),
            60,
        ),
    ],
    ids=lambda value: getattr(type(value), "__name__", None),
)
def test_costs_of_other_kinds(estimator, macs):
    assert macs_of(estimator.fit(X, Y), "branch") == macs
    assert macs_of(FrozenEstimator(estimator), "branch") == macs


def test_support_vectors_cost_a_product_each():
    machine = SVC().fit(X, Y)
    assert macs_of(machine, "branch") == 10 * machine.n_support_.sum()


def test_a_cost_that_is_given_counts():
    tree = DecisionTreeClassifier().fit(X, Y)
    tree.macs_ = 7
    assert macs_of(tree, "branch") == 7


class Unknown(ClassifierMixin, BaseEstimator):
    pass


@pytest.mark.parametrize(
    "estimator", [Unknown(), FrozenEstimator(Unknown())], ids=["plain", "frozen"]
)
def test_an_unknown_cost_is_an_error_that_says_what_to_set(estimator):
    with pytest.raises(ValueError, match=r"MACs of branch .* Set its attribute macs_"):
        macs_of(estimator, "branch")


# -- in a cascade ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "classifier",
    [
        DecisionTreeClassifier(max_depth=3),
        RandomForestClassifier(5),
        HistGradientBoostingClassifier(max_iter=5),
        GradientBoostingClassifier(n_estimators=3),
        AdaBoostClassifier(n_estimators=3),
        GaussianNB(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_classifier_is_a_branch_and_a_last_stage(classifier):
    as_branch = CascadeClassifier(branch=classifier, margin=0.05, random_state=0).fit(
        X, Y
    )
    as_last = CascadeClassifier(
        branch=LogisticRegression(),
        final_estimator=classifier,
        margin=0.05,
        random_state=0,
    ).fit(X, Y)
    for cascade in (as_branch, as_last):
        assert cascade.score(X, Y) > 0.5
        assert (np.diff(cascade.depth_costs_) > 0).all()
        assert np.isfinite(cascade.flops_reduction(X))


# -- fits and probabilities ------------------------------------------------------------


def test_soft_targets_are_rows_repeated_by_class():
    soft = np.full((240, 3), 0.1)
    soft[np.arange(240), Y] = 0.8
    weight = np.random.default_rng(0).uniform(0.5, 1.5, 240)
    fitted = fit_as_branch(LogisticRegression(), X, (10,), Y, weight, soft)
    share = np.repeat(weight, 3) * soft.ravel()
    plain = LogisticRegression().fit(np.repeat(X, 3, axis=0), [0, 1, 2] * 240, share)
    np.testing.assert_allclose(fitted.coef_, plain.coef_, rtol=1e-5, atol=1e-8)


def test_rows_of_weight_zero_are_absent():
    weight = (np.arange(240) % 2).astype(float)
    fitted = fit_as_branch(DecisionTreeClassifier(), X, (10,), Y, weight, None)
    assert fitted.tree_.n_node_samples[0] == 120


def test_target_classes_are_those_that_a_fit_would_see():
    soft = np.array([[0.995, 0.005, 0.0], [0.6, 0.4, 0.0]])
    codes = np.array([0, 0])
    assert count_target_classes(LogisticRegression(), codes, soft) == 2
    assert count_target_classes(LogisticRegression(), codes, soft[:1]) == 1
    assert count_target_classes(LogisticRegression(), codes, None) == 1
    # A torch branch goes by the labels; soft targets are beside them.
    assert count_target_classes(BranchClassifier(), codes, soft) == 1


def test_a_torch_branch_takes_the_tap_in_its_own_shape():
    weight = np.ones(240)
    branch = BranchClassifier("gap", feature_shape=(5, 2), max_iter=2, device="cpu")
    fitted = fit_as_branch(branch, X, (10,), Y, weight, None)
    assert fitted.feature_shape_ == (5, 2)
    proba = probabilities_of(fitted, 3)(torch.from_numpy(X))
    np.testing.assert_allclose(proba, fitted.predict_proba(X))


# -- torch branches and others ---------------------------------------------------------


def asks_for(name, code):
    """Lines of code that ask whether something is of a class of that name."""
    lines = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.MatchClass):
            kinds = [node.cls]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            asks = node.func.id in ("isinstance", "issubclass")
            kinds = node.args[1:] if asks else []
        else:
            continue
        names = [
            getattr(part, "id", getattr(part, "attr", None))
            for kind in kinds
            for part in ast.walk(kind)
        ]
        lines += [node.lineno] if name in names else []
    return lines


def test_one_file_alone_tells_torch_branches_from_others():
    """Wherever else it matters, a function of that file is used."""
    package = Path(sk_calex.__file__).parent
    asking = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if asks_for("BaseBranch", path.read_text(encoding="utf-8"))
    }
    assert asking == {"branches/_as_branch.py"}


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(a, B)",
        "isinstance(a, (C, x.B))",
        "issubclass(a, C | B)",
        "match a:\n    case B():\n        pass",
    ],
)
def test_questions_for_a_class_are_found(code):
    assert asks_for("B", code)
    assert not asks_for("D", code)
    assert not asks_for("B", "B(isinstance(a, C), b=B)")


def test_torch_branches_are_told_from_others():
    for branch in (BranchClassifier(), PrototypePoolingClassifier()):
        assert as_torch_branch(branch) is branch
        assert not takes_frames(branch)
    assert as_torch_branch(LogisticRegression()) is None
    assert takes_frames(LogisticRegression())


SOFT = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]])


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_labels_and_soft_targets_are_mixed_for_any_classifier(alpha):
    codes, before = np.array([1, 2]), SOFT.copy()
    model = LogisticRegression()
    branch, soft = share_soft_targets(model, codes, SOFT, alpha)
    assert branch is model
    expected = alpha * SOFT + (1 - alpha) * np.eye(3)[codes]
    np.testing.assert_allclose(soft, expected, atol=1e-15)
    np.testing.assert_array_equal(SOFT, before)


def test_a_torch_branch_mixes_for_itself():
    given = BranchClassifier(alpha=0.9, random_state=0)
    branch, soft = share_soft_targets(given, np.array([1, 2]), SOFT, 0.25)
    assert (branch.alpha, given.alpha) == (0.25, 0.9)
    assert branch.random_state == 0
    assert soft is SOFT


@pytest.mark.parametrize("branch", [LogisticRegression(), BranchClassifier()])
def test_without_a_share_or_soft_targets_nothing_is_mixed(branch):
    codes = np.array([1, 2])
    same, soft = share_soft_targets(branch, codes, SOFT, None)
    assert same is branch
    assert soft is SOFT
    assert share_soft_targets(branch, codes, None, 0.25)[1] is None
