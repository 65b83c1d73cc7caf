import copy
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from sk_calex import CascadeClassifier, ExitRiskController, MarginSearchCV
from sk_calex.model_selection._risk_control._paired_test import (
    disagreement_p_value,
    drop_p_value,
    fewest_rows,
    nuisance_error_of,
)
from sk_calex.policies import OwnGate, Patience, SharedThreshold
from tests._fixed_cascade import (
    Columns,
    fixed_cascade,
    margin_cascade,
    rows,
)

#: The first lets no row exit, the second the easy ones, the third all.
THRESHOLDS = [2.0, 0.9, 0.3]


@pytest.fixture(scope="module")
def cascade():
    return fixed_cascade()


def controller(cascade, **params):
    return ExitRiskController(cascade, **({"path": THRESHOLDS} | params))


def test_counts_and_p_values_are_those_of_the_rows(cascade):
    X, y = rows(2000, lost=0.03, gained=0.01)
    results = controller(cascade, max_risk=0.01).fit(X, y).path_results_
    right = [
        X[:, k : k + 3].argmax(axis=1) == np.searchsorted(cascade.classes_, y)
        for k in (0, 3)
    ]
    lost, gained = (right[1] & ~right[0]).sum(), (right[0] & ~right[1]).sum()
    assert lost > gained > 0
    assert results.n_lost.tolist() == [0, 0, 0, lost]
    assert results.n_gained.tolist() == [0, 0, 0, gained]
    assert results.n_disagree.tolist() == [0, 0, 0, lost + gained]
    assert results.risk_estimate[-1] == pytest.approx((lost - gained) / 2000)
    nuisance = nuisance_error_of(0.1)
    assert results.p_value == pytest.approx(
        [0.0]
        + [drop_p_value(a, b, 2000, 0.01, nuisance) for a, b in [(0, 0)] * 2]
        + [drop_p_value(lost, gained, 2000, 0.01, nuisance)]
    )
    assert results.certified.tolist() == [True, True, True, False]
    easy = (X[:, :3].max(axis=1) > 0.9).mean()
    assert results.depth_share[2] == pytest.approx([easy, 1 - easy])
    # The head, at 1 % of the last stage, is paid for by every row where any may exit.
    assert results.flops_reduction == pytest.approx([0, 0, easy - 0.01, 0.99])


def test_best_point_is_the_certified_one_that_saves_most(cascade):
    X, y = rows(2000, lost=0.03, gained=0.01)
    safe = controller(cascade, max_risk=0.01).fit(X, y)
    assert (safe.best_index_, safe.best_margin_, safe.is_fallback_) == (2, 1.0, False)
    assert safe.best_flops_reduction_ == safe.path_results_.flops_reduction[2]
    assert safe.certified_.tolist()[1:] == [0.0, 1.0]
    assert safe.n_samples_ == 2000
    labels, depth = safe.predict(X, return_depth=True)
    sure = X[:, :3].max(axis=1) > 0.9
    assert (depth == np.where(sure, 0, 1)).all()
    assert (labels == safe.classes_[X[:, 3:].argmax(axis=1)]).all()
    assert safe.score(X, y) == (labels == y).mean()
    assert safe.predict_proba(X)[~sure] == pytest.approx(X[~sure, 3:])
    assert safe.exit_depth(X).tolist() == depth.tolist()
    assert safe.flops_reduction(X) == pytest.approx(safe.best_flops_reduction_)
    assert safe.cost(X).max() == 101


def test_the_cascade_that_was_given_is_not_changed(cascade):
    X, y = rows(2000)
    before = cascade.predict(X, return_depth=True)
    controller(cascade, max_risk=0.5, path=[0.3]).fit(X, y)
    for old, new in zip(before, cascade.predict(X, return_depth=True), strict=True):
        assert (old == new).all()


def test_labels_of_the_rows_that_can_be_lost_are_enough(cascade):
    X, y = rows(2000, lost=0.03, gained=0.01)
    safe = controller(cascade)
    needed = safe.rows_to_label(X)
    differ = X[:, :3].argmax(axis=1) != X[:, 3:].argmax(axis=1)
    assert needed.tolist() == np.flatnonzero(differ).tolist()
    whole = controller(cascade).fit(X, y).path_results_
    part = safe.fit(X, y[needed]).path_results_
    assert repr(part) == repr(whole)
    wrong = np.where(differ, y, "bee")  # labels of the other rows change nothing
    assert repr(controller(cascade).fit(X, wrong).path_results_) == repr(whole)


