"""A fit that fails or is interrupted leaves nothing, at whatever step.

Each estimator is fitted once to see which functions of the package its fit calls. Then
it is fitted again and again, interrupted where one of them is called first.
"""

import sys
from contextlib import contextmanager

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.validation import check_is_fitted

import sk_calex
from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    MarginSearchCV,
    PrototypePoolingClassifier,
    SurvivorAlignment,
    SurvivorThresholdCalibrator,
    baselines,
    policies,
)
from sk_calex.branches._heads import HEADS
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.utils._fitted_state import fitted_state
from tests._cascade_models import images, small_branch, tiny_backbone

X, Y = images(90)
HOME = sk_calex.__file__.removesuffix("__init__.py")
N_POINTS = 12


class InterruptedError_(KeyboardInterrupt):
    """What a user's Ctrl-C raises, told apart from the real one."""


@contextmanager
def traced(step):
    """Call `step` with the name of each function of the package that is called."""

    def trace(frame, event, arg):
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            step(f"{frame.f_code.co_filename}:{frame.f_code.co_qualname}")

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def unshared(estimator):
    """A clone that trains by itself, as its siblings would spare it the steps."""
    new = clone(estimator)
    for owner in (new, getattr(new, "estimator", new)):
        vars(owner).pop("_shared_fits", None)
    return new


def steps_of(estimator, fit):
    """Names of functions that a fit calls, some of them, in the order of the calls."""
    fit(unshared(estimator))  # what the process remembers is not called again
    fresh, names = unshared(estimator), {}
    with traced(lambda name: names.setdefault(name)):
        fit(fresh)
    names = list(names)
    picked = np.linspace(0, len(names) - 1, N_POINTS).round().astype(int)
    return [names[k] for k in sorted(set(picked))]


def interrupt(fit, at):
    def step(name):
        if name == at:
            raise InterruptedError_

    with traced(step):
        fit()


def same_state(one, two):
    return one.keys() == two.keys() and all(one[k] is two[k] for k in one)


