import copy
from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sk_calex import CascadeClassifier, ExitMonitor, ExitRiskController
from sk_calex.inspection._change_detection import confidence_bins
from sk_calex.policies import ClassThresholds
from tests._fixed_cascade import fixed_cascade, rows
from tests._reference.monitor import slow_p_values, slow_statistic
from tests.inspection._inspected import calexnet, data, sdn


@pytest.fixture(scope="module")
def cascade():
    return fixed_cascade()


def fitted(cascade, n=600, **params):
    params = {"mean_time_between_false_alarms": 1e5, "random_state": 0} | params
    return ExitMonitor(cascade, **params).fit(rows(n, seed=1)[0])


def other_rows(n=400, seed=3):
    """Rows that nobody is sure of."""
    X, _ = rows(12 * n, seed, lost=0.05)
    return X[X[:, :3].max(axis=1) < 0.7][:n]


def test_no_alarm_on_rows_like_the_reference_and_one_on_others(cascade):
    monitor = fitted(cascade)
    assert monitor.update(rows(2000, seed=2)[0]) is False
    assert (monitor.n_seen_, monitor.alarm_, monitor.alarm_row_) == (2000, False, None)
    assert monitor.update(other_rows(100)) is True
    assert 2000 < monitor.alarm_row_ <= 2100
    assert monitor.statistic_.max() >= 1e5


def test_a_prediction_of_the_cascade_serves_the_monitor(cascade):
    by_rows, by_prediction = fitted(cascade), fitted(cascade)
    for X in (rows(300, seed=2)[0], other_rows(100)):
        alarm = by_rows.update(X)
        assert by_prediction.update(cascade.predict_details(X)) is alarm
    np.testing.assert_array_equal(by_prediction.statistic_, by_rows.statistic_)
    assert by_prediction.n_seen_ == 400


def test_a_prediction_of_other_classes_is_refused(cascade):
    said = cascade.predict_details(rows(10, seed=2)[0])
    of_two = replace(said, probabilities=said.probabilities[:, :2])
    monitor = fitted(cascade)
    with pytest.raises(ValueError, match="cascade with 2 classes"):
        monitor.update(of_two)
    assert monitor.n_seen_ == 0


def test_alarm_stays_until_reset(cascade):
    monitor = fitted(cascade)
    monitor.update(other_rows(100))
    row = monitor.alarm_row_
    assert monitor.update(rows(500, seed=2)[0])
    assert monitor.alarm_row_ == row
    monitor.reset()
    assert (monitor.n_seen_, monitor.alarm_, monitor.alarm_row_) == (0, False, None)
    assert len(monitor.statistic_) == 0
    assert not monitor.update(rows(500, seed=2)[0])


def test_statistic_is_the_slow_one_of_the_first_branch(cascade):
    reference, _ = rows(80, seed=1)
    X, _ = rows(60, seed=2, lost=0.05)
    monitor = ExitMonitor(cascade, random_state=3).fit(reference)
    monitor.update(X)
    stream = np.random.Philox(key=monitor.state_dict()["key"], counter=0)
    uniform = np.random.Generator(stream).random((60, 4))
    order = np.argsort(
        np.argsort(
            -np.bincount(cascade.calibration_.answers.predicted[0]), kind="stable"
        )
    )

    def scores(X):
        sure = confidence_bins(X[:, :3].max(axis=1))
        return sure, order[X[:, :3].argmax(axis=1)]

    p_values = [
        slow_p_values(known, new, uniform[:, kind])
        for kind, (known, new) in enumerate(
            zip(scores(reference), scores(X), strict=True)
        )
    ]
    assert monitor.statistic_ == pytest.approx(slow_statistic(np.array(p_values)))


def test_cutting_rows_into_calls_changes_nothing(cascade):
    X, _ = rows(300, seed=2)
    whole, parts = fitted(cascade), fitted(cascade)
    whole.update(X)
    for part in np.split(X, [1, 2, 70, 250]):
        parts.update(part)
    assert parts.statistic_ == pytest.approx(whole.statistic_)
    assert parts.statistic_rows_.tolist() == list(range(1, 301))


def test_prediction_and_look_are_one_call(cascade):
    X, _ = rows(300, seed=2, lost=0.05)
    looking, answering = fitted(cascade), fitted(cascade)
    looking.update(X)
    labels, depth = answering.update_predict(X, return_depth=True)
    expected, expected_depth = cascade.predict(X, return_depth=True)
    assert (labels == expected).all()
    assert (depth == expected_depth).all()
    assert set(depth) == {0, 1}
    assert answering.statistic_.tolist() == looking.statistic_.tolist()
    assert (answering.update_predict(X) == expected).all()


