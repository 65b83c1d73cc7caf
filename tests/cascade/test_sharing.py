"""Clones of one cascade train once what their operating points share."""

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from joblib import parallel_config
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import make_pipeline

from sk_calex import (
    CascadeClassifier,
    FrozenBackbone,
    MarginSearchCV,
    SurvivorAlignment,
    SurvivorThresholdCalibrator,
    accuracy_at_flops_scorer,
    flops_reduction_scorer,
)
from sk_calex.backbone._runner import Runner
from sk_calex.baselines import SDNClassifier, _joint
from sk_calex.cascade import _branch_fitter as fitting
from sk_calex.cascade import _fit_cache as sharing
from sk_calex.cascade import _fit_key as content
from sk_calex.cascade import _run_on_samples
from sk_calex.cascade._run_on_samples import run_all_stages
from sk_calex.policies import SharedThreshold
from tests._cascade_models import (
    flat_cascade,
    images,
    small_branch,
    tiny_backbone,
    tiny_net,
)

X, Y = images(150)
Z, W = images(80, seed=5)
SCORING = {"accuracy": "accuracy", "flops": flops_reduction_scorer}
MARGINS = np.linspace(-0.5, 0.5, 20).tolist()


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(X)


@pytest.fixture(params=["samples", "features", "frame"])
def form(request, features):
    if request.param == "samples":
        return {"backbone": tiny_backbone()}, X
    if request.param == "features":
        return {"input": "features"}, features
    backbone = tiny_backbone().set_output(transform="pandas").fit(X)
    params = {"backbone": FrozenEstimator(backbone), "input": "features"}
    return params, backbone.transform(X)


def cascade(params=None, **more):
    settings = {"branch": small_branch("gap", max_iter=3), "min_support": 3}
    settings |= {"random_state": 0} | (params or {})
    return flat_cascade(**(settings | more))


def counted(monkeypatch, owner, name):
    """Note each call of a function, and go on as before."""
    calls, run = [], getattr(owner, name)

    def counting(*args, **kwargs):
        calls.append(args)
        return run(*args, **kwargs)

    monkeypatch.setattr(owner, name, counting)
    return calls


@pytest.fixture
def heads(monkeypatch):
    return counted(monkeypatch, fitting, "fit_as_branch")


def grid(estimator, margins=MARGINS, kind=GridSearchCV, **params):
    settings = {"scoring": SCORING, "refit": "accuracy", "cv": 3}
    return kind(estimator, {"margin": margins}, **(settings | params))


def n_heads(heads, search, data):
    heads.clear()
    search.fit(data, Y)
    return len(heads)


# -- counting --------------------------------------------------------------------------


def test_twenty_margins_train_as_many_heads_as_one(form, heads):
    params, data = form
    one = n_heads(heads, grid(cascade(params), [0.1]), data)
    assert one == (3 + 1) * 2  # folds and refit, two branches
    assert n_heads(heads, grid(cascade(params)), data) == one
    with parallel_config("threading", n_jobs=2):
        assert n_heads(heads, grid(cascade(params)), data) == one
    drawn = grid(cascade(params), kind=RandomizedSearchCV, n_iter=9, random_state=0)
    assert n_heads(heads, drawn, data) == one


def test_what_reaches_the_training_is_trained(features, heads):
    search = GridSearchCV(
        cascade({"input": "features"}),
        {"margin": MARGINS[:4], "branch__alpha": [0.5, 1.0]},
        cv=3,
    )
    assert n_heads(heads, search, features) == (3 * 2 + 1) * 2
    same = grid(cascade({"input": "features"}, alignment_margin="same"), MARGINS[:4])
    assert n_heads(heads, same, features) == (3 * 4 + 1) * 2


def test_in_a_pipeline_and_over_a_rule(features, heads):
    pipeline = make_pipeline(tiny_backbone(), cascade({"input": "features"}))
    search = GridSearchCV(pipeline, {"cascadeclassifier__margin": MARGINS[:5]}, cv=3)
    assert n_heads(heads, search, X) == (3 + 1) * 2
    policies = [SharedThreshold(0.5), SharedThreshold(0.9)]
    no_margin = cascade({"input": "features"}).set_params(margin="auto")
    grid = [{"calibrator": [None], "margin": [0.1]}, {"calibrator": policies}]
    search = GridSearchCV(no_margin, grid, cv=3)
    assert n_heads(heads, search, features) == (3 + 1) * 2


SETTINGS = {
    "margin": [0.0, 0.1, 0.3],
    "calibrator__shrinkage": [0, 50, 200],
    "alignment__mixture": [0.0, 0.5, 1.0],
    "branch__temperature": [1.0, 2.0, 4.0],
}