def walk(estimator, fit, again):
    """Interrupt fits of a fresh estimator, and of one that was fitted before."""
    points = steps_of(estimator, fit)
    assert len(points) > 5
    for at in points:
        fresh = unshared(estimator)
        with pytest.raises(InterruptedError_):
            interrupt(lambda fresh=fresh: fit(fresh), at)
        assert not fitted_state(fresh), at
        with pytest.raises(NotFittedError):
            check_is_fitted(fresh)
    fitted = fit(unshared(estimator))
    for at in points[:: len(points) // 3]:
        before = fitted_state(fitted)
        with pytest.raises(InterruptedError_):
            interrupt(lambda: again(fitted), at)
        # Not a mixture of two fits: nothing, or, had it not begun, the one before.
        after = fitted_state(fitted)
        assert not after or same_state(before, after)
        fit(fitted)


SMALL = {"max_iter": 2, "device": "cpu", "random_state": 0, "cv": 0.5}
FAST = {"branch": small_branch("gap", max_iter=2), "cv": 0.5, "random_state": 0}
CASCADES = [
    CascadeClassifier(tiny_backbone(), **FAST),
    CascadeClassifier(tiny_backbone(), **FAST, ensemble=True),
    CascadeClassifier(
        tiny_backbone(),
        branch=GaussianNB(),
        final_estimator=GaussianNB(),
        alignment=SurvivorAlignment("hard", cross_fit=2),
        calibrator=policies.Quota(),
        cv=2,
    ),
    baselines.BTSEEClassifier(tiny_backbone(), **FAST),
    baselines.NoAlignmentClassifier(tiny_backbone(), **FAST),
    *(
        method(tiny_backbone(), **SMALL)
        for method in map(baselines.__dict__.get, baselines.__all__)
        if issubclass(method, baselines.JointCascade)
        and method is not baselines.JointCascade
    ),
    MarginSearchCV(CascadeClassifier(**FAST), max_accuracy_drop=1.0, cv=2),
]


@pytest.mark.parametrize("cascade", CASCADES, ids=lambda c: type(c).__name__)
def test_an_interrupted_fit_of_a_cascade_leaves_nothing(cascade):
    flat = X.reshape(len(X), -1)[:, :20]
    given = flat if isinstance(cascade, MarginSearchCV) else X

    walk(
        cascade,
        lambda estimator: estimator.fit(given, Y),
        lambda fitted: fitted.fit(given[:60], Y[:60]),
    )


def test_an_interrupted_fit_of_a_backbone_leaves_nothing():
    walk(
        tiny_backbone(),
        lambda estimator: estimator.fit(X),
        lambda fitted: fitted.fit(X[:, :, ::2, ::2]),
    )


BRANCHES = [
    *(
        BranchClassifier(head, feature_shape=(4, 3, 3), max_iter=2, random_state=0)
        for head in sorted(set(HEADS) - {"conv1d"})
    ),
    BranchClassifier("conv1d", feature_shape=(9, 4), max_iter=2, random_state=0),
    BranchClassifier("gap", feature_shape=(4, 3, 3), max_iter=2, early_stopping=True),
    PrototypePoolingClassifier(widths=(4,), feature_shape=(4, 3, 3), max_iter=2),
]


@pytest.mark.parametrize("branch", BRANCHES, ids=lambda b: getattr(b, "head", "pool"))
def test_an_interrupted_fit_of_a_branch_leaves_nothing(branch):
    flat = X.reshape(len(X), -1)[:, :36]
    walk(
        branch,
        lambda estimator: estimator.fit(flat, Y),
        lambda fitted: fitted.fit(flat, Y % 2),
    )


def test_an_interrupted_fit_that_continues_leaves_nothing():
    """Its head was changed in place: neither the fit before nor this one."""
    flat = X.reshape(len(X), -1)[:, :36]
    branch = BranchClassifier("gap", feature_shape=(4, 3, 3), max_iter=2)
    branch.set_params(warm_start=True, random_state=0)
    names = {}
    fitted = clone(branch).fit(flat, Y)
    with traced(lambda name: names.setdefault(name)):
        fitted.fit(flat, Y)
    begun = [name for name in names if "_base" in name or "_training" in name][2:]
    assert len(begun) > 5
    for at in begun[::3]:
        fitted = clone(branch).fit(flat, Y)
        with pytest.raises(InterruptedError_):
            interrupt(lambda fitted=fitted: fitted.fit(flat, Y), at)
        with pytest.raises(NotFittedError):
            fitted.predict(flat)
        assert fitted.fit(flat, Y).predict(flat).shape == Y.shape


def test_an_interrupted_fit_is_not_shared():
    cascade = CascadeClassifier(tiny_backbone(), **FAST)
    sibling = clone(cascade)
    points = steps_of(cascade, lambda estimator: estimator.fit(X, Y))
    for at in points:
        with pytest.raises(InterruptedError_):
            interrupt(lambda: sibling.fit(X, Y), at)
        if len(sibling._shared_fits):  # interrupted after the training, which was whole
            break
    alone = unshared(cascade).fit(X, Y)
    np.testing.assert_array_equal(
        clone(cascade).fit(X, Y).predict_proba(X), alone.predict_proba(X)
    )


def test_a_refused_fit_leaves_nothing():
    """Of other classes, which do not fit the backbone: not the earlier fit, either."""
    cascade = CascadeClassifier(tiny_backbone(), **FAST).fit(X, Y)
    with pytest.raises(ValueError, match="outputs"):
        cascade.fit(X, Y % 2)
    for ask in (cascade.predict, cascade.predict_proba, cascade.exit_depth):
        with pytest.raises(NotFittedError):
            ask(X)
    with pytest.raises(AttributeError):
        _ = cascade.thresholds_
    assert cascade.fit(X, Y).predict(X).shape == Y.shape


RULES = [
    rule()
    for rule in map(policies.__dict__.get, policies.__all__)
    if isinstance(rule, type)
    and issubclass(rule, ExitPolicy)
    and rule is not ExitPolicy
]


@pytest.mark.parametrize(
    "rule",
    [*RULES, SurvivorThresholdCalibrator()],
    ids=lambda rule: type(rule).__name__,
)
def test_an_interrupted_fit_of_a_rule_leaves_nothing(rule):
    rng = np.random.default_rng(0)
    proba, y = rng.dirichlet(np.ones(3), size=(3, 60)), rng.integers(0, 3, 60)
    if isinstance(rule, policies.OwnGate):  # needs a method with a gate
        proba = sk_calex.calibration.StageTable.from_probabilities(proba)
        proba.gate[:] = 0.5
    fit = {"costs": [1, 2, 3]}
    walk(
        rule,
        lambda estimator: estimator.fit(proba, y, **fit),
        lambda fitted: fitted.fit(proba, y[::-1], **fit),
    )


def test_an_interrupted_calibrator_of_one_branch_leaves_nothing():
    rng = np.random.default_rng(0)
    proba, y = rng.dirichlet(np.ones(3), size=60), rng.integers(0, 3, 60)
    walk(
        SurvivorThresholdCalibrator(),
        lambda estimator: estimator.fit(proba, y),
        lambda fitted: fitted.fit(proba, y[::-1]),
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_move_leaves_the_cascade_where_it_was(monkeypatch, error):
    cascade = CascadeClassifier(tiny_backbone(), **FAST).fit(X, Y)
    before = fitted_state(cascade), cascade.get_params(deep=False)

    def fail(*args, **kwargs):
        raise error

    for move in (
        lambda: cascade.set_margin(0.3),
        lambda: cascade.set_operating_point(0.3),
        lambda: cascade.set_calibrator(SurvivorThresholdCalibrator()),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(SurvivorThresholdCalibrator, "_fit", fail)
            with pytest.raises(error):
                move()
        assert same_state(before[0], fitted_state(cascade))
        assert same_state(before[1], cascade.get_params(deep=False))
    assert cascade.set_margin(0.3).calibrator_.margin == 0.3
