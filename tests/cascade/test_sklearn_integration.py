"""scikit-learn around a cascade on a real convolutional backbone.

Everything runs twice where it makes sense: with images as X, and with their features.
"""

import pickle

import joblib
import numpy as np
import pytest
import sklearn
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupShuffleSplit,
    PredefinedSplit,
    cross_val_score,
)
from sklearn.pipeline import Pipeline, make_pipeline

from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

X, Y = images(160)
FORMS = ["samples", "features"]


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(X)


@pytest.fixture(params=FORMS)
def form(request, features):
    """Constructor parameters and the X that fits them."""
    if request.param == "samples":
        return {"backbone": tiny_backbone()}, X
    return {"input": "features"}, features


def cascade(params, **more):
    more = {
        "branch": small_branch(),
        "margin": 0.05,
        "random_state": 0,
        "min_support": 3,
    } | more
    return flat_cascade(**params, **more)


def test_pipeline_of_backbone_and_cascade_is_the_cascade_on_images():
    pipeline = Pipeline(
        [("backbone", tiny_backbone()), ("cascade", cascade({"input": "features"}))]
    ).fit(X, Y)
    whole = cascade({"backbone": tiny_backbone()}).fit(X, Y)
    labels, depth = whole.predict(X, return_depth=True)
    np.testing.assert_array_equal(pipeline.predict(X), labels)
    np.testing.assert_array_equal(pipeline.predict(X, return_depth=True)[1], depth)
    assert 0 < np.mean(depth < 2) < 1
    assert pipeline[-1].layout_ == whole.layout_
    np.testing.assert_array_equal(pipeline[-1].depth_costs_, whole.depth_costs_)


def test_a_pipeline_of_one_step_takes_images():
    pipeline = make_pipeline(cascade({"backbone": tiny_backbone()})).fit(X, Y)
    assert pipeline.score(X, Y) > 0.5


def test_the_backbone_is_a_plain_transformer_step():
    pipeline = make_pipeline(tiny_backbone(), LogisticRegression(max_iter=500))
    assert pipeline.fit(X[:100], Y[:100]).score(X[100:], Y[100:]) > 0.5


def test_grid_search_over_margin(form):
    params, data = form
    margins = [-0.3, 0.0, 0.5]
    search = GridSearchCV(cascade(params), {"margin": margins}, cv=2, n_jobs=None)
    search.fit(data, Y)
    assert search.best_params_["margin"] in margins
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.margin == search.best_params_["margin"]
    assert search.predict(data).shape == Y.shape


def test_grid_search_over_a_parameter_of_the_branch(form):
    params, data = form
    search = GridSearchCV(
        cascade(params), {"branch__temperature": [1.0, 4.0], "margin": [0.0]}, cv=2
    ).fit(data, Y)
    best = search.best_params_["branch__temperature"]
    assert all(b.temperature == best for b in search.best_estimator_.branches_)


