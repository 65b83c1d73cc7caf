"""Costs in another unit than MACs: given or measured, they go everywhere."""

import copy
import time

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.tree import DecisionTreeClassifier

from sk_calex import (
    CascadeClassifier,
    CascadeDisplay,
    ExitRiskController,
    MarginSearchCV,
    accuracy_at_flops_scorer,
    cheapest_within,
    flops_reduction_scorer,
    measure_costs,
    operating_curve,
)
from sk_calex.baselines import SDNClassifier
from sk_calex.cascade._costs import with_unit
from sk_calex.policies import RegretPriced, SharedThreshold
from tests._cascade_models import images, small_branch, tiny_backbone

X, Y = images(150)
TEST, TRUTH = images(60, seed=1)
FLAT, CODES = make_classification(400, n_informative=6, n_classes=3, random_state=0)
PARTS = {"stages": [1.0, 2.0, 4.0], "heads": [0.5, 0.25]}  # 1.5, 3.75, 7.75 of 7


def cascade(**params):
    # Whatever the branches learn, samples may exit at both: no head rests.
    rule = SharedThreshold(0.6)
    settings = {"branch": small_branch("gap"), "random_state": 0, "calibrator": rule}
    return CascadeClassifier(tiny_backbone(), **(settings | params))


@pytest.fixture(scope="module")
def fitted():
    return cascade(costs=PARTS).fit(X, Y)


def test_parts_add_up_heads_included(fitted):
    np.testing.assert_allclose(fitted.depth_costs_, [1.5, 3.75, 7.75])
    depth = fitted.exit_depth(TEST)
    np.testing.assert_allclose(fitted.cost(TEST), fitted.depth_costs_[depth])
    mean = fitted.depth_costs_[depth].mean()
    assert fitted.cost_reduction(TEST) == pytest.approx(1 - mean / 7)


def test_a_sequence_counts_from_its_last_entry(fitted):
    other = clone(fitted).set_params(costs=[1, 2, 4]).fit(X, Y)
    np.testing.assert_array_equal(other.depth_costs_, [1, 2, 4])
    mean = other.depth_costs_[other.exit_depth(TEST)].mean()
    assert other.cost_reduction(TEST) == pytest.approx(1 - mean / 4)


def test_flops_stay_flops(fitted):
    plain = clone(fitted).set_params(costs=None).fit(X, Y)
    assert fitted.flops_reduction(TEST) == plain.flops_reduction(TEST)
    assert plain.cost_reduction(TEST) == pytest.approx(plain.flops_reduction(TEST))
    assert fitted.cost_reduction(TEST) != pytest.approx(plain.flops_reduction(TEST))


def test_curves_scorers_and_displays_take_them(fitted):
    pytest.importorskip("matplotlib")
    curve = operating_curve(fitted, TEST, TRUTH, [0.9, 0.6])
    saved = 1 - curve.depth_share @ fitted.depth_costs_ / 7
    np.testing.assert_allclose(curve.flops_reduction, saved)
    assert flops_reduction_scorer(fitted, TEST) == fitted.cost_reduction(TEST)
    weight = np.arange(60.0)
    mean = np.average(fitted.cost(TEST), weights=weight)
    scored = flops_reduction_scorer(fitted, TEST, sample_weight=weight)
    assert scored == pytest.approx(1 - mean / 7)
    display = CascadeDisplay.from_estimator(fitted, TEST, TRUTH, values=[0.9, 0.6])
    assert display.ax_.get_xlabel() == "cost saved (%)"
    np.testing.assert_allclose(display.flops_reduction, saved)


def test_rules_that_weigh_cost_take_them():
    free = cascade(costs=[1e-6, 1e-6, 1.0], margin="auto", calibrator=RegretPriced(0.5))
    dear = clone(free).set_params(costs=[1.0, 1.0, 1.0]).fit(X, Y)
    assert (dear.exit_depth(TEST) == 2).mean() >= (
        free.fit(X, Y).exit_depth(TEST) == 2
    ).mean()
    assert (free.calibrator_.thresholds_ <= dear.calibrator_.thresholds_).any()