def test_permuting_rows_changes_nothing(cascade):
    X, y = rows(1500, lost=0.02)
    order = np.random.default_rng(0).permutation(len(X))
    first = controller(cascade).fit(X, y)
    second = controller(cascade).fit(X[order], y[order])
    assert repr(first.path_results_) == repr(second.path_results_)
    assert first.best_margin_ == second.best_margin_


def test_disagreement_needs_no_labels(cascade):
    X, _ = rows(2000, lost=0.005, gained=0.01)
    safe = controller(cascade, risk="disagreement", max_risk=0.03).fit(X)
    results = safe.path_results_
    k = results.n_disagree[3]
    assert results.p_value[3] == pytest.approx(disagreement_p_value(k, 2000, 0.03))
    assert (results.n_lost[1:] == -1).all()
    assert "?" in repr(results)
    assert "without labels" in safe.report()
    assert safe.best_index_ == 3


def test_labels_beside_a_disagreement_are_counted(cascade):
    X, y = rows(2000, lost=0.005, gained=0.01)
    safe = controller(cascade, risk="disagreement", max_risk=0.03).fit(X, y)
    assert (safe.path_results_.n_lost + safe.path_results_.n_gained).tolist() == (
        safe.path_results_.n_disagree.tolist()
    )
    assert "with labels" in safe.report()


def test_path_stops_at_the_first_point_that_fails(cascade):
    """A lax point that would pass by itself is not reached."""
    X, y = rows(3000, lost=0.05)
    safe = controller(cascade, path=[0.3, 0.9, 2.0]).fit
    with pytest.warns(UserWarning, match="nothing that saves FLOPs"):
        results = safe(X, y).path_results_
    assert (results.p_value[2:] < 0.1).all()
    assert results.certified.tolist() == [True, False, False, False]


def test_fallback_answers_as_the_last_stage_and_says_so(cascade):
    X, y = rows(1000, lost=0.05)
    safe = controller(cascade, path=[0.3])
    with pytest.warns(UserWarning, match=r"p=1, above 0\.1, on 1000 rows"):
        safe.fit(X, y)
    assert safe.is_fallback_
    assert np.isnan(safe.best_margin_)
    assert safe.best_flops_reduction_ == 0
    assert (safe.exit_depth(X) == 1).all()
    assert "Serve the backbone itself" in safe.report()
    assert "the last stage alone" in safe.report()


def test_certified_points_that_cost_more_than_they_save_are_not_taken(cascade):
    X, y = rows(1000)
    with pytest.warns(UserWarning, match="cost more for heads"):
        safe = controller(cascade, path=[2.0]).fit(X, y)
    assert safe.path_results_.certified.all()
    assert safe.is_fallback_


def test_path_that_saves_nothing_is_empty():
    dear = CascadeClassifier(
        branch=Columns(0, macs=1000),
        final_estimator=Columns(3, macs=100),
        calibrator=SharedThreshold(),
        random_state=0,
    ).fit(*rows(200, seed=9))
    X, y = rows(1000)
    with pytest.warns(UserWarning, match="saves any on the calibration rows"):
        safe = ExitRiskController(dear).fit(X, y)
    assert len(safe.path_results_) == 1


def test_automatic_path_goes_from_strict_to_lax_in_even_steps():
    safe = ExitRiskController(margin_cascade(), max_risk=0.04)
    X, y = rows(4000, lost=0.02)
    safe.fit(X, y)
    results = safe.path_results_
    assert len(results) >= 3  # the last stage, the easy rows, all
    assert (np.diff(results.flops_reduction) > 0.02).all()
    assert (np.diff(results.margin[1:]) > 0).all()
    assert safe.best_estimator_.margin == safe.best_margin_
    assert results.certified.all()


def test_given_margins_are_tried_from_strict_to_lax():
    X, y = rows(3000, lost=0.02)
    safe = ExitRiskController(margin_cascade(), max_risk=0.04, margins=[0.5, -0.9])
    results = safe.fit(X, y).path_results_
    assert results.margin[1:].tolist() == [-0.9, 0.5]
    assert results.flops_reduction[1] < results.flops_reduction[2]


def test_margins_of_each_branch_are_kept_apart():
    X, y = rows(3000, lost=0.02)
    safe = ExitRiskController(margin_cascade(), max_risk=0.04, margins=[[0.0], [0.5]])
    safe.fit(X, y)
    assert safe.best_margin_ == (0.5,)
    assert "0.5" in repr(safe.path_results_)


def test_agreement_path_takes_the_last_stage_for_the_truth():
    """Rows that the branch gains are no gain where agreement is what counts."""
    cascade = margin_cascade(lost=0.0, gained=0.08)
    X, y = rows(3000, gained=0.02)
    shares = {}
    for path in ("calibration", "agreement"):
        safe = ExitRiskController(cascade, path=path, max_risk=0.1, margins=[0.0])
        safe.fit(X, y)
        shares[path] = safe.path_results_.depth_share[1, 0]
        assert safe.exit_depth(X).mean() == pytest.approx(1 - shares[path])
    assert shares["calibration"] > 0.97 > shares["agreement"]


