"""Progress: bars on stderr when asked for, and scikit-learn's callbacks."""

import importlib.util
import pickle
import re
import sys
import threading

import numpy as np
import pytest
from joblib import Memory
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sk_calex import BranchClassifier
from sk_calex.baselines import SDNClassifier, ZTWClassifier
from sk_calex.utils import _callbacks
from sk_calex.utils._callbacks import NO_TASK, Task, current_task, use_task
from sk_calex.utils._progress import bar, labelled, showing
from tests._cascade_models import flat_cascade, images, small_branch, tiny_backbone

X, Y = images(150)


def cascade(branch=None, **params):
    params = {"random_state": 0} | params
    return flat_cascade(tiny_backbone(), branch=branch or small_branch(), **params)


def lines(capsys):
    """The last state of each bar that was shown, as (label, count); nothing on stdout.

    A bar that ends is followed by the line feed that keeps it on the screen.
    """
    out, err = capsys.readouterr()
    assert out == ""
    ends = [line.rpartition("\r")[2] for line in err.split("\n")]
    found = [re.match(r"(?:(.*?): +)?(?:\d+%.*\| )?(\S+)", end) for end in ends if end]
    return [(match[1], match[2]) for match in found]


# -- bars ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        cascade,
        lambda: cascade(small_branch(solver="adam", max_iter=2)),
        lambda: cascade(cv=2, final_estimator=LogisticRegression()),
        lambda: ZTWClassifier(tiny_backbone(), max_iter=2, device="cpu"),
    ],
)
def test_everything_is_silent_by_default(make, capsys):
    fitted = make().fit(X, Y)
    fitted.predict(X)
    fitted.stage_probabilities(X)
    assert capsys.readouterr() == ("", "")


def test_verbose_shows_features_branches_and_calibration(capsys):
    branch = small_branch(solver="adam", max_iter=3)
    fitted = cascade(branch, verbose=1).fit(X, Y)
    size = fitted.effective_sample_size_[1]
    assert lines(capsys) == [
        ("features", "150/150"),
        ("branch 1 of 2 (stem), 120 of 120 samples", "3/3"),
        (f"branch 2 of 2 (block1), {size:.0f} of 120 samples", "3/3"),
        ("calibration", "1/1"),
    ]
    fitted.set_margin(0.1)
    fitted.predict(X)
    assert capsys.readouterr() == ("", "")


def test_verbose_changes_no_parameter_of_the_parts(capsys):
    quiet, shown = cascade().fit(X, Y), cascade(verbose=1).fit(X, Y)
    assert [b.verbose for b in shown.branches_] == [0, 0]
    assert shown.backbone_.verbose == 0
    np.testing.assert_array_equal(quiet.predict_proba(X), shown.predict_proba(X))


def test_lbfgs_counts_evaluations(capsys):
    fitted = cascade(verbose=1).fit(X, Y)
    counts = [int(count) for _, count in lines(capsys)[1:3]]
    assert counts == [len(branch.loss_curve_) for branch in fitted.branches_]


def test_parts_show_theirs_alone(capsys):
    loud = small_branch(solver="adam", max_iter=2, verbose=1)
    cascade(loud).fit(X, Y)
    labels, counts = zip(*lines(capsys), strict=True)
    assert counts == ("2/2", "2/2")
    assert labels[0] == "branch 1 of 2 (stem), 120 of 120 samples"
    flat_cascade(tiny_backbone(verbose=1), branch=small_branch(), random_state=0).fit(
        X, Y
    )
    assert lines(capsys) == [("features", "150/150")]
    loud.fit(X.reshape(150, -1)[:, :4], Y)
    assert lines(capsys) == [(None, "2/2")]


@pytest.mark.parametrize("backend", [None, "threading"])
def test_folds_have_one_bar_in_each_backend(backend, capsys):
    from joblib import parallel_config

    n_jobs = None if backend is None else 2
    with parallel_config(backend=backend or "loky"):
        fitted = cascade(cv=3, n_jobs=n_jobs, verbose=1).fit(X, Y)
    shown = lines(capsys)
    size = fitted.effective_sample_size_[1]
    first = "branch 1 of 2 (stem), 150 of 150 samples"
    second = f"branch 2 of 2 (block1), {size:.0f} of 150 samples"
    labels = ["features", first, first, second, second, "calibration"]
    assert [label for label, _ in shown] == labels
    assert [shown[1][1], shown[3][1]] == ["3/3", "3/3"]
    np.testing.assert_array_equal(
        fitted.predict_proba(X), cascade(cv=3).fit(X, Y).predict_proba(X)
    )