def test_other_costs_train_nothing(fitted, monkeypatch):
    from sk_calex.cascade import _cascade

    base = clone(fitted)
    first = clone(base).fit(X, Y)
    monkeypatch.setattr(_cascade, "fit_branches", pytest.fail)
    again = clone(base).set_params(costs=[1, 2, 3]).fit(X, Y)
    assert again.branches_[0] is first.branches_[0]
    assert again.depth_costs_[0] == 1


def test_trees_and_a_last_stage_whose_macs_are_unknown():
    """As branch and last stage, in a search for a budget."""
    unknown = QuadraticDiscriminantAnalysis(reg_param=0.1)
    forest = RandomForestClassifier(20, random_state=0)
    trees = CascadeClassifier(
        branch=DecisionTreeClassifier(max_depth=3, random_state=0),
        final_estimator=forest,
        targets="labels",
        costs=[1.0, 20.0],
        cv=3,
        random_state=0,
    )
    with pytest.raises(ValueError, match="MACs of final_estimator"):
        clone(trees).set_params(costs=None, final_estimator=unknown).fit(
            FLAT, CODES
        ).cost(FLAT)
    search = MarginSearchCV(trees, flops_budget=0.1, margins=[0.6, 0.7], cv=2)
    search.fit(FLAT, CODES)
    assert search.best_flops_reduction_ >= 0.1
    assert 0 < search.best_estimator_.cost_reduction(FLAT) <= 0.95
    grid = GridSearchCV(
        trees,
        {"margin": [0.0, 0.3]},
        scoring={"accuracy": "accuracy", "flops": flops_reduction_scorer},
        refit=cheapest_within(max_accuracy_drop=1.0),
        cv=2,
        error_score="raise",
    ).fit(FLAT, CODES)
    assert grid.best_params_ == {"margin": 0.3}
    assert accuracy_at_flops_scorer(flops_budget=0.1)(grid, FLAT, CODES) > 0.4


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([1, 2], r"costs=\[1, 2\] must be 3 finite numbers"),
        ([1, np.nan, 2], "must be 3 finite numbers"),
        ([1, -1, 2], "none negative"),
        ([0, 0, 0], "not all zero"),
        ({"stages": [1, 2, 3]}, "needs 'stages' and 'heads'"),
        ({"stages": [1, 2, 3], "heads": [1]}, r"costs\['heads'\]=.* 2 finite numbers"),
    ],
)
def test_what_is_no_cost_is_refused_before_the_work(costs, message, monkeypatch):
    from sk_calex import FrozenBackbone

    monkeypatch.setattr(FrozenBackbone, "transform", pytest.fail)
    with pytest.raises(ValueError, match=message):
        cascade(costs=costs).fit(X, Y)


def test_baselines_take_them():
    sdn = SDNClassifier(tiny_backbone(), costs=PARTS, max_iter=2, random_state=0)
    np.testing.assert_allclose(sdn.fit(X, Y).depth_costs_, [1.5, 3.75, 7.75])


# -- measured --------------------------------------------------------------------------


class Slow(LogisticRegression):
    """Takes five milliseconds for each sample."""

    def predict_proba(self, X):
        time.sleep(0.005 * len(X))
        return super().predict_proba(X)


