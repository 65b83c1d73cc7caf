"""MarginSearchCV against a slow search that fits and predicts at every margin."""

import pickle
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import sklearn
from joblib import parallel_config
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    GroupKFold,
    PredefinedSplit,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline

from sk_calex import MarginSearchCV
from sk_calex.baselines import SDNClassifier
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.model_selection import _operating_points
from sk_calex.model_selection._estimators import SEARCH_MARGINS
from sk_calex.policies import Quota, SharedThreshold
from tests._cascade_models import tiny_backbone, tiny_net
from tests.model_selection._searches import (
    FOLDS,
    MARGINS,
    X,
    Y,
    cascade,
    features,
    search,
)

__all__ = ["features"]  # a fixture


def slowly(estimator, data, values, name="margin"):
    """Accuracy and reduction at each value, by fitting and predicting every time."""
    rows = []
    for value in values:
        right, cost, plain = [], [], []
        for train, held in FOLDS.split(data, Y):
            fitted = clone(estimator).set_params(**{name: value})
            fitted.fit(data[train], Y[train])
            right.append(fitted.predict(data[held]) == Y[held])
            cost.append(fitted.cost(data[held]))
            last = stage_table(fitted, data[held]).predicted[-1]
            plain.append(fitted.classes_[last] == Y[held])
        total = sum(fitted.layout_.stage_macs)
        rows.append(
            (
                np.concatenate(right).mean(),
                1 - np.concatenate(cost).mean() / total,
                np.concatenate(plain).mean(),
                np.std([r.mean() for r in right]),
                np.std([1 - c.mean() / total for c in cost]),
            )
        )
    return np.array(rows).T


@pytest.fixture(scope="module")
def slow(features):
    return slowly(cascade(), features, MARGINS)


def test_repr_calls_what_was_found_an_estimate(features):
    given = search(cv=FOLDS)
    assert "found" not in repr(given)
    fitted = clone(given).fit(features, Y)
    first, last = repr(fitted).rsplit("\n", 1)
    assert first == repr(given)
    assert last.startswith(f"# found {fitted.best_margin_!r}: an estimate")
    assert "ExitRiskController" in last  # what does promise something


def test_results_are_those_of_fitting_at_each_margin(features, slow):
    found = search().fit(features, Y)
    accuracy, saved, plain, std, std_saved = slow
    results = found.cv_results_
    np.testing.assert_array_equal(results["margin"], MARGINS)
    np.testing.assert_allclose(results["mean_accuracy"], accuracy)
    np.testing.assert_allclose(results["mean_flops_reduction"], saved)
    np.testing.assert_allclose(results["std_accuracy"], std)
    np.testing.assert_allclose(results["std_flops_reduction"], std_saved)
    assert found.backbone_accuracy_ == pytest.approx(plain[0])
    assert results["feasible"].all()
    assert found.search_ == "exhaustive"


@pytest.mark.parametrize("drop", [0.02, 0.05, 0.1, 0.3])
def test_cheapest_within_a_drop(features, slow, drop):
    accuracy, saved, plain, *_ = slow
    good = plain[0] - accuracy <= drop + 1e-12
    best = np.where(good, saved, -np.inf).argmax()
    if not good.any() or saved[best] < 0:
        with pytest.warns(UserWarning, match="the plain network is the best one"):
            search(max_accuracy_drop=drop).fit(features, Y)
        return
    found = search(max_accuracy_drop=drop).fit(features, Y)
    assert not found.is_fallback_
    np.testing.assert_array_equal(found.cv_results_["feasible"], good)
    assert found.best_index_ == best
    assert found.best_margin_ == MARGINS[best]
    assert found.best_score_ == pytest.approx(accuracy[best])
    assert found.best_flops_reduction_ == pytest.approx(saved[best])


@pytest.mark.parametrize("frozen", [False, True])
def test_what_costs_more_than_the_plain_network_is_not_taken(features, frozen):
    """Where heads cost more than exits can save, the network alone is it."""
    dear = cascade(costs={"stages": [1, 1, 1], "heads": [5, 5]})
    given = FrozenEstimator(dear.fit(features, Y)) if frozen else dear
    alone = search(given, margins=[0.3], max_accuracy_drop=0.5)
    with pytest.warns(UserWarning, match="the plain network is the best one"):
        alone.fit(features, Y)
    assert alone.is_fallback_
    assert np.isnan(alone.best_margin_)
    assert alone.best_flops_reduction_ == 0
    assert alone.best_score_ == alone.backbone_accuracy_
    last = {name: column[-1] for name, column in alone.cv_results_.items()}
    assert np.isnan(last["margin"])
    assert last["feasible"]
    assert alone.best_index_ == 1
    assert (alone.exit_depth(features) == 2).all()
    # A share that must be saved is another matter: the network saves nothing.
    with pytest.raises(ValueError, match="no operating point reaches"):
        search(given, margins=[0.3], flops_budget=0.2).fit(features, Y)