def test_cross_fitted_scores_and_the_final_estimator_have_a_bar(capsys):
    branch = LogisticRegression()
    cascade(branch, final_estimator=LogisticRegression(), cross_fit=2, verbose=1).fit(
        X, Y
    )
    assert [count for _, count in lines(capsys)] == [
        *("150/150", "1/1"),  # features, final estimator
        *("1/1", "2/2"),  # the first branch, its folds
        *("1/1", "1/1"),  # the last branch, calibration
    ]
    cascade(branch, final_estimator=LogisticRegression(), cv=2, verbose=1).fit(X, Y)
    assert lines(capsys)[1] == ("final estimator", "3/3")


def test_what_comes_from_memory_is_not_shown(tmp_path, capsys):
    memory = Memory(tmp_path, verbose=0)
    cascade(memory=memory).fit(X, Y)
    assert capsys.readouterr() == ("", "")
    cascade(memory=memory, verbose=1).fit(X, Y)  # being shown makes no other key
    assert [label for label, _ in lines(capsys)] == ["features", "calibration"]


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_baselines_show_theirs(solver, capsys):
    params = {"solver": solver, "max_iter": 2, "random_state": 0, "device": "cpu"}
    SDNClassifier(tiny_backbone(), verbose=1, **params).fit(X, Y)
    labels = [label for label, _ in lines(capsys)]
    heads = ["heads"] * (1 if solver == "adam" else 2)  # branch by branch
    assert labels == ["features", *heads, "calibration"]
    ZTWClassifier(tiny_backbone(), verbose=1, cv=2, **params).fit(X, Y)
    labels = [label for label, _ in lines(capsys)]
    assert {"heads, fold 2 of 2", "heads", "ensemble 2 of 2"} < set(labels)


def test_bars_are_shown_where_someone_says_so(capsys):
    def count(verbose=0):
        with bar(unit="row", total=2, verbose=verbose) as shown:
            shown.update(2)
        return lines(capsys)

    assert count() == []
    assert count(verbose=1) == [(None, "2/2")]
    with showing(1, "a"):
        assert count() == [("a", "2/2")]
        with labelled("b"):
            assert count() == [("b", "2/2")]
        with showing(0, "c"):
            assert count() == []
            assert count(verbose=2) == [("c", "2/2")]
        thread = threading.Thread(target=count)
        thread.start()
        thread.join()
        assert lines(capsys) == []
    with pytest.raises(KeyError), showing(1, "a"):
        raise KeyError
    assert count() == []


# -- scikit-learn's callbacks ----------------------------------------------------------


class Recorder:
    """Notes where in the tree of steps it was called; stops where it is told to."""

    def __init__(self, stop_at=None, depth=None):
        self.events, self.stop_at, self.max_propagation_depth = [], stop_at, depth
        self.given, self.scores = [], []

    def setup(self, estimator, context):
        self.events.append(("setup", type(estimator).__name__))

    def teardown(self, estimator, context):
        self.events.append(("teardown", type(estimator).__name__))

    def on_fit_task_begin(self, estimator, context):
        self.events.append(("begin", path(context)))

    def on_fit_task_end(self, estimator, context, *, X, y, metadata, fitted_estimator):
        self.events.append(("end", path(context)))
        self.given.append((X, y, metadata))
        if hasattr(fitted_estimator, "score"):
            self.scores.append((path(context), fitted_estimator.score(X, y)))
        return self.stop_at is not None and path(context).endswith(self.stop_at)

    def ended(self):
        return [name for kind, name in self.events if kind == "end"]


def path(context):
    """Such as "fit/branches/branch stem=fit/epoch"."""
    name, source = context.task_name, getattr(context, "source_task_name", None)
    name = name if context.source_estimator_name is None else f"{source}={name}"
    return name if context.parent is None else f"{path(context.parent)}/{name}"