def test_given_thresholds_may_differ_by_branch_and_class(cascade):
    X, y = rows(1500)
    by_class = controller(cascade, path=[[[0.9, 2.0, 2.0]]]).fit(X, y)
    exits = by_class.exit_depth(X) == 0
    sure = X[:, :3].max(axis=1) > 0.9
    assert (exits == (sure & (X[:, :3].argmax(axis=1) == 0))).all()
    by_branch = controller(cascade, path=[[0.9]]).fit(X, y)
    assert ((by_branch.exit_depth(X) == 0) == sure).all()


@pytest.mark.parametrize(
    "wrap",
    [
        FrozenEstimator,
        lambda fitted: FrozenEstimator(FrozenEstimator(fitted)),
        lambda fitted: make_pipeline(
            FunctionTransformer(np.asarray).fit([[0]]), fitted
        ),
        lambda fitted: FrozenEstimator(make_pipeline(FunctionTransformer(), fitted)),
    ],
)
def test_wrapped_cascades_are_certified_alike(cascade, wrap):
    X, y = rows(1500, lost=0.02)
    plain = controller(cascade).fit(X, y)
    wrapped = controller(wrap(cascade)).fit(X, y)
    assert repr(wrapped.path_results_) == repr(plain.path_results_)
    assert (wrapped.predict(X) == plain.predict(X)).all()


def test_clone_of_a_controller_of_a_frozen_cascade_works(cascade):
    X, y = rows(1500, lost=0.02)
    safe = controller(FrozenEstimator(cascade))
    scores = cross_val_score(clone(safe), X, y, cv=2)
    assert scores.shape == (2,)


def test_search_hands_its_result_over_in_one_line():
    X, y = rows(1200, seed=7, lost=0.02)
    fresh, fresh_y = rows(2500, seed=8, lost=0.02)
    search = MarginSearchCV(clone(margin_cascade()), max_accuracy_drop=0.05, cv=2).fit(
        X, y
    )
    safe = ExitRiskController(search, max_risk=0.05).fit(fresh, fresh_y)
    assert not safe.is_fallback_
    with pytest.raises(ValueError, match="trained or calibrated"):
        ExitRiskController(search, max_risk=0.05).fit(X, y)


def test_controller_of_a_controller_is_refused_nothing_but_rows(cascade):
    X, y = rows(1500, lost=0.02)
    inner = controller(cascade).fit(X, y)
    outer = controller(inner).fit(*rows(1500, seed=3, lost=0.02))
    assert outer.best_margin_ == inner.best_margin_


# -- misuse ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unfitted",
    [
        CascadeClassifier(),
        FrozenEstimator(CascadeClassifier()),
        make_pipeline(FunctionTransformer(), CascadeClassifier()),
        MarginSearchCV(CascadeClassifier(), max_accuracy_drop=0.1),
    ],
)
def test_unfitted_estimator_is_refused(unfitted):
    with pytest.raises((NotFittedError, TypeError), match="fitted"):
        controller(unfitted).fit(*rows(1000))


def test_pipeline_whose_other_steps_are_not_fitted_is_refused(cascade):
    pipeline = make_pipeline(StandardScaler(), cascade)
    with pytest.raises(NotFittedError):
        controller(pipeline).fit(*rows(1000))


def test_cross_validation_of_an_unfrozen_cascade_says_to_freeze_it(cascade):
    with pytest.raises(NotFittedError, match="FrozenEstimator"):
        clone(controller(cascade)).fit(*rows(1000))


def test_rows_of_the_fit_are_refused(cascade):
    X, y = rows(1000)
    seen, seen_y = rows(400, seed=100, lost=0.02)  # those of fixed_cascade
    X[[3, 700]], y[[3, 700]] = seen[[5, 6]], seen_y[[5, 6]]
    with pytest.raises(ValueError, match=r"2 of 1000 rows .*\(rows 3, 700\)"):
        controller(cascade).fit(X, y)
    with pytest.raises(ValueError, match="void"):
        controller(cascade).rows_to_label(X.astype(np.float32).astype(float))
    with pytest.raises(ValueError, match=r"rows 0, 1, .*, 19, \.\.\.\)"):
        controller(cascade).fit(np.vstack([seen, X]), np.r_[seen_y, y])


def test_unknown_history_of_the_rows_is_a_warning(cascade):
    X, y = rows(1500)
    old = clone_without_digests(cascade)
    with pytest.warns(UserWarning, match="not known whether"):
        controller(old).fit(X, y)