def test_auto_refines_where_the_choice_falls(features):
    coarse = search(margins=list(SEARCH_MARGINS), max_accuracy_drop=0.1)
    fine = search(margins="auto", max_accuracy_drop=0.1)
    coarse.fit(features, Y), fine.fit(features, Y)
    tried = fine.cv_results_["margin"]
    assert set(SEARCH_MARGINS) < set(tried)
    assert fine.best_flops_reduction_ >= coarse.best_flops_reduction_
    # Around the choice no step saves more than half a per cent, or it was halved often.
    rising = np.argsort(tried)
    saved = fine.cv_results_["mean_flops_reduction"][rising]
    at = np.flatnonzero(rising == fine.best_index_)[0]
    beside = slice(max(at - 1, 0), at + 2)
    steps, widths = np.diff(saved[beside]), np.diff(tried[rising][beside])
    assert ((np.abs(steps) <= 0.005) | (widths <= 0.5 / 2**8)).all()


def test_margins_of_each_branch_are_combined_where_they_differ(features):
    found = search(margins="auto", max_accuracy_drop=0.1, per_branch=True)
    found.fit(features, Y)
    one = search(margins="auto", max_accuracy_drop=0.1).fit(features, Y)
    assert found.best_flops_reduction_ >= one.best_flops_reduction_ - 0.05
    pairs = found.cv_results_["margin"].tolist()
    saved = found.cv_results_["mean_flops_reduction"]
    alike = [saved[i] for i, (one, two) in enumerate(pairs) if one == two]
    # Not eight of twenty at which nothing exits.
    assert np.diff(np.sort(alike)).min() > 0.001


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_most_accurate_within_a_budget(features, slow, share):
    accuracy, saved, *_ = slow
    budget = max(0.0, np.quantile(saved, share))
    good = saved >= budget
    found = search(flops_budget=budget).fit(features, Y)
    assert found.best_index_ == np.where(good, accuracy, -np.inf).argmax()
    np.testing.assert_array_equal(found.cv_results_["feasible"], good)


def test_search_without_a_feasible_margin_names_the_nearest(features, slow):
    accuracy, saved, *_ = slow
    best = saved.argmax()
    message = (
        rf"flops_budget=1: the nearest, margin={MARGINS[best]!r}, has an accuracy of "
        rf"{accuracy[best]:.4f} and saves {saved[best]:.4f}"
    )
    with pytest.raises(ValueError, match=message):
        search(flops_budget=1.0).fit(features, Y)


def test_found_cascade_is_trained_on_all_rows(features, capsys):
    found = search(verbose=1).fit(features, Y)
    assert f"margin={found.best_margin_}: accuracy" in capsys.readouterr().out
    by_hand = cascade(margin=found.best_margin_).fit(features, Y)
    labels, depth = found.predict(features, return_depth=True)
    np.testing.assert_array_equal(labels, by_hand.predict(features))
    np.testing.assert_array_equal(depth, by_hand.exit_depth(features))
    np.testing.assert_array_equal(found.exit_depth(features), depth)
    np.testing.assert_array_equal(
        found.predict_proba(features), by_hand.predict_proba(features)
    )
    np.testing.assert_array_equal(found.cost(features), by_hand.cost(features))
    assert found.flops_reduction(features) == by_hand.flops_reduction(features)
    assert found.score(features, Y) == by_hand.score(features, Y)
    assert found.n_features_in_ == features.shape[1]
    assert found.taps_ == ("stem", "block1")
    np.testing.assert_array_equal(found.classes_, [0, 1, 2])