def test_looking_runs_nothing_but_the_first_branch():
    given = data()
    cascade = calexnet()
    asked = []

    class Counting:
        def __init__(self, branch):
            self.branch = branch

        def __getattr__(self, name):
            return getattr(self.branch, name)

        def predict_proba(self, X):
            asked.append(len(X))
            return self.branch.predict_proba(X)

    watched = copy.copy(cascade)
    watched.branches_ = [cascade.branches_[0], Counting(cascade.branches_[1])]
    monitor = ExitMonitor(watched, random_state=0).fit(given.test[:100])
    monitor.update(given.test[100:])
    assert asked == []
    thresholds = np.full(cascade.thresholds_.shape, 1.0)  # hardly a row exits
    watched.calibrator_ = ClassThresholds(thresholds)
    monitor.update_predict(given.test[100:])
    assert sum(asked) > 0


def test_state_goes_through_a_file_of_plain_arrays(cascade, tmp_path):
    before = fitted(cascade)
    before.update(rows(300, seed=2)[0])
    np.savez(tmp_path / "monitor.npz", **before.state_dict())
    after = clone(ExitMonitor(FrozenEstimator(cascade)))
    after.set_params(mean_time_between_false_alarms=1e5)
    with np.load(tmp_path / "monitor.npz", allow_pickle=False) as state:
        after.load_state_dict(state)
    for monitor in (before, after):
        monitor.update(other_rows(100))
    assert after.statistic_.tolist() == before.statistic_.tolist()
    assert after.n_reference_ == 600
    assert after.n_seen_ == before.n_seen_ == 400
    assert after.alarm_row_ == before.alarm_row_ is not None
    again = ExitMonitor(cascade).load_state_dict(after.state_dict())
    assert again.alarm_
    assert again.alarm_row_ == after.alarm_row_


def test_state_is_a_copy(cascade):
    monitor = fitted(cascade)
    state = monitor.state_dict()
    kept = {name: array.copy() for name, array in state.items()}
    other = ExitMonitor(cascade).load_state_dict(state)
    other.update(rows(50, seed=2)[0])
    monitor.update(rows(50, seed=2)[0])
    assert all((kept[name] == state[name]).all() for name in kept)


def test_state_of_another_monitor_is_refused(cascade):
    state = fitted(cascade).state_dict()
    with pytest.raises(ValueError, match="no 'sums'"):
        ExitMonitor(cascade).load_state_dict(
            {name: array for name, array in state.items() if name != "sums"}
        )
    with pytest.raises(ValueError, match=r"'class' of shape \(4,\)"):
        ExitMonitor(cascade).load_state_dict(state | {"class": np.zeros(4)})


@pytest.mark.parametrize("wrap", [
    FrozenEstimator,
    lambda cascade: make_pipeline(FunctionTransformer(), cascade),
    lambda cascade: ExitRiskController(cascade, path=[0.9]).fit(*rows(1000, seed=8)),
])  # fmt: skip
def test_wrapped_cascades_are_watched_alike(cascade, wrap):
    X, _ = rows(200, seed=2)
    plain, wrapped = fitted(cascade), fitted(wrap(cascade))
    plain.update(X)
    assert (wrapped.update_predict(X) == cascade.predict(X)).all()
    assert wrapped.statistic_.tolist() == plain.statistic_.tolist()


@pytest.mark.parametrize("make", [calexnet, sdn])
def test_every_kind_of_cascade_can_be_watched(make):
    given = data()
    monitor = ExitMonitor(make(), random_state=0).fit(given.test[:120])
    labels = monitor.update_predict(given.test[120:])
    assert (labels == make().predict(given.test[120:])).all()
    assert monitor.n_seen_ == 120


def test_seed_decides_the_ties(cascade):
    X, _ = rows(100, seed=2)
    curves = []
    for seed in (0, 0, 1):
        monitor = fitted(cascade, random_state=seed)
        monitor.update(X)
        curves.append(monitor.statistic_.tolist())
    assert curves[0] == curves[1] != curves[2]


def test_misuse_is_refused(cascade):
    X, _ = rows(400, seed=100, lost=0.02)  # those of fixed_cascade
    with pytest.raises(ValueError, match="The reference would be void"):
        ExitMonitor(cascade).fit(X)
    with pytest.raises(ValueError, match="mean_time_between_false_alarms"):
        ExitMonitor(cascade, mean_time_between_false_alarms=0.5).fit(rows(100)[0])
    with pytest.raises(NotFittedError):
        ExitMonitor(CascadeClassifier()).fit(X)
    unfitted = ExitMonitor(cascade)
    calls = [
        unfitted.reset,
        unfitted.state_dict,
        lambda: unfitted.statistic_,
        lambda: unfitted.update(X),
        lambda: unfitted.update_predict(X),
    ]
    for call in calls:
        with pytest.raises(NotFittedError):
            call()