@pytest.mark.parametrize(
    ("kind", "trained"),
    [
        ("soft", {"calibrator__shrinkage", "alignment__mixture"}),
        ("hard", {"calibrator__shrinkage"}),
        ("none", set()),
    ],
)
@pytest.mark.parametrize("name", SETTINGS)
def test_what_a_grid_over_settings_costs(features, heads, kind, trained, name):
    """Settings train anew only where they reach the training, of three values each."""
    search = GridSearchCV(
        CascadeClassifier(
            branch=small_branch("gap", max_iter=3),
            calibrator=SurvivorThresholdCalibrator(margin_mode="local", min_support=3),
            alignment=SurvivorAlignment(kind),
            input="features",
            random_state=0,
        ),
        {name: SETTINGS[name]},
        cv=3,
        error_score="raise",
    )
    trainings = 3 if name in trained | {"branch__temperature"} else 1
    assert n_heads(heads, search, features) == (3 * trainings + 1) * 2


def test_baselines_share_over_their_knob(features, monkeypatch):
    nets = counted(monkeypatch, _joint, "fit_exit_net")
    settings = {"input": "features", "max_iter": 2, "device": "cpu", "random_state": 0}
    search = GridSearchCV(
        SDNClassifier(**settings),
        {"threshold": [0.3, 0.5, 0.7, 0.9]},
        cv=3,
        scoring="accuracy",
    ).fit(features, Y)
    assert len(nets) == 3 + 1
    alone = SDNClassifier(**settings, threshold=0.7).fit(features, Y)
    moved = clone(alone).fit(features, Y)
    again = clone(alone).set_params(threshold=0.3).fit(features, Y)
    np.testing.assert_array_equal(moved.predict(features), alone.predict(features))
    alone.set_operating_point(0.3)
    np.testing.assert_array_equal(
        again.exit_depth(features), alone.exit_depth(features)
    )
    assert len(nets) == 3 + 1 + 2  # clones share; the first was none
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_the_backbone_is_not_run_again_for_each_margin(monkeypatch):
    made = counted(monkeypatch, FrozenBackbone, "transform")
    staged = counted(monkeypatch, Runner, "advance")
    scoring = SCORING | {"at": accuracy_at_flops_scorer(flops_budget=0.1)}
    estimator = cascade({"backbone": tiny_backbone()})
    grid(estimator, MARGINS[:2], scoring=scoring).fit(X, Y)
    few = len(made), len(staged)
    made.clear(), staged.clear()
    estimator = cascade({"backbone": tiny_backbone()})
    grid(estimator, scoring=scoring).fit(X, Y)
    assert (len(made), len(staged)) == few


# -- nothing else changes --------------------------------------------------------------


def unshared(monkeypatch):
    monkeypatch.setattr(sharing, "fit_request", lambda *args, **kwargs: None)


def test_results_are_the_same_as_without(form, monkeypatch):
    params, data = form
    scoring = SCORING | {
        "loss": "neg_log_loss",
        "at": accuracy_at_flops_scorer(flops_budget=0.1),
    }
    settings = {"scoring": scoring, "return_train_score": True, "cv": 2}
    shared = grid(cascade(params), MARGINS[::6], **settings).fit(data, Y)
    unshared(monkeypatch)
    plain = grid(cascade(params), MARGINS[::6], **settings).fit(data, Y)
    for name, column in plain.cv_results_.items():
        if not name.endswith("_time"):
            np.testing.assert_array_equal(shared.cv_results_[name], column, name)
    np.testing.assert_array_equal(shared.predict(data), plain.predict(data))


def test_a_recalled_cascade_answers_as_one_that_was_trained(form):
    params, data = form
    first = clone(cascade(params)).fit(data, Y)
    for margin in (-0.3, 0.2, 0.4):
        recalled = clone(first).set_params(margin=margin).fit(data, Y)
        assert recalled.branches_[0] is first.branches_[0]
        trained = cascade(params, margin=margin).fit(data, Y)
        assert set(vars(trained)) == set(vars(recalled)) - {
            "_shared_fits",
            "_shared_fit",
        }
        for _ in range(2):  # run, and remembered
            labels, depth = recalled.predict(data, return_depth=True)
            np.testing.assert_array_equal(labels, trained.predict(data))
            np.testing.assert_array_equal(depth, trained.exit_depth(data))
            np.testing.assert_array_equal(recalled.cost(data), trained.cost(data))
            np.testing.assert_array_equal(
                recalled.predict_proba(data), trained.predict_proba(data)
            )
        np.testing.assert_array_equal(recalled.thresholds_, trained.thresholds_)
        assert recalled.margin == margin


