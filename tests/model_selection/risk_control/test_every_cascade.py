"""The controller and the monitor work with every method and rule of the library."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sk_calex import (
    CascadeClassifier,
    ExitMonitor,
    ExitRiskController,
    SurvivorAlignment,
    baselines,
)
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
    first_exits,
)
from tests._cascade_models import converged_regression
from tests.inspection._inspected import HELD, data

METHODS = [name for name in baselines.__all__ if name.endswith("Classifier")]
RULES = [
    EntropyThreshold(0.5),
    LearnedGate(),
    OptimalStopping(),
    Patience(1),
    Quota(),
    RegretPriced(),
    SharedThreshold(0.8),
]


def fit(kind, **params):
    """Fit a method quickly on the features of the tiny backbone."""
    cascade = kind(
        data().backbone,
        input="features",
        cv=PredefinedSplit(HELD),
        random_state=0,
        **params,
    )
    own = cascade.get_params(deep=False)
    if "branch" in own:
        cascade.set_params(branch=converged_regression())
    if "solver" in own:
        cascade.set_params(solver="lbfgs", max_iter=4)
    return cascade.fit(data().X, data().y)


def certify(cascade, **params):
    """Certify on rows of the same kind; a fallback is as good as a certificate."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="nothing that saves FLOPs")
        safe = ExitRiskController(cascade, max_risk=0.3, **params)
        return safe.fit(data().test, data().test_y)


def check_controller(cascade, safe):
    """What holds at whatever point was found."""
    results, given = safe.path_results_, data()
    passed = results.p_value <= 0.1
    assert results.certified.tolist() == np.logical_and.accumulate(passed).tolist()
    _, depth = safe.predict(given.test, return_depth=True)
    share = np.bincount(depth, minlength=3) / len(depth)
    assert share == pytest.approx(results.depth_share[safe.best_index_])
    if not safe.is_fallback_:
        saved = safe.flops_reduction(given.test)
        assert saved == pytest.approx(safe.best_flops_reduction_)
        assert safe.best_margin_ == results.margin[safe.best_index_]
    for value, expected in zip(
        results.margin[1:].tolist(), results.depth_share[1:], strict=True
    ):
        if cascade.calibrator_.knob == "patience":
            value = int(value)
        rule = cascade._rule_at(value)
        again = first_exits(rule, stage_table(cascade, given.test))
        assert np.bincount(again, minlength=3) / len(again) == pytest.approx(expected)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_certified_along_its_own_knob(name):
    cascade = fit(getattr(baselines, name))
    safe = certify(FrozenEstimator(cascade))
    check_controller(cascade, safe)
    piped = certify(make_pipeline(FunctionTransformer(), cascade))
    assert repr(piped.path_results_) == repr(safe.path_results_)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_every_rule_is_certified_along_its_own_knob(rule):
    cascade = fit(CascadeClassifier, calibrator=clone(rule))
    check_controller(cascade, certify(cascade))
    without = certify(cascade, risk="disagreement", path="agreement")
    assert len(without.path_results_) >= 1


def test_stages_that_answer_together_are_certified_against_the_last_one():
    cascade = fit(CascadeClassifier, ensemble=True)
    safe = certify(cascade)
    check_controller(cascade, safe)
    last = cascade.stage_probabilities(data().test)[-1].argmax(axis=1)
    never = ExitRiskController(cascade, max_risk=0.3, path=[2.0])
    with pytest.warns(UserWarning, match="cost more for heads"):
        never.fit(data().test, data().test_y)
    assert (never.predict(data().test) == cascade.classes_[last]).all()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_watched(name):
    cascade = fit(getattr(baselines, name))
    monitor = ExitMonitor(cascade, random_state=0).fit(data().test[:120])
    labels = monitor.update_predict(data().test[120:])
    assert (labels == cascade.predict(data().test[120:])).all()
    assert monitor.n_seen_ == 120


def test_method_that_would_be_refitted_is_refused():
    """With one margin for alignment and exits, another margin is another training."""
    cascade = fit(
        CascadeClassifier, margin=0.05, alignment=SurvivorAlignment(margin="same")
    )
    with pytest.raises(ValueError, match="trains the branches for one margin"):
        certify(cascade)
