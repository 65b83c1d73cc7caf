import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sk_calex import drift_report
from tests._fixed_cascade import fixed_cascade, rows
from tests.inspection._inspected import calexnet, data, sdn


@pytest.fixture(scope="module")
def cascade():
    return fixed_cascade()


def limits(k, n, level=0.95):
    return list(binomtest(int(k), n).proportion_ci(level, method="exact"))


def test_shares_and_their_limits_are_counted(cascade):
    X, _ = rows(500, seed=2, lost=0.05)
    report = drift_report(cascade, X)
    sure = (X[:, :3].max(axis=1) > 0.9).sum()
    assert report.depth.new == pytest.approx([sure / 500, 1 - sure / 500])
    assert report.depth.new_limits[:, 0] == pytest.approx(limits(sure, 500))
    known = cascade.calibration_
    early = (known.answers.confidence[0] > 0.9).sum()
    n = known.answers.n_samples
    assert report.depth.calibration[0] == pytest.approx(early / n)
    assert report.depth.calibration_limits[:, 0] == pytest.approx(limits(early, n))
    assert (report.n_samples, report.n_calibration) == (500, n) == (500, 200)
    answers = cascade.predict(X)
    for c, name in enumerate(report.classes):
        share = (answers == name).mean()
        assert report.predicted_class.new[c] == pytest.approx(share)
    assert report.confidence.new.sum() == pytest.approx(1)
    assert report.confidence.new[9] == pytest.approx(sure / 500)
    assert report.depth_names == ["x", "last stage"]
    assert "accuracy" not in report


def test_distance_tells_like_rows_from_others(cascade):
    X, _ = rows(2000, seed=2)
    same = drift_report(cascade, X)
    unsure = drift_report(cascade, X[X[:, :3].max(axis=1) < 0.7])
    for part in ("depth", "confidence"):
        assert same[part].distance < 3 * same[part].noise
        assert unsure[part].distance == pytest.approx(
            unsure[part].calibration[-1 if part == "confidence" else 0]
        )
        assert unsure[part].distance > 5 * unsure[part].noise


def test_labels_add_what_is_right(cascade):
    X, y = rows(500, seed=2, lost=0.05)
    report = drift_report(cascade, X, y, confidence_level=0.8)
    answers, depth = cascade.predict(X, return_depth=True)
    right = answers == y
    assert report.accuracy.new == right.mean()
    assert report.accuracy.new_limits == pytest.approx(limits(right.sum(), 500, 0.8))
    last = cascade.classes_[X[:, 3:].argmax(axis=1)] == y
    assert report.last_stage_accuracy.new == last.mean()
    for k in (0, 1):
        here = right[depth == k]
        assert report.depth_precision.new[k] == pytest.approx(here.mean())
        assert report.depth_precision.new_limits[:, k] == pytest.approx(
            limits(here.sum(), len(here), 0.8)
        )
    known = cascade.calibration_
    assert report.last_stage_accuracy.calibration == pytest.approx(
        known.right[-1].mean()
    )


def test_depth_that_answers_nothing_has_no_precision(cascade):
    X, y = rows(300, seed=2)
    sure = X[:, :3].max(axis=1) > 0.9
    report = drift_report(cascade, X[sure], y[sure])
    assert np.isnan(report.depth_precision.new[1])
    assert report.depth_precision.new_limits[:, 1].tolist() == [0, 1]


def test_calibration_weights_count(cascade):
    weighted = fixed_cascade()
    known = weighted.calibration_
    weighted.calibration_ = type(known)(
        known.answers, known.labels, np.full(len(known.labels), 3.0), known.costs
    )
    X, y = rows(300, seed=2)
    alike = drift_report(weighted, X, y)
    plain = drift_report(cascade, X, y)
    for name in ("depth", "accuracy"):
        assert alike[name].calibration_limits == pytest.approx(
            plain[name].calibration_limits
        )


@pytest.mark.parametrize("make", [calexnet, sdn])
def test_every_kind_of_cascade_has_a_report(make):
    given = data()
    pipeline = make_pipeline(FunctionTransformer(), make())
    report = drift_report(pipeline, given.test, given.test_y)
    share = np.bincount(make().exit_depth(given.test), minlength=3) / len(given.test)
    assert report.depth.new == pytest.approx(share)
    assert report.accuracy.new == make().score(given.test, given.test_y)


def test_misuse_is_refused(cascade):
    X, _ = rows(50, seed=2)
    with pytest.raises(ValueError, match="confidence_level"):
        drift_report(cascade, X, confidence_level=95)
    with pytest.raises(ValueError, match="labels that fit never saw"):
        drift_report(cascade, X, ["dog"] * 50)
    with pytest.raises(ValueError, match="inconsistent"):
        drift_report(cascade, X, ["ant"] * 49)
