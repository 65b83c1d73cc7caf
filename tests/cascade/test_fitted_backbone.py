"""A fitted backbone inside a FrozenEstimator: used as it is, kept by clones."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from sk_calex import (
    FrozenBackbone,
    MarginSearchCV,
    flops_reduction_scorer,
)
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

X, Y = images(150)
Z, W = images(90, seed=5)
SCORING = {"accuracy": "accuracy", "flops": flops_reduction_scorer}


@pytest.fixture(scope="module")
def backbone():
    return tiny_backbone().set_output(transform="pandas").fit(X)


def cascade(backbone, **params):
    settings = {"branch": small_branch("gap"), "min_support": 3, "random_state": 0}
    return flat_cascade(backbone, **(settings | {"margin": 0.2} | params))


def counted_fits(monkeypatch):
    """Names of the methods of any backbone that were called since."""
    calls = []
    for name in ("fit", "transform"):
        method = getattr(FrozenBackbone, name)

        def counted(self, X, *rest, _method=method, _name=name, **more):
            calls.append(_name)
            return _method(self, X, *rest, **more)

        monkeypatch.setattr(FrozenBackbone, name, counted)
    return calls


def test_searches_over_data_frames_know_the_macs(backbone):
    frame = backbone.transform(X)
    estimator = cascade(FrozenEstimator(backbone), input="features")
    grid = {"margin": [0.0, 0.2, 0.4]}
    search = GridSearchCV(estimator, grid, scoring=SCORING, refit="flops", cv=2)
    search.fit(frame, Y)
    plain = clone(backbone).set_output(transform="default").fit(X)
    other = GridSearchCV(clone(estimator), grid, scoring=SCORING, refit="flops", cv=2)
    other.fit(plain.transform(X), Y)
    for key in ("mean_test_flops", "mean_test_accuracy"):
        np.testing.assert_array_equal(search.cv_results_[key], other.cv_results_[key])
    assert np.ptp(search.cv_results_["mean_test_flops"]) > 0
    saved = search.best_estimator_.flops_reduction(backbone.transform(Z))
    assert saved == flops_reduction_scorer(search, backbone.transform(Z))


def test_without_it_the_error_says_what_to_do(backbone):
    search = GridSearchCV(
        cascade(backbone, input="features"),
        {"margin": [0.0]},
        scoring=flops_reduction_scorer,
        error_score="raise",
        cv=2,
    )
    with pytest.raises(ValueError, match=r"backbone=FrozenEstimator\(backbone\)"):
        search.fit(backbone.transform(X), Y)


def test_it_is_not_fitted_again(backbone, monkeypatch):
    calls = counted_fits(monkeypatch)
    kept = cascade(FrozenEstimator(backbone)).fit(X, Y)
    assert "fit" not in calls
    assert kept.backbone_ is backbone
    anew = cascade(clone(backbone)).fit(X, Y)
    assert "fit" in calls
    for answer in ("predict_proba", "exit_depth", "cost"):
        np.testing.assert_array_equal(
            getattr(kept, answer)(Z), getattr(anew, answer)(Z)
        )
    assert clone(kept).backbone.estimator is backbone


def test_it_must_be_fitted():
    with pytest.raises(NotFittedError):
        cascade(FrozenEstimator(tiny_backbone())).fit(X, Y)


def test_nothing_else_may_be_in_it():
    frozen = FrozenEstimator(LogisticRegression().fit([[0], [1]], [0, 1]))
    with pytest.raises(TypeError, match="FrozenBackbone or None, got LogisticReg"):
        cascade(frozen).fit(X, Y)


def test_searches_of_the_library_use_it_as_it_is(backbone, monkeypatch):
    calls = counted_fits(monkeypatch)
    search = MarginSearchCV(
        cascade(FrozenEstimator(backbone)), max_accuracy_drop=0.1, cv=2
    ).fit(X, Y)
    assert "fit" not in calls
    assert calls.count("transform") == 1
    found = search.best_estimator_
    assert found.backbone_ is backbone
    assert found.score(Z, W) == search.score(Z, W)


def test_taps_are_chosen_from_it(backbone):
    searches = [
        MarginSearchCV(cascade(given), flops_budget=0.1, taps="select", cv=2).fit(X, Y)
        for given in (FrozenEstimator(backbone), clone(backbone))
    ]
    kept, anew = searches
    assert kept.taps_ == anew.taps_
    assert kept.best_margin_ == anew.best_margin_
    np.testing.assert_array_equal(kept.predict(Z), anew.predict(Z))
    assert list(backbone.taps) == list(tiny_backbone().taps)