def test_on_samples_features_are_made_once(features):
    """And the cascade that comes out is one on samples."""
    backbone = tiny_backbone()
    on_images = cascade(input="samples", backbone=backbone)
    calls = []
    run = type(backbone).transform

    class Counted(type(backbone)):
        def transform(self, data):
            calls.append(len(data))
            return run(self, data)

    counted = Counted(**backbone.get_params(deep=False))
    found = search(on_images.set_params(backbone=counted)).fit(X, Y)
    assert calls == [len(X)]
    on_features = search().fit(features, Y)
    for name in ("margin", "mean_accuracy", "feasible", "std_accuracy"):
        np.testing.assert_array_equal(
            found.cv_results_[name], on_features.cv_results_[name]
        )
    assert found.best_margin_ == on_features.best_margin_
    assert found.n_features_in_ == 3
    best = found.best_estimator_
    assert (best.input, best.n_features_in_) == ("samples", 3)
    by_hand = clone(on_images).set_params(margin=found.best_margin_).fit(X, Y)
    labels, depth = found.predict(X, return_depth=True)
    np.testing.assert_array_equal(labels, by_hand.predict(X))
    np.testing.assert_array_equal(depth, by_hand.exit_depth(X))
    assert clone(best).fit(X, Y).score(X, Y) == by_hand.score(X, Y)


def test_pairs_of_margins(features):
    found = search(per_branch=True).fit(features, Y)
    pairs = list(product(MARGINS, repeat=2))
    assert found.search_ == "exhaustive"
    np.testing.assert_array_equal(found.cv_results_["margin"], pairs)
    some = [0, 7, 13]
    accuracy, saved, *_ = slowly(cascade(), features, [pairs[i] for i in some])
    np.testing.assert_allclose(found.cv_results_["mean_accuracy"][some], accuracy)
    np.testing.assert_allclose(found.cv_results_["mean_flops_reduction"][some], saved)
    assert (
        found.best_estimator_.margin == found.best_margin_ == pairs[found.best_index_]
    )


@pytest.mark.parametrize("constraint", ["max_accuracy_drop", "flops_budget"])
def test_greedily_where_pairs_are_many(features, monkeypatch, constraint):
    settings = {constraint: 0.1, "per_branch": True, "max_accuracy_drop": None}
    settings |= {constraint: 0.1}
    full = search(**settings).fit(features, Y)
    shared = search(**(settings | {"per_branch": False})).fit(features, Y)
    monkeypatch.setattr(_operating_points, "MAX_JOINT", 10)
    greedy = search(**settings).fit(features, Y)
    assert greedy.search_ == "greedy"
    assert len(greedy.cv_results_["margin"]) < len(full.cv_results_["margin"])
    name = {"max_accuracy_drop": "best_flops_reduction_"}.get(constraint, "best_score_")
    ranks = [getattr(found, name) for found in (shared, greedy, full)]
    assert ranks == sorted(ranks)
    # No single branch can do better: a local optimum by definition.
    results = full.cv_results_
    for k in range(2):
        others = np.delete(results["margin"], k, axis=1)
        mine = np.delete(greedy.best_margin_, k)
        line = (others == mine).all(axis=1) & results["feasible"]
        column = {"best_score_": "mean_accuracy"}.get(name, "mean_flops_reduction")
        assert results[column][line].max() <= getattr(greedy, name) + 1e-12


def test_coordinate_descent_ends_where_no_branch_can_do_better(monkeypatch):
    monkeypatch.setattr(_operating_points, "MAX_JOINT", 1)
    rng = np.random.default_rng(0)
    values = [0, 1, 2, 3]
    for _ in range(20):
        heights = rng.permutation(64).reshape(4, 4, 4)

        class Hills:
            n_branches = 3

            def best_of(self, points, heights=heights):
                best = max(points, key=lambda point: heights[point])
                return SimpleNamespace(value=best, key=heights[best])

        best, how = _operating_points.best_joint(Hills(), values)
        assert how == "greedy"
        assert best.key >= max(heights[v, v, v] for v in values)
        a, b, c = best.value
        lines = (heights[:, b, c], heights[a, :, c], heights[a, b, :])
        assert all(line.max() == best.key for line in lines)