def test_each_part_is_measured_by_itself():
    plain = CascadeClassifier(
        branch=LogisticRegression(),
        final_estimator=Slow(),
        calibrator=SharedThreshold(0.6),
        random_state=0,
        cv=0.5,
    ).fit(FLAT[:40], CODES[:40])
    costs = measure_costs(plain, FLAT[:20], n_repeats=1)
    assert costs.unit == "ms"
    assert (costs.stages.shape, costs.heads.shape) == ((2,), (1,))
    assert costs.stages[1] >= 5  # the last stage answers with its estimator
    assert (costs.stages >= 0).all()
    assert (costs.heads >= 0).all()
    plain.set_params(costs=costs)
    assert plain.depth_costs_[1] >= 5
    per_depth = costs.stages.cumsum() + np.r_[costs.heads, 0].cumsum()
    np.testing.assert_allclose(plain.depth_costs_, per_depth)


def test_a_module_is_measured_stage_by_stage(fitted):
    before = fitted.predict(TEST)
    costs = measure_costs(fitted, TEST)
    assert (costs.stages > 0).all()
    assert (costs.heads > 0).all()
    np.testing.assert_array_equal(fitted.predict(TEST), before)
    with pytest.raises(ValueError, match="n_repeats=0 must be at least 1"):
        measure_costs(fitted, TEST, n_repeats=0)


def test_what_is_saved_is_named_in_the_unit_of_the_costs(fitted):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from sk_calex import ExitDepthDisplay

    named = {
        "ms": {**PARTS, "unit": "ms"},
        "cost": [1.0, 2.0, 4.0],
        "FLOPs": None,
    }
    for name, costs in named.items():
        other = copy.copy(fitted).set_params(costs=costs)
        curve = operating_curve(other, TEST, TRUTH, [0.0, 0.3])
        assert curve.cost_name == name
        for display in (
            CascadeDisplay.from_curve(curve),
            CascadeDisplay.from_estimator(other, TEST, TRUTH, values=[0.9, 0.6]),
        ):
            assert display.ax_.get_xlabel() == f"{name} saved (%)"
        ticks = ExitDepthDisplay.from_estimator(other, TEST).ax_.get_xticklabels()
        unit = {"ms": "ms", "cost": "", "FLOPs": "MACs"}[name]
        shown = [with_unit(cost, unit) for cost in other.depth_costs_]
        assert [tick.get_text().split("\n")[1] for tick in ticks] == shown
        assert f"{shown[0].removesuffix(' MACs')} (" in other._repr_html_()


def test_a_display_of_other_answers_names_its_cost():
    pytest.importorskip("matplotlib").use("Agg")
    rows = {"y_true": [0, 1], "y_pred": [0, 1], "depth": [0, 1]}
    prices = {"costs": [1.0, 2.0], "backbone_cost": 2.0, "cost_name": "cents"}
    display = CascadeDisplay.from_predictions(**rows, **prices)
    assert display.ax_.get_xlabel() == "cents saved (%)"
    results = {"mean_accuracy": [0.9], "std_accuracy": [0.0]}
    results |= {"mean_flops_reduction": [0.2], "std_flops_reduction": [0.0]}
    results["margin"] = [0.1]
    display = CascadeDisplay.from_cv_results(results, cost_name="ms")
    assert display.ax_.get_xlabel() == "ms saved (%)"


def test_messages_and_reports_name_the_unit(fitted, tmp_path):
    search = MarginSearchCV(
        CascadeClassifier(costs={"stages": [1, 1], "heads": [1], "unit": "ms"}),
        flops_budget=1.0,
        cv=2,
    )
    with pytest.raises(ValueError, match=r"saves .* of the ms\."):
        search.fit(FLAT, CODES)
    other = copy.copy(fitted).set_params(costs={**PARTS, "unit": "ms"})
    controller = ExitRiskController(other, max_risk=0.9, confidence_level=0.5)
    new, labels = images(60, seed=2)
    assert "of the plain backbone's ms saved" in controller.fit(new, labels).report()
    controller.save(tmp_path / "controller")
    card = (tmp_path / "controller" / "README.md").read_text()
    assert "ms saved (an estimate)" in card
    other.save(tmp_path / "cascade")
    assert "ms saved, by `costs`" in (tmp_path / "cascade" / "README.md").read_text()