def test_grid_search_inside_a_pipeline():
    pipeline = make_pipeline(tiny_backbone(), cascade({"input": "features"}))
    grid = {"cascadeclassifier__margin": [-0.2, 0.2]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(X, Y)
    # Clones of the backbone share the module.
    assert search.best_estimator_[0].module is pipeline[0].module


def test_cross_val_score(form):
    params, data = form
    scores = cross_val_score(cascade(params), data, Y, cv=3)
    assert scores.shape == (3,)
    assert scores.min() > 0.4


def test_clone_is_unfitted_and_shares_the_module(form):
    params, data = form
    fitted = cascade(params).fit(data, Y)
    copy = clone(fitted)
    assert not hasattr(copy, "classes_")
    if fitted.backbone is not None:
        assert copy.backbone is not fitted.backbone
        assert copy.backbone.module is fitted.backbone.module
        assert fitted.backbone_.module is fitted.backbone.module
    np.testing.assert_array_equal(
        copy.fit(data, Y).predict_proba(data), fitted.predict_proba(data)
    )


@pytest.mark.parametrize("by", ["pickle", "joblib"])
def test_saved_and_loaded_it_answers_the_same(form, by, tmp_path):
    params, data = form
    fitted = cascade(params).fit(data, Y)
    if by == "pickle":
        loaded = pickle.loads(pickle.dumps(fitted))
    else:
        joblib.dump(fitted, tmp_path / "cascade.joblib")
        loaded = joblib.load(tmp_path / "cascade.joblib")
    for ours, theirs in zip(
        fitted.predict(data, return_depth=True),
        loaded.predict(data, return_depth=True),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(
        loaded.set_margin(0.1).thresholds_, fitted.set_margin(0.1).thresholds_
    )


def test_string_labels_give_the_same_cascade(form):
    params, data = form
    names = np.array(["ant", "bee", "cat"])
    words = cascade(params).fit(data, names[Y])
    codes = cascade(params).fit(data, Y)
    assert words.classes_.tolist() == names.tolist()
    np.testing.assert_array_equal(words.predict(data), names[codes.predict(data)])
    assert words.score(data, names[Y]) == codes.score(data, Y)


def test_data_frames_of_features_carry_the_layout():
    pandas = pytest.importorskip("pandas")
    backbone = tiny_backbone().set_output(transform="pandas")
    frame = backbone.fit(X).transform(X)
    assert isinstance(frame, pandas.DataFrame)
    from_frame = cascade({"input": "features"}).fit(frame, Y)
    array = tiny_backbone().fit(X).transform(X)
    from_array = cascade({"input": "features"}).fit(array, Y)
    np.testing.assert_array_equal(from_frame.predict(frame), from_array.predict(array))
    assert from_frame.feature_names_in_.tolist() == frame.columns.tolist()
    # Names say nothing of MACs; the backbone does.
    with pytest.raises(ValueError, match="backbone=FrozenEstimator"):
        from_frame.cost(frame)
    backbone.set_output(transform="default")
    told = flat_cascade(backbone.fit(X), input="features", branch=small_branch())
    with pytest.raises(ValueError, match="X has 3 columns"):
        told.fit(frame.iloc[:, :3].to_numpy(), Y)
    assert told.fit(frame, Y).cost(frame).shape == Y.shape


def test_sample_weight_is_routed(form):
    params, data = form
    rng = np.random.default_rng(0)
    weight = rng.integers(1, 4, len(Y)).astype(float)
    with sklearn.config_context(enable_metadata_routing=True):
        one = cascade(params).set_fit_request(sample_weight=True)
        one.set_score_request(sample_weight=True)
        pipeline = make_pipeline(one).fit(data, Y, sample_weight=weight)
        search = GridSearchCV(one, {"margin": [0.0]}, cv=2)
        search.fit(data, Y, sample_weight=weight)
    direct = cascade(params).fit(data, Y, sample_weight=weight)
    np.testing.assert_array_equal(
        pipeline.predict_proba(data), direct.predict_proba(data)
    )
    unweighted = cascade(params).fit(data, Y)
    assert not np.array_equal(
        direct.calibration_.weight, unweighted.calibration_.weight
    )
    found = search.best_estimator_.calibration_.weight
    assert set(found) <= {1.0, 2.0, 3.0}
    assert len(set(found)) > 1


def test_groups_are_routed_to_the_split(form):
    params, data = form
    groups = np.arange(len(Y)) // 8
    with sklearn.config_context(enable_metadata_routing=True):
        split = GroupShuffleSplit(1, test_size=0.3, random_state=0)
        split.set_split_request(groups=True)
        fitted = cascade(params, cv=split).fit(data, Y, groups=groups)
        _, held = next(split.split(np.zeros((len(Y), 1)), Y, groups))
    assert len(fitted.calibration_.labels) == len(held)
    np.testing.assert_array_equal(fitted.calibration_.labels, Y[np.sort(held)])


def test_weight_means_repetition_under_a_fixed_split(form):
    params, data = form
    rng = np.random.default_rng(1)
    weight = rng.integers(0, 3, len(Y))
    fold = np.where(np.arange(len(Y)) % 4 == 0, 0, -1)
    rows = np.repeat(np.arange(len(Y)), weight)
    branch = small_branch("gap")
    weighted = cascade(params, branch=branch, cv=PredefinedSplit(fold))
    weighted.fit(data, Y, sample_weight=weight)
    repeated = cascade(params, branch=branch, cv=PredefinedSplit(fold[rows]))
    repeated.fit(data[rows], Y[rows])
    np.testing.assert_allclose(
        weighted.predict_proba(data), repeated.predict_proba(data), rtol=1e-5
    )
    np.testing.assert_allclose(weighted.support_, repeated.support_, rtol=1e-9)
    np.testing.assert_allclose(weighted.thresholds_, repeated.thresholds_, rtol=1e-5)