@pytest.mark.parametrize(
    ("estimator", "values", "name"),
    [
        (
            cascade(calibrator=SharedThreshold()),
            [0.4, 0.7, 0.95],
            "calibrator__threshold",
        ),
        (
            SDNClassifier(input="features", max_iter=8, device="cpu", random_state=0),
            [0.4, 0.7, 0.95],
            "threshold",
        ),
    ],
    ids=["calibrator", "baseline"],
)
def test_other_knobs(features, estimator, values, name):
    found = search(estimator, margins=values).fit(features, Y)
    accuracy, saved, *_ = slowly(estimator, features, values, name)
    np.testing.assert_allclose(found.cv_results_["mean_accuracy"], accuracy)
    np.testing.assert_allclose(found.cv_results_["mean_flops_reduction"], saved)
    assert found.best_estimator_.get_params()[name] == found.best_margin_


def test_a_rule_that_has_margins_takes_one_a_branch(features):
    rule = SurvivorThresholdCalibrator(min_support=3, margin_mode="local")
    found = search(cascade(calibrator=rule), per_branch=True).fit(features, Y)
    assert found.best_estimator_.calibrator_.margin == found.best_margin_
    plain = search(cascade(), per_branch=True).fit(features, Y)
    np.testing.assert_array_equal(
        found.cv_results_["mean_accuracy"], plain.cv_results_["mean_accuracy"]
    )


def test_a_fitted_cascade_is_only_moved(features):
    fitted = cascade(margin=0.0).fit(features[:80], Y[:80])
    thresholds = fitted.thresholds_.copy()
    new, labels = features[80:], Y[80:]
    found = search(FrozenEstimator(fitted), refit=False).fit(new, labels)
    best = found.best_estimator_
    assert best.branches_[0] is fitted.branches_[0]
    assert fitted.margin == 0.0
    np.testing.assert_array_equal(fitted.thresholds_, thresholds)
    assert best.margin == found.best_margin_
    assert best.score(new, labels) == pytest.approx(found.best_score_)
    assert found.flops_reduction(new) == pytest.approx(found.best_flops_reduction_)
    np.testing.assert_array_equal(found.predict(new), best.predict(new))


def test_fitted_rules_and_pipelines_are_moved(features):
    fitted = cascade(calibrator=SharedThreshold(0.5)).fit(features, Y)
    moved = search(FrozenEstimator(fitted), margins=[0.9]).fit(features, Y)
    assert moved.best_estimator_.calibrator.threshold == 0.9
    assert fitted.calibrator.threshold == 0.5
    pipeline = make_pipeline(tiny_backbone(), cascade(margin=0.0)).fit(X, Y)
    moved = search(FrozenEstimator(pipeline), margins=[0.3]).fit(X, Y)
    assert moved.best_estimator_[-1].margin == 0.3
    assert pipeline[-1].margin == 0.0
    assert moved.score(X, Y) == pytest.approx(moved.best_score_)


def test_a_pipeline_is_searched_by_its_last_step(features):
    found = search(make_pipeline(tiny_backbone(), cascade())).fit(X, Y)
    direct = search().fit(features, Y)
    np.testing.assert_allclose(
        found.cv_results_["mean_accuracy"], direct.cv_results_["mean_accuracy"]
    )
    assert found.best_estimator_[-1].margin == found.best_margin_
    labels, depth = found.predict(X, return_depth=True)
    np.testing.assert_array_equal(labels, found.best_estimator_.predict(X))
    np.testing.assert_array_equal(found.exit_depth(X), depth)
    assert found.n_features_in_ == 3


def test_without_refit(features):
    found = search(refit=False).fit(features, Y)
    assert found.best_margin_ in MARGINS
    assert not hasattr(found, "best_estimator_")
    assert not hasattr(found, "predict")
    with pytest.raises(AttributeError, match="predict") as error:
        found.predict(features)
    assert "refit=False" in str(error.value.__cause__)
    assert not hasattr(search().fit(features, Y).set_params(refit=False), "cost")


def test_weights_mean_repetition_under_fixed_splits(features):
    weight = np.random.default_rng(1).integers(0, 3, len(Y))
    held = np.arange(len(Y)) % 2 == 1
    calibrates = np.arange(len(Y)) // 2 % 4 == 0

    def fitted(rows, sample_weight=None):
        inner = np.where(calibrates[rows][~held[rows]], 0, -1)
        estimator = cascade(branch=LogisticRegression(), cv=PredefinedSplit(inner))
        outer = PredefinedSplit(np.where(held[rows], 0, -1))
        found = search(estimator, cv=outer, refit=False)
        return found.fit(features[rows], Y[rows], sample_weight=sample_weight)

    weighted = fitted(np.arange(len(Y)), weight)
    repeated = fitted(np.repeat(np.arange(len(Y)), weight))
    for name in ("mean_accuracy", "mean_flops_reduction"):
        np.testing.assert_allclose(
            weighted.cv_results_[name], repeated.cv_results_[name], atol=1e-9
        )
    assert weighted.backbone_accuracy_ == pytest.approx(repeated.backbone_accuracy_)