def test_clones_stay_apart(features):
    first = clone(cascade({"input": "features"})).fit(features, Y)
    second = clone(first).fit(features, Y)
    before = first.thresholds_.copy(), first.predict(features)
    second.set_margin(0.6)
    second.branches_.append(None)
    second.set_calibrator(SharedThreshold(0.4))
    np.testing.assert_array_equal(first.thresholds_, before[0])
    np.testing.assert_array_equal(first.predict(features), before[1])
    assert len(first.branches_) == 2
    third = clone(first).fit(features, Y)
    np.testing.assert_array_equal(third.predict(features), before[1])


def test_fitting_again_forgets(features):
    """Other data, or another parameter: nothing of the earlier fit is left."""
    one = clone(cascade({"input": "features"})).fit(features, Y)
    two = clone(one).fit(features, Y)
    two.predict(features)
    two.set_params(branch__temperature=5.0).fit(features[:120], Y[:120])
    fresh = cascade(
        {"input": "features"},
        branch=small_branch("gap", max_iter=3, temperature=5.0),
    ).fit(features[:120], Y[:120])
    np.testing.assert_array_equal(
        two.predict_proba(features), fresh.predict_proba(features)
    )
    np.testing.assert_array_equal(two.predict(features), fresh.predict(features))
    plain = np.asarray(features)
    given = cascade({"backbone": tiny_backbone().fit(X), "input": "features"})
    names = [f"c{i}" for i in range(plain.shape[1])]
    frame = clone(given).set_params(backbone=given.backbone)
    frame.fit(pd.DataFrame(plain, columns=names), Y)
    assert frame.feature_names_in_[0] == "c0"
    frame.fit(plain, Y).fit(plain, Y)
    assert not hasattr(frame, "feature_names_in_")


def test_it_is_never_copied_nor_seen(features):
    plain = cascade({"input": "features"})
    text, state = repr(plain), plain.get_params(deep=False)
    one = clone(plain).fit(features, Y)
    two = clone(plain).fit(features, Y)
    assert plain._shared_fits is one._shared_fits is two._shared_fits
    assert len(plain._shared_fits) == 1
    assert repr(plain) == text
    assert plain.get_params(deep=False) == state
    for other in (
        pickle.loads(pickle.dumps(two)),
        copy.deepcopy(two),
        copy.copy(two),
    ):
        assert {"_shared_fits", "_shared_fit"}.isdisjoint(vars(other))
        np.testing.assert_array_equal(other.predict(features), two.predict(features))
    assert len(pickle.loads(pickle.dumps(plain._shared_fits))) == 0


