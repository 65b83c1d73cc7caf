"""Scorers, alone and inside scikit-learn's searches."""

import pickle

import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.pipeline import make_pipeline

from sk_calex import (
    MarginSearchCV,
    accuracy_at_flops_scorer,
    flops_reduction_scorer,
    operating_curve,
)
from sk_calex.baselines import BoostNetClassifier, SDNClassifier
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.model_selection._estimators import default_values
from sk_calex.policies import (
    EntropyThreshold,
    ExitPolicy,
    LearnedGate,
    OptimalStopping,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

X, Y = images(150)
Z, W = images(90, seed=5)
SCORING = {"accuracy": "accuracy", "flops": flops_reduction_scorer}


def cascade(**params):
    settings = {"branch": small_branch("gap"), "min_support": 3, "random_state": 0}
    return flat_cascade(tiny_backbone(), **(settings | {"margin": 0.2} | params))


@pytest.fixture(scope="module")
def fitted():
    return cascade().fit(X, Y)


def wrapped(fitted):
    pipeline = make_pipeline(
        tiny_backbone(), clone(fitted).set_params(input="features", backbone=None)
    ).fit(X, Y)
    search = MarginSearchCV(FrozenEstimator(fitted), max_accuracy_drop=1.0)
    return {
        "itself": fitted,
        "grid": GridSearchCV(clone(fitted), {}, cv=2).fit(X, Y),
        "pipeline": pipeline,
        "pipeline of one": make_pipeline(clone(fitted)).fit(X, Y),
        "frozen": FrozenEstimator(fitted),
        "search": search.set_params(margins=[0.2]).fit(X, Y),
    }


def test_flops_reduction_of_whatever_holds_the_cascade(fitted):
    saved = fitted.flops_reduction(Z)
    for name, estimator in wrapped(fitted).items():
        score = flops_reduction_scorer(estimator, Z, W)
        assert score == pytest.approx(saved), name
        assert isinstance(score, float)


def test_weights_mean_repetition(fitted):
    weight = np.random.default_rng(0).integers(0, 3, len(Z))
    rows = np.repeat(np.arange(len(Z)), weight)
    assert flops_reduction_scorer(fitted, Z, sample_weight=weight) == pytest.approx(
        fitted.flops_reduction(Z[rows])
    )
    at = accuracy_at_flops_scorer(flops_budget=0.1)
    assert at(fitted, Z, W, weight) == pytest.approx(at(fitted, Z[rows], W[rows]))


@pytest.mark.parametrize(
    "estimator",
    [
        LogisticRegression(),
        make_pipeline(LogisticRegression()),
        GridSearchCV(cascade(), {}),
    ],
    ids=["classifier", "pipeline", "unfitted search"],
)
def test_no_cascade(estimator):
    with pytest.raises(TypeError, match="estimator must be a cascade, a pipeline"):
        flops_reduction_scorer(estimator, Z)


@pytest.mark.parametrize("budget", [0.0, 0.15, 0.3])
def test_accuracy_at_flops_by_hand(fitted, budget):
    values = [-0.3, 0.0, 0.2, 0.5]
    curve = operating_curve(fitted, Z, W, values)
    accuracy = dict(zip(curve.flops_reduction, curve.accuracy, strict=True))
    first = stage_table(fitted, Z).predicted[0] == W
    everybody = 1 - fitted.depth_costs_[0] / sum(fitted.layout_.stage_macs)
    accuracy[everybody] = first.mean()
    best = max(right for saved, right in accuracy.items() if saved >= budget)
    scorer = accuracy_at_flops_scorer(flops_budget=budget, values=iter(values))
    assert scorer(fitted, Z, W) == pytest.approx(best)
    # As often as one likes, and wherever it is now.
    moved = cascade(margin=-0.4).fit(X, Y)
    assert scorer(moved, Z, W) == pytest.approx(best)


def test_more_to_save_is_never_more_accurate(fitted):
    budgets = np.linspace(0, 1, 11)
    scores = [accuracy_at_flops_scorer(flops_budget=b)(fitted, Z, W) for b in budgets]
    assert (np.diff(scores) <= 0).all()
    assert scores[0] > 0.5
    assert scores[-1] == 0  # nothing saves all


@pytest.mark.parametrize(
    "calibrator",
    [
        None,
        SharedThreshold(),
        EntropyThreshold(),
        Patience(),
        SurvivorThresholdCalibrator(min_support=3),
        Quota(),
        LearnedGate(),
        RegretPriced(),
        OptimalStopping(),
    ],
    ids=repr,
)
def test_each_knob_has_values_that_span_its_curve(fitted, calibrator):
    scorer = accuracy_at_flops_scorer(flops_budget=0.1)
    moved = clone(fitted).fit(X, Y).set_calibrator(calibrator)
    assert scorer(moved, Z, W) > 0.5


@pytest.mark.parametrize("method", [SDNClassifier, BoostNetClassifier])
def test_other_methods(method):
    other = method(tiny_backbone(), max_iter=5, device="cpu", random_state=0)
    other.fit(X, Y)
    curve = operating_curve(other, Z, W, default_values(other))
    assert np.ptp(curve.flops_reduction) > 0.1
    budget = max(curve.flops_reduction.mean(), 0)
    assert 0 <= accuracy_at_flops_scorer(flops_budget=budget)(other, Z, W) <= 1
    assert flops_reduction_scorer(other, Z) == other.flops_reduction(Z)


class Own(ExitPolicy):
    knob = "level"

    def __init__(self, level=0.5):
        self.level = level

    def _fit(self, given):
        self._set_all(given, self.level)


def test_an_unknown_knob_is_refused(fitted):
    moved = clone(fitted).fit(X, Y).set_calibrator(Own())
    scorer = accuracy_at_flops_scorer(flops_budget=0.1)
    with pytest.raises(
        ValueError, match=r"no values of 'calibrator__level' are known for"
    ):
        scorer(moved, Z, W)
    scorer.set_params(values=[0.5, 0.8])
    assert scorer(moved, Z, W) > 0.4


def test_labels_are_needed_for_an_accuracy(fitted):
    with pytest.raises(ValueError, match="an accuracy needs labels"):
        accuracy_at_flops_scorer(flops_budget=0.1)(fitted, Z)


@pytest.mark.parametrize("budget", [-0.1, 1.5, np.nan])
def test_bad_budget(budget):
    with pytest.raises(ValueError, match=r"flops_budget=.* must lie in \[0, 1\]"):
        accuracy_at_flops_scorer(flops_budget=budget)


def test_copies():
    scorer = accuracy_at_flops_scorer(flops_budget=0.3, values=(0.0, 0.1))
    assert repr(scorer) == "AccuracyAtFlopsScorer(flops_budget=0.3, values=[0.0, 0.1])"
    assert repr(flops_reduction_scorer) == "FlopsReductionScorer()"
    for copy in (clone(scorer), pickle.loads(pickle.dumps(scorer))):
        assert copy.get_params() == scorer.get_params()


def test_several_metrics_in_a_search():
    scoring = SCORING | {"at": accuracy_at_flops_scorer(flops_budget=0.1)}
    grid = {"margin": [-0.2, 0.4]}
    search = GridSearchCV(cascade(), grid, scoring=scoring, refit="at", cv=2)
    search = clone(search).fit(X, Y)
    results = search.cv_results_
    # The operating point matters to the first two, not to the third.
    assert results["mean_test_flops"][0] < results["mean_test_flops"][1]
    assert np.ptp(results["mean_test_at"]) == 0
    scores = cross_validate(cascade(), X, Y, scoring=scoring, cv=2)
    assert set(scores) >= {"test_accuracy", "test_flops", "test_at"}


def test_sample_weight_reaches_the_scorers():
    """With metadata routing where it was asked for, without it always."""
    weight = np.random.default_rng(1).integers(1, 5, len(X)).astype(float)
    one = cascade(alignment="none")

    def search(estimator, scorer):
        found = GridSearchCV(estimator, {"margin": [0.2]}, scoring=scorer, cv=2)
        return found.fit(X, Y, sample_weight=weight).cv_results_["mean_test_score"]

    def routed(asked):
        with sklearn.config_context(enable_metadata_routing=True):
            scorer = clone(flops_reduction_scorer)
            scorer.set_score_request(sample_weight=asked)
            return search(clone(one).set_fit_request(sample_weight=True), scorer)

    np.testing.assert_array_equal(search(one, flops_reduction_scorer), routed(True))
    assert routed(False) != routed(True)
    scores = GridSearchCV(
        one, {"margin": [0.2]}, scoring=SCORING, refit="accuracy", cv=2
    )
    scores.fit(X, Y, sample_weight=weight)
    np.testing.assert_array_equal(scores.cv_results_["mean_test_flops"], routed(True))