def clone_without_digests(cascade):
    old = copy.copy(cascade)
    old.row_digests_ = None
    return old


@pytest.mark.parametrize("risk", ["accuracy_drop", "disagreement"])
def test_too_few_rows_are_refused_with_the_number_that_would_do(cascade, risk):
    needed = fewest_rows(risk, 0.01, 0.1)
    X, y = rows(needed)
    with pytest.raises(ValueError, match=f"that takes {needed},"):
        controller(cascade, risk=risk).fit(X[:-1], y[:-1])
    with pytest.raises(ValueError, match="too few"):
        controller(cascade, risk=risk).rows_to_label(X[:-1])
    assert not controller(cascade, risk=risk).fit(X, y).is_fallback_


@pytest.mark.parametrize(
    ("params", "change", "message"),
    [
        ({}, {"sample_weight": np.ones(1000)}, "independent draws"),
        ({}, {"y": None}, "risk='accuracy_drop' needs labels"),
        ({}, {"y": ["ant"] * 7}, r"7 labels for 1000 rows"),
        ({}, {"y": ["dog"] * 1000}, "labels that fit never saw"),
        ({"max_risk": 0}, {}, "max_risk"),
        ({"confidence_level": 1}, {}, "confidence_level"),
        ({"path": "margins"}, {}, "path"),
        ({"path": [[0.9, 0.9]]}, {}, r"shape \(1, 2\)"),
        ({"path": []}, {}, "shape"),
        ({"path": [np.nan]}, {}, "NaN"),
        ({"margins": [0.1]}, {}, "both given"),
        ({"path": "calibration", "margins": []}, {}, "empty"),
    ],
)
def test_misuse_is_refused(cascade, params, change, message):
    X, y = rows(1000)
    given = {"X": X, "y": y} | change
    with pytest.raises(ValueError, match=message):
        controller(cascade, **params).fit(**given)


def test_refused_fit_leaves_the_controller_unfitted(cascade):
    X, y = rows(1500)
    safe = controller(cascade).fit(X, y)
    with pytest.raises(ValueError, match="needs labels"):
        safe.fit(X)
    with pytest.raises(NotFittedError):
        safe.predict(X)
    with pytest.raises(NotFittedError):
        safe.report()


def test_estimator_without_a_cascade_is_refused():
    with pytest.raises(TypeError, match="must be a cascade"):
        controller(LogisticRegression()).fit(*rows(1000))
    with pytest.raises(TypeError, match="fitted search"):
        controller(GridSearchCV(CascadeClassifier(), {})).fit(*rows(1000))


# -- what is shown ---------------------------------------------------------------------


def test_results_print_as_a_table(cascade):
    X, y = rows(2000, lost=0.03, gained=0.01)
    results = controller(cascade).fit(X, y).path_results_
    lines = repr(results).splitlines()
    assert len(lines) == len(results) + 1 == 5
    assert lines[0].split() == (
        ["margin", "lost", "gained", "differ", "risk", "p", "certified", "saved"]
    )
    assert lines[1].split()[:2] == ["last", "stage"]
    assert len({len(line) for line in lines}) == 1
    assert lines[4].split()[-2:] == ["no", "99.0%"]


def test_results_become_a_frame(cascade):
    X, y = rows(2000, lost=0.03)
    results = controller(cascade).fit(X, y).path_results_
    frame = results.to_frame()
    assert frame.shape == (4, 10)
    assert frame["depth_share_1"].tolist() == results.depth_share[:, 1].tolist()


def test_report_names_promise_confidence_and_limits(cascade):
    X, y = rows(2000, lost=0.03, gained=0.01)
    text = controller(cascade, max_risk=0.015).fit(X, y).report()
    assert "loses at most 1.5 points of accuracy" in text
    assert "90.0%" in text
    assert "2,000 certifying rows" in text
    assert "3 operating points" in text
    assert "2 hold together" in text
    assert "Estimates, which bound nothing" in text
    assert "Not said: anything about data of another kind" in text


def test_numeric_labels_and_no_warning_where_all_is_well(cascade):
    X, y = rows(1500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        controller(cascade).fit(X, y)


@pytest.mark.parametrize("rule", [Patience(1), OwnGate(0.5)])
def test_rules_with_whole_numbers_or_without_scores_have_a_path(rule):
    """Patience counts branches; a gate that the cascade does not have never exits."""
    cascade = fixed_cascade(Patience(1))
    X, y = rows(1500)
    safe = ExitRiskController(cascade).fit(X, y)
    assert set(safe.path_results_.margin[1:]) <= {0.0, 1.0}