@pytest.fixture
def recorder():
    pytest.importorskip("sklearn.callback", reason="scikit-learn before 1.9")
    return Recorder()


def with_epochs(n=2):
    return small_branch(solver="adam", max_iter=n)


EPOCHS = {name: f"fit/branches/branch {name}=fit" for name in ("stem", "block1")}


def test_callbacks_hear_of_branches_and_epochs(recorder):
    model = cascade(with_epochs()).set_callbacks(recorder)
    model.fit(X, Y, sample_weight=np.ones(150))
    assert recorder.ended() == [
        "fit/features",
        *(f"{EPOCHS['stem']}/epoch", f"{EPOCHS['stem']}/epoch", EPOCHS["stem"]),
        *(f"{EPOCHS['block1']}/epoch", f"{EPOCHS['block1']}/epoch", EPOCHS["block1"]),
        *("fit/branches", "fit/calibration", "fit"),
    ]
    kinds = [kind for kind, _ in recorder.events]
    assert kinds[0] == "setup"
    assert kinds[-1] == "teardown"
    assert kinds.count("begin") == kinds.count("end") == 10
    seen, labels, metadata = recorder.given[-1]
    assert seen is X
    assert labels is Y
    assert list(metadata) == ["sample_weight"]
    assert not [name for name in vars(model) if "callback" in name][1:]


def test_callbacks_may_score_what_is_fitted_so_far(recorder):
    features = X.reshape(150, -1)[:, :30].astype(float)
    branch = with_epochs(6).set_callbacks(recorder)
    branch.fit(features, Y)
    names, scores = zip(*recorder.scores, strict=True)
    assert names == ("fit/epoch",) * 6 + ("fit",)
    assert scores[-1] == scores[-2] == branch.score(features, Y)
    assert len(set(scores)) > 1
    plain = with_epochs(6).fit(features, Y)  # being looked at changes nothing
    assert plain.loss_curve_ == branch.loss_curve_


def test_the_fitted_cascade_is_scored_at_the_end(recorder):
    model = cascade().set_callbacks(recorder).fit(X, Y)
    assert recorder.scores[-1] == ("fit", model.score(X, Y))


def test_a_callback_ends_training_early(recorder):
    recorder.stop_at = "epoch"
    branch = BranchClassifier(solver="adam", max_iter=9, device="cpu")
    branch.set_callbacks(recorder).fit(X.reshape(150, -1)[:, :30], Y)
    assert branch.n_iter_ == 1
    recorder.stop_at = "branch stem=fit"  # of branches none can be left out
    model = cascade().set_callbacks(recorder).fit(X, Y)
    assert len(model.branches_) == 2


def test_branches_report_no_step_beyond_the_depth(recorder):
    recorder.max_propagation_depth = 0
    cascade(with_epochs()).set_callbacks(recorder).fit(X, Y)
    assert "fit/branches/branch stem" in recorder.ended()
    assert not [name for name in recorder.ended() if "epoch" in name]


@pytest.mark.parametrize("n_jobs", [None, 2])
def test_out_of_fold_training_is_one_step(recorder, n_jobs):
    model = cascade(with_epochs(), cv=2, n_jobs=n_jobs).set_callbacks(recorder)
    from joblib import parallel_config

    with parallel_config(backend="threading"):
        model.fit(X, Y)
    ended = recorder.ended()
    assert ended.index("fit/branches/out of fold stem") == 1
    assert ended.count(f"{EPOCHS['stem']}/epoch") == 2
    recorder.events.clear()
    cascade(with_epochs(), cross_fit=2).set_callbacks(recorder).fit(X, Y)
    folds = [name for name in recorder.ended() if "out of fold" in name]
    assert folds == ["fit/branches/out of fold stem"]


def test_listening_makes_no_other_key_of_memory(recorder, tmp_path):
    memory = Memory(tmp_path, verbose=0)
    cascade(memory=memory).fit(X, Y)
    cascade(memory=memory).set_callbacks(recorder).fit(X, Y)
    assert recorder.ended() == [
        *("fit/features", "fit/branches", "fit/calibration", "fit")
    ]