def test_metadata(features):
    groups = np.arange(len(Y)) // 4
    weight = np.random.default_rng(0).integers(1, 4, len(Y)).astype(float)
    plain = search(cv=GroupKFold(2)).fit(features, Y, weight, groups=groups)
    with sklearn.config_context(enable_metadata_routing=True):
        split = GroupKFold(2).set_split_request(groups=True)
        inner = cascade().set_fit_request(sample_weight=True)
        routed = search(inner, cv=split).set_fit_request(sample_weight=True)
        routed.fit(features, Y, sample_weight=weight, groups=groups)
        unasked = search(cascade().set_fit_request(sample_weight=False))
        unasked.fit(features, Y, sample_weight=weight)
    np.testing.assert_array_equal(
        routed.cv_results_["mean_accuracy"], plain.cv_results_["mean_accuracy"]
    )
    assert (routed.best_estimator_.calibration_.weight > 1).any()
    assert (unasked.best_estimator_.calibration_.weight == 1).all()
    with pytest.raises(TypeError, match=r"fit got \['speed'\], which are only passed"):
        search().fit(features, Y, speed=3)


def test_folds_in_threads(features):
    alone = search().fit(features, Y)
    with parallel_config("threading", n_jobs=2):
        together = search().fit(features, Y)
    for name, column in alone.cv_results_.items():
        np.testing.assert_array_equal(together.cv_results_[name], column)


def test_copies_and_nests(features):
    found = clone(search()).fit(features, Y)
    loaded = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(loaded.predict(features), found.predict(features))
    assert cross_val_score(search(), features, Y, cv=2).min() > 0.4
    again = search(refit=True).fit(features, Y).set_params(taps="all")
    assert again.fit(features, Y).best_margin_ == found.best_margin_


def test_labels_of_any_kind(features):
    names = np.array(["a", "b", "c"])[Y]
    found = search().fit(features, names)
    assert set(found.predict(features)) <= {"a", "b", "c"}
    assert found.classes_.tolist() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of max_accuracy_drop and flops_budget"),
        ({"max_accuracy_drop": 0.1, "flops_budget": 0.1}, "exactly one of"),
        ({"max_accuracy_drop": 1.1}, r"max_accuracy_drop=1\.1 must lie in"),
        ({"flops_budget": -0.1}, r"flops_budget=-0\.1 must lie in"),
        ({"flops_budget": 0.1, "margins": []}, "must hold at least one number"),
        ({"flops_budget": 0.1, "margins": [1.0]}, r"margin=1\.0"),
        ({"flops_budget": 0.1, "margins": "some"}, "'margins' parameter"),
        ({"flops_budget": 0.1, "taps": ["stem"]}, "'taps' parameter"),
    ],
)
def test_search_refuses_bad_parameters(features, given, message):
    with pytest.raises(ValueError, match=message):
        MarginSearchCV(cascade(), cv=FOLDS, **given).fit(features, Y)


def test_what_cannot_be_searched(features):
    with pytest.raises(ValueError, match="alignment__margin='same' trains"):
        search(cascade(alignment_margin="same")).fit(features, Y)
    with pytest.raises(TypeError, match="backbone must be a FrozenBackbone"):
        search(cascade(input="samples", backbone=tiny_net())).fit(X, Y)
    with pytest.raises(TypeError, match="estimator must be a cascade"):
        search(LogisticRegression()).fit(features, Y)
    with pytest.raises(ValueError, match="moves by 'calibrator__decay'"):
        search(cascade(calibrator=Quota()), per_branch=True).fit(features, Y)
    with pytest.raises(ValueError, match="moves by 'threshold'"):
        search(SDNClassifier(input="features"), per_branch=True).fit(features, Y)
    with pytest.raises(NotFittedError):
        search(FrozenEstimator(cascade())).fit(features, Y)
    with pytest.raises(NotFittedError):
        search().predict(features)
    with pytest.raises(ValueError, match="needs at least 2 classes"):
        search().fit(features, np.zeros(len(Y)))
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        search().fit(features[:0], Y[:0])
