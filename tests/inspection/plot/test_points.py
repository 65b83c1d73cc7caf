"""Operating points from answers and depths, and from the results of a search."""

import numpy as np
import pytest

from sk_calex import CascadeDisplay, operating_curve
from sk_calex.policies import Quota, SharedThreshold
from tests.inspection._inspected import calexnet, data, fit

COSTS = [20.0, 70.0, 120.0]


def draw(y_true=(0, 1, 1), y_pred=(0, 1, 0), depth=(0, 1, 2), **params):
    params = {"costs": COSTS, "backbone_cost": 100.0} | params
    return CascadeDisplay.from_predictions(y_true, y_pred, depth, **params)


def test_one_point_by_hand():
    display = draw(backbone_pred=[0, 0, 1])
    np.testing.assert_allclose(display.line_.get_xydata(), [[30, 200 / 3]])
    assert display.backbone_accuracy == pytest.approx(2 / 3)


def test_rows_are_points_and_weights_count():
    display = draw(
        y_pred=[[0, 1, 0], [1, 1, 1]],
        depth=[[0, 1, 2], [2, 2, 2]],
        sample_weight=[1, 1, 2],
        values=[0.1, 0.2],
        name="both",
    )
    np.testing.assert_allclose(display.accuracy, [0.5, 0.75])
    np.testing.assert_allclose(display.flops_reduction, [1 - 330 / 400, -0.2])
    assert display.values == [0.1, 0.2]
    assert display.line_.get_label() == "both"


def test_answers_of_a_cascade_give_its_curve():
    given = data()
    # At each of these thresholds samples may exit at both branches: no head rests.
    cascade = fit(calibrator=SharedThreshold(0.9))
    values = [0.9, 0.7, 0.5]
    answers = [
        cascade.set_operating_point(value).predict(given.test, return_depth=True)
        for value in values
    ]
    display = CascadeDisplay.from_predictions(
        given.test_y,
        [labels for labels, _ in answers],
        [depth for _, depth in answers],
        costs=cascade.depth_costs_,
        backbone_cost=sum(cascade.layout_.stage_macs),
    )
    curve = operating_curve(cascade, given.test, given.test_y, values)
    np.testing.assert_allclose(display.flops_reduction, curve.flops_reduction)
    np.testing.assert_allclose(display.accuracy, curve.accuracy)


FIRST = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
LAST = np.array([[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]])


def draw_probabilities(y_true=(0, 1, 1), y_pred=(FIRST, LAST), **params):
    params = {"costs": [1, 4], "values": [0.5, 0.7]} | params
    return CascadeDisplay.from_predictions(y_true, y_pred, **params)


def test_probabilities_by_hand():
    """At 0.5 all exit at the branch, at 0.7 the second row goes on."""
    display = draw_probabilities(name="arrays", cost_name="ms")
    np.testing.assert_allclose(display.accuracy, [2 / 3, 1])
    np.testing.assert_allclose(display.flops_reduction, [0.75, 1 - 6 / 12])
    assert display.backbone_accuracy == 1.0
    np.testing.assert_array_equal(display.values, [0.5, 0.7])
    assert display.n_samples == 3
    assert display.line_.get_label() == "arrays"
    assert display.ax_.get_xlabel() == "ms saved (%)"
    assert "numbers: threshold" in display.ax_.get_title()
    dearer = draw_probabilities(backbone_cost=2.0)
    np.testing.assert_allclose(dearer.flops_reduction, [0.5, 0.0])


def test_probabilities_under_a_rule_give_its_curve():
    proba = np.array([FIRST, LAST])
    settings = {"costs": [1, 4], "calibration": (proba, [0, 1, 1])}
    values = [0.2, 0.5]
    curve = operating_curve(Quota(), proba, [0, 1, 1], values, **settings)
    display = draw_probabilities(y_pred=proba, rule=Quota(), **settings, values=values)
    np.testing.assert_array_equal(display.flops_reduction, curve.flops_reduction)
    np.testing.assert_array_equal(display.accuracy, curve.accuracy)
    assert "numbers: decay" in display.ax_.get_title()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"y_pred": [0, 1, 0]}, "depth=None, so y_pred must hold the probabilities"),
        ({"y_pred": []}, r"its first entry has shape \(0,\)"),
        ({"backbone_pred": [0, 1, 1]}, "backbone_pred was given"),
        ({"costs": [4, 1]}, "costs falls from 4 at depth 0"),
        ({"rule": Quota()}, "calibration=None, but Quota"),
        ({"y_true": [0, 1]}, "y must be 3 class codes"),
    ],
)
def test_probabilities_that_do_not_fit_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        draw_probabilities(**params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"depth": [0, 1]}, r"shape \(n_points, 3\)"),
        ({"y_pred": [[0, 1]], "depth": [[0, 1]]}, "one column for each entry of y_tr"),
        ({"y_true": [], "y_pred": [], "depth": []}, "at least one"),
        ({"depth": [0, 1, 3]}, "from 0 to 2: costs has 3 entries"),
        ({"depth": [0, -1, 2]}, "goes from -1 to 2"),
        ({"depth": [0.0, 1.0, 2.0]}, "dtype float64"),
        ({"costs": [1, np.nan, 2]}, "must be finite"),
        ({"costs": [-1.0, 1, 2]}, "not negative"),
        ({"backbone_cost": 0}, "backbone_cost=0 positive"),
        ({"backbone_cost": None}, "backbone_cost=None, but the saving"),
        ({"rule": Quota()}, "rule was given, but with depth"),
        ({"calibration": ([], [])}, "calibration was given, but with depth"),
        ({"backbone_pred": [1]}, "inconsistent numbers of samples"),
    ],
)
def test_what_does_not_fit_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        draw(**params)


def results(**params):
    given = {
        "mean_test_accuracy": np.array([0.8, np.nan, 0.9]),
        "std_test_accuracy": np.array([0.1, np.nan, 0.2]),
        "mean_test_flops": np.array([0.5, np.nan, 0.1]),
        "std_test_flops": np.array([0.01, np.nan, 0.02]),
        "params": [{"margin": 0.1}, {"margin": 5}, {"margin": 0}],
    }
    return given | params


def test_candidates_that_failed_are_left_out():
    display = CascadeDisplay.from_cv_results(results(), best_index=2)
    np.testing.assert_allclose(display.line_.get_xydata(), [[10, 90], [50, 80]])
    assert display.operating_point == (0.1, 0.9)
    assert display.values == [{"margin": 0.1}, {"margin": 0}]


def test_results_without_parameters_have_no_values():
    given = results()
    del given["params"]
    assert CascadeDisplay.from_cv_results(given).values is None


def test_an_absent_metric_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"'saved', only \['accuracy', 'flops'\]"):
        CascadeDisplay.from_cv_results(results(), flops="saved")


def test_points_without_scores_are_refused():
    nothing = results(mean_test_accuracy=np.full(3, np.nan))
    with pytest.raises(ValueError, match="no candidate that was scored"):
        CascadeDisplay.from_cv_results(nothing)


def test_values_of_the_knob_span_the_curve_by_default():
    given = data()
    display = CascadeDisplay.from_estimator(calexnet(), given.test, given.test_y)
    assert len(display.values) == len(display.line_.get_xdata())
    assert np.ptp(display.flops_reduction) > 0.1