def test_other_branches_and_pipelines_join_the_tree(recorder):
    inner = flat_cascade(input="features", branch=LogisticRegression(), random_state=0)
    pipe = make_pipeline(tiny_backbone(), inner)
    recorder.max_propagation_depth = 2
    pipe.set_callbacks(recorder)
    pipe.fit(X, Y)
    assert recorder.ended()[0] == "fit/fit-transform-frozenbackbone=fit"
    deepest = "fit/fit-final-estimator=fit/branches/branch stem=fit"
    assert deepest in recorder.ended()
    backbone = tiny_backbone().set_callbacks(recorder)
    assert clone(backbone)._skl_callbacks == [recorder]


class Stubborn(ClassifierMixin, BaseEstimator):
    """Knows nothing of callbacks, and may fail."""

    def __init__(self, fails=False):
        self.fails = fails

    def fit(self, X, y, sample_weight=None):
        if self.fails:
            raise RuntimeError("stubborn")
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return np.full((len(X), len(self.classes_)), 1 / len(self.classes_))


def test_branches_without_callbacks_are_named(recorder):
    model = cascade(Stubborn(), targets="labels").set_callbacks(recorder)
    with pytest.warns(UserWarning, match="Stubborn does not support callbacks"):
        model.fit(X, Y)
    assert "fit/branches/branch stem" in recorder.ended()


@pytest.mark.filterwarnings("ignore:The estimator Stubborn does not support")
def test_a_fit_that_fails_is_torn_down(recorder):
    model = cascade(Stubborn(fails=True), targets="labels").set_callbacks(recorder)
    with pytest.raises(RuntimeError, match="stubborn"):
        model.fit(X, Y)
    assert recorder.events[-1] == ("teardown", "CascadeClassifier")
    assert recorder.ended() == ["fit/features"]
    assert current_task() is NO_TASK
    assert clone(model)._skl_callbacks == [recorder]


@pytest.mark.parametrize(("cv", "n_nets"), [(0.2, 1), (2, 3)])
def test_baselines_report_their_epochs(recorder, cv, n_nets):
    model = SDNClassifier(
        tiny_backbone(), solver="adam", max_iter=2, cv=cv, device="cpu"
    )
    model.set_callbacks(recorder).fit(X, Y)
    assert recorder.ended() == [
        "fit/features",
        *(["fit/heads/training/epoch"] * 2 + ["fit/heads/training"]) * n_nets,
        *("fit/heads", "fit/calibration", "fit"),
    ]
    recorder.events.clear()
    model.set_params(solver="lbfgs").fit(X, Y)
    assert recorder.ended().count("fit/heads/training") == n_nets


def test_scikit_learns_own_callbacks_work(recorder):
    from sklearn.callback import ScoringMonitor

    features, y = make_classification(200, n_informative=5, random_state=0)
    monitor = ScoringMonitor(scoring="accuracy")
    branch = with_epochs(3).set_callbacks(monitor).fit(features, y)
    rows = monitor.get_logs().data
    assert [row["task_name"] for row in rows] == ["fit", *["epoch"] * 3]
    assert rows[0]["accuracy"] == branch.score(features, y)


def test_a_fitted_cascade_with_callbacks_can_be_pickled(recorder):
    model = cascade().set_callbacks(recorder).fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


def test_fit_works_without_callbacks_in_scikit_learn(monkeypatch):
    """The module as it is imported beside scikit-learn 1.7 and 1.8."""
    monkeypatch.setitem(sys.modules, "sklearn.callback", None)
    spec = importlib.util.spec_from_file_location("old", _callbacks.__file__)
    old = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(old)
    assert not hasattr(old.CallbackSupportMixin, "set_callbacks")

    class Model(old.CallbackSupportMixin):
        @old.with_callbacks
        def fit(self, X, y):
            with old.Task.root(self, 1, X, y) as task, task.part("epoch") as part:
                self.coef_ = 1
                with part.owned_by(object()):
                    return self, part.stop

    model = Model()
    assert model.fit([[1]], [1]) == (model, False)
    assert vars(model) == {"coef_": 1}


def test_steps_are_handed_on_and_taken_back():
    task = Task()
    assert current_task() is NO_TASK
    with use_task(task):
        assert current_task() is task
    assert current_task() is NO_TASK
