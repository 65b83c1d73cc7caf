"""What a search does to X and to its estimator before and after it searches."""

import numpy as np
import pytest
import sklearn
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_calex.model_selection._estimators import cascade_in
from tests._cascade_models import flat_cascade, small_branch, tiny_backbone
from tests.model_selection._searches import X, Y, cascade, features, search

__all__ = ["features"]  # a fixture


def test_a_frozen_search_keeps_the_steps_before_its_cascade(features):
    scaled = make_pipeline(
        StandardScaler(),
        flat_cascade(branch=small_branch("gap"), min_support=3, random_state=0),
    )
    inner = GridSearchCV(scaled, {"cascadeclassifier__margin": [0.0, 0.1]}, cv=2)
    rows = np.asarray(features) * 100 + 5
    inner.fit(rows, Y)
    found = search(FrozenEstimator(inner)).fit(rows, Y)
    assert found.score(rows, Y) == pytest.approx(found.best_score_)
    assert inner.best_estimator_[-1] is not found.best_estimator_[-1]


def test_a_frozen_search_keeps_the_taps_it_chose(features):
    inner = search(taps="select").fit(features, Y)
    found = search(FrozenEstimator(inner), margins=[0.0, 0.3]).fit(features, Y)
    assert found.score(features, Y) == pytest.approx(found.best_score_)
    assert cascade_in(found).margin == found.best_margin_
    assert cascade_in(inner).margin == inner.best_margin_  # as it was


def test_a_frozen_last_step_is_refused_and_left_alone(features):
    fitted = cascade().fit(features, Y)
    before = fitted.margin, fitted.thresholds_.copy()
    for estimator in (
        make_pipeline(FrozenEstimator(fitted)),
        make_pipeline(make_pipeline(FrozenEstimator(fitted))),
    ):
        with pytest.raises(TypeError, match="Freeze the whole fitted pipeline"):
            search(estimator).fit(features, Y)
    assert fitted.margin == before[0]
    np.testing.assert_array_equal(fitted.thresholds_, before[1])


def test_a_fold_need_not_hold_rows_of_weight_zero(features):
    weight = np.where(np.arange(len(Y)) < len(Y) // 2, 0.0, 1.0)
    found = search(cv=4).fit(features, Y, sample_weight=weight)
    present = weight > 0
    alone = search(cv=4).fit(features[present], Y[present])
    np.testing.assert_allclose(
        found.cv_results_["mean_accuracy"], alone.cv_results_["mean_accuracy"]
    )


def test_branches_of_the_taps_that_stay(features):
    chosen = search(
        cascade(branch=[small_branch("gap", max_iter=k + 3) for k in range(2)]),
        margins=[0.1, 0.3],
        taps="select",
        max_accuracy_drop=1.0,
    ).fit(features, Y)
    kept = [features.layout.names.index(name) for name in chosen.taps_]
    best = cascade_in(chosen)
    assert [branch.max_iter for branch in best.branch] == [k + 3 for k in kept]


def test_kept_cascade_takes_samples_and_not_features():
    with sklearn.config_context(transform_output="pandas"):
        found = search(cascade(backbone=tiny_backbone(), input="samples")).fit(X, Y)
    assert not hasattr(found.best_estimator_, "feature_names_in_")
    assert found.best_estimator_.n_features_in_ == 3
    assert found.predict(X[:4]).shape == (4,)


def test_splits_passed_in_index_all_rows(features):
    weight = np.where(np.arange(len(Y)) < 20, 0.0, 1.0)
    halves = [(np.arange(20, 90), np.arange(90, 160)), (np.arange(90), np.arange(20))]
    found = search(cv=halves).fit(features, Y, sample_weight=weight)
    first = search(cv=halves[:1]).fit(features, Y)  # the second holds no weight
    np.testing.assert_allclose(
        found.cv_results_["mean_accuracy"], first.cv_results_["mean_accuracy"]
    )


@pytest.mark.parametrize("length", [100, 320])
def test_groups_of_another_length_are_refused(features, length):
    weight = np.where(np.arange(len(Y)) < 20, 0.0, 1.0)
    groups = np.arange(length) // 10
    for weights in (None, weight):
        with pytest.raises(ValueError, match="inconsistent"):
            search(cv=GroupKFold(2)).fit(
                features, Y, sample_weight=weights, groups=groups
            )


def test_taps_are_selected_on_the_features_of_a_fitted_backbone(features):
    known = FrozenEstimator(tiny_backbone().fit(X))
    found = search(cascade(backbone=known), taps="select").fit(features, Y)
    assert found.predict(features).shape == Y.shape