def test_who_was_never_cloned_looks_nothing_up(features, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(sharing, "fit_request", refuse)
    monkeypatch.setattr(sharing, "input_digest", refuse)
    fitted = cascade({"input": "features"}).fit(features, Y)
    assert fitted.predict(features).shape == Y.shape


def test_who_trained_answers_by_running(features, monkeypatch):
    """Only who was recalled may remember: the first clone's answers are not kept."""
    first = clone(cascade({"input": "features"})).fit(features, Y)

    def refuse(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(sharing, "input_digest", refuse)
    assert first.predict(features).shape == Y.shape


def test_a_failed_fit_leaves_nothing(features):
    bad = clone(cascade({"input": "features"}))
    labels = np.where(np.arange(len(Y)) < len(Y) - 1, Y, 7)  # one sample of a class
    with pytest.raises(ValueError, match="class"):
        bad.fit(features, labels)
    assert len(bad._shared_fits) == 0
    bad.fit(features, Y)
    with pytest.raises(ValueError, match="margin is a sequence of 1 numbers"):
        clone(bad).set_params(margin=[0.1]).fit(features, Y)


# -- randomness ------------------------------------------------------------------------


def test_without_a_seed_only_other_points_share(features, heads):
    base = cascade({"input": "features", "random_state": None})
    first = clone(base).set_params(margin=0.1).fit(features, Y)
    other = clone(base).set_params(margin=0.2).fit(features, Y)
    assert other.branches_[0] is first.branches_[0]
    assert len(heads) == 2
    again = clone(base).set_params(margin=0.1).fit(features, Y)
    assert again.branches_[0] is not first.branches_[0]
    assert len(heads) == 4
    # What comes now shares with the last one.
    assert (
        clone(base).set_params(margin=0.2).fit(features, Y).branches_[0]
        is (again.branches_[0])
    )
    # A grid is one draw a fold, and the next search draws anew.
    for _ in range(2):
        search = grid(base, MARGINS[:3], refit=False)
        assert n_heads(heads, search, features) == 3 * 2


def test_a_generator_is_used_up_by_each_fit(features, heads):
    base = cascade({"input": "features", "random_state": np.random.RandomState(0)})
    for margin in (0.1, 0.2):
        clone(base).set_params(margin=margin).fit(features, Y)
    assert len(heads) == 4
    branch = LogisticRegression(random_state=np.random.RandomState(0))
    base = cascade({"input": "features"}, branch=branch)
    for margin in (0.1, 0.2):
        clone(base).set_params(margin=margin).fit(features, Y)
    assert len(heads) == 8


# -- what was written to ---------------------------------------------------------------


def test_weights_that_were_written_to(heads):
    module = copy.deepcopy(tiny_net()).eval()
    backbone = FrozenBackbone(module, ["stem", "block1"], pool=4, device="cpu")
    first = clone(cascade({"backbone": backbone})).fit(X, Y)
    second = clone(first).fit(X, Y)
    remembered = second.predict(X)
    assert len(heads) == 2
    with torch.no_grad():
        module.head[2].bias += torch.tensor([50.0, 0.0, 0.0])
    changed = second.set_margin(-0.9).predict(X)
    fresh = cascade({"backbone": backbone}).fit(X, Y).set_margin(-0.9)
    assert not np.array_equal(changed, remembered)
    heads.clear()
    third = clone(first).fit(X, Y)
    assert len(heads) == 2
    np.testing.assert_array_equal(third.set_margin(-0.9).predict(X), fresh.predict(X))


def test_a_branch_that_was_written_to(features, heads):
    first = clone(cascade({"input": "features"})).fit(features, Y)
    second = clone(first).fit(features, Y)
    second.predict(features)
    for parameter in second.branches_[0].head_.parameters():
        parameter.requires_grad_(False).mul_(0)
    assert sharing.recall_table(second, features, run_all_stages) is None
    heads.clear()
    clone(first).fit(features, Y)
    assert len(heads) == 2


# -- bounds ----------------------------------------------------------------------------


def test_few_sets_of_samples_are_remembered(features, monkeypatch):
    base = cascade({"input": "features"})
    first = clone(base).fit(features, Y)
    second = clone(base).fit(features, Y)
    runs = counted(monkeypatch, _run_on_samples, "run_with_exits")
    for start in range(8):
        rows = features[start : start + 40]
        np.testing.assert_array_equal(second.predict(rows), first.predict(rows))
    # Those of the first cascade, and what was too much for the second.
    assert len(runs) == 8 + 4
    second.predict(features[0:40])
    assert len(runs) == 8 + 4


def test_margin_search_shares_with_its_estimator(features, heads):
    estimator = cascade({"input": "features"})
    for drop in (0.5, 1.0):
        search = MarginSearchCV(estimator, max_accuracy_drop=drop, cv=3)
        search.fit(features, Y)
    assert len(heads) == (3 + 1) * 2


# -- several processes -----------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Persisting input arguments:UserWarning")
def test_processes_share_through_memory(features, tmp_path, heads):
    """What two others trained, a third does not train; each head is stored once."""
    estimator = cascade({"input": "features"}, memory=str(tmp_path))
    search = grid(estimator, MARGINS[::5], cv=2, scoring="accuracy")
    with parallel_config("loky", n_jobs=2):
        search.fit(features, Y)
    assert len(list(tmp_path.rglob("output.pkl"))) == (2 + 1) * 2
    assert len(heads) == 2  # that of all samples is trained here
    heads.clear()
    again = grid(clone(estimator), MARGINS[::5], cv=2, scoring="accuracy")
    again.fit(features, Y)
    assert not heads
    np.testing.assert_array_equal(
        again.cv_results_["mean_test_score"], search.cv_results_["mean_test_score"]
    )


def test_the_key_of_a_cache_is_made_once(features, tmp_path, monkeypatch):
    """For all branches and folds, and not at all where nothing is kept."""
    taken = counted(monkeypatch, content, "_digest_rows")
    cascade({"input": "features"}, cv=3).fit(features, Y)
    assert not taken
    cascade({"input": "features"}, cv=3, memory=str(tmp_path)).fit(features, Y)
    assert len(taken) == 3  # features, targets and soft targets
    taken.clear()
    settings = {"input": "features", "max_iter": 2, "device": "cpu", "cv": 2}
    SDNClassifier(**settings, memory=str(tmp_path), random_state=0).fit(features, Y)
    assert len(taken) == 4
