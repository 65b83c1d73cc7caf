"""The accuracy-FLOPs picture shows the numbers of the curve, and who drew them."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.path import Path
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils import Bunch

from sk_calex import (
    CascadeClassifier,
    MarginSearchCV,
    cheapest_within,
    flops_reduction_scorer,
    margin_curve,
    operating_curve,
    pareto_front,
)
from sk_calex.inspection import CascadeDisplay
from sk_calex.policies import Oracle, SharedThreshold
from tests.inspection._inspected import NAMES, calexnet, data, fit, reference, sdn


def display_of(
    reduction: object = (0.1, 0.3, 0.5), accuracy: object = (0.9, 0.88, 0.7), **params
) -> CascadeDisplay:
    params = {"backbone_accuracy": 0.91, "name": "one"} | params
    return CascadeDisplay(flops_reduction=reduction, accuracy=accuracy, **params)


def legend_of(display: CascadeDisplay) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def stars(display: CascadeDisplay) -> list[tuple[float, float]]:
    lines = [line for line in display.ax_.lines if line.get_label() == "backbone"]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def drawn_points(display: CascadeDisplay) -> np.ndarray:
    """Points of the curve with its pale ends, sorted."""
    lines = [*of_kind(display, "curve"), *of_kind(display, "tail")]
    return np.unique(np.concatenate([line.get_xydata() for line in lines]), axis=0)


def values_of(display: CascadeDisplay) -> list[str]:
    texts = [t for t in display.ax_.texts if t.get_gid() == "sk_calex.value"]
    return [t.get_text() for t in texts if t.get_visible()]


def test_curve_backbone_labels_and_legend() -> None:
    display = display_of().plot()
    np.testing.assert_allclose(display.line_.get_xdata(), [10, 30, 50])
    np.testing.assert_allclose(display.line_.get_ydata(), [90, 88, 70])
    assert stars(display) == [(0, 91)]
    assert display.ax_.get_xlabel() == "FLOPs saved (%)"
    assert display.ax_.get_ylabel() == "Accuracy (%)"
    assert legend_of(display) == ["one", "backbone"]
    assert display.figure_ is display.ax_.figure


def test_points_are_joined_in_the_order_of_their_cost() -> None:
    display = display_of([0.5, -0.1, 0.3], [0.7, 0.9, 0.88]).plot()
    np.testing.assert_allclose(display.line_.get_xdata(), [-10, 30, 50])
    np.testing.assert_allclose(display.line_.get_ydata(), [90, 88, 70])


def test_methods_on_the_same_axes_differ_without_colour() -> None:
    display = display_of().plot()
    styles, colors = set(), set()
    for name in "abcdefgh":
        other = display_of(accuracy=[0.9, 0.8, 0.6], name=name).plot(display.ax_)
        styles.add((other.line_.get_marker(), other.line_.get_linestyle()))
        colors.add(to_rgba(other.line_.get_color()))
        assert other.ax_ is display.ax_
    assert len(styles) == 8
    assert len(colors) == 6  # those that the colour-blind tell apart
    assert legend_of(display) == ["one", "backbone", *"abcdefgh"]
    assert stars(display) == [(0, 91)]  # the shared backbone is marked once


def test_another_backbone_gets_its_own_mark() -> None:
    display = display_of().plot()
    display_of(backbone_accuracy=0.95).plot(display.ax_)
    assert stars(display) == [(0, 91), (0, 95)]


def test_lines_of_others_do_not_count() -> None:
    ax = Figure().subplots()
    ax.plot([0, 1], [0, 1])
    display = display_of().plot(ax)
    assert display.line_.get_marker() == "o"
    assert display.line_.get_linestyle() == "-"


def test_without_names_there_is_no_legend() -> None:
    display = display_of(backbone_accuracy=None, name=None).plot()
    assert display.ax_.get_legend() is None
    assert not stars(display)


def test_plot_takes_a_name_and_the_arguments_of_a_line() -> None:
    display = display_of().plot(name="two", color="red", linestyle=":")
    assert legend_of(display) == ["two", "backbone"]
    assert display.line_.get_color() == "red"
    assert display.line_.get_linestyle() == ":"
    assert display.name == "one"


def test_estimator_and_curve_draw_the_same() -> None:
    X, y = make_classification(300, n_informative=6, n_classes=3, random_state=0)
    cascade = CascadeClassifier(random_state=0).fit(X, y)
    margins = [0.2, -0.1, 0.0]
    curve = margin_curve(cascade, X, y, margins=margins)
    display = CascadeDisplay.from_estimator(cascade, X, y, margins=margins)
    again = CascadeDisplay.from_curve(curve, name="again", ax=display.ax_)
    order = np.argsort(curve.flops_reduction, kind="stable")
    expected = 100 * np.c_[curve.flops_reduction, curve.accuracy][order]
    np.testing.assert_allclose(drawn_points(display), np.unique(expected, axis=0))
    np.testing.assert_array_equal(display.line_.get_xydata(), again.line_.get_xydata())
    np.testing.assert_array_equal(display.values, margins)
    np.testing.assert_array_equal(again.values, margins)
    assert stars(display) == [(0, 100 * curve.backbone_accuracy)]
    assert legend_of(display) == [
        *("CascadeClassifier", "operating point", "backbone", "again")
    ]


def test_curve_without_a_name_has_no_entry() -> None:
    curve = Bunch(
        flops_reduction=[0.1], accuracy=[0.9], backbone_accuracy=0.9, margins=[0.0]
    )
    assert legend_of(CascadeDisplay.from_curve(curve)) == ["backbone"]


@pytest.mark.parametrize(
    ("reduction", "accuracy", "message"),
    [
        ([0.1, np.nan], [0.9, 0.9], "flops_reduction"),
        ([0.1, 0.2], [0.9, np.inf], "accuracy"),
        ([0.1, 0.2], [0.9], "inconsistent numbers of samples"),
        ([[0.1, 0.2]], [0.9, 0.8], "1d array"),
    ],
)
def test_bad_points_are_refused(
    reduction: object, accuracy: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        display_of(reduction, accuracy).plot()


def test_without_matplotlib_the_error_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"sk-calex\[plot\]"):
        display_of().plot()


def of_kind(display: CascadeDisplay, kind: str) -> list:
    return [x for x in display.ax_.lines if x.get_gid() == f"sk_calex.{kind}"]


@pytest.mark.parametrize("cascade", [calexnet, reference, sdn])
def test_every_method_is_drawn_over_its_own_knob(cascade) -> None:
    fitted, given = cascade(), data()
    values = [0.2, 0.6] if fitted.knob == "threshold" else [-0.1, 0.05]
    display = CascadeDisplay.from_estimator(
        fitted, given.test, given.test_y, values=values
    )
    curve = operating_curve(fitted, given.test, given.test_y, values)
    expected = 100 * np.c_[curve.flops_reduction, curve.accuracy]
    np.testing.assert_allclose(drawn_points(display), np.unique(expected, axis=0))
    # The point at which the cascade stands, on its own.
    (ring,) = of_kind(display, "point")
    assert ring.get_xdata()[0] == pytest.approx(
        100 * fitted.flops_reduction(given.test)
    )
    assert ring.get_ydata()[0] == pytest.approx(
        100 * fitted.score(given.test, given.test_y)
    )
    default = CascadeDisplay.from_estimator(fitted, given.test, given.test_y)
    assert len(default.values) >= 10


def test_weights_of_samples_count() -> None:
    given = data()
    weight = (given.test_y == "ant").astype(float)
    display = CascadeDisplay.from_estimator(
        sdn(), given.test, given.test_y, values=[0.6], sample_weight=weight
    )
    ants = given.test_y == "ant"
    want = 100 * sdn().score(given.test[ants], given.test_y[ants])
    np.testing.assert_allclose(display.line_.get_ydata(), [want])


def test_the_oracle_is_marked_as_the_upper_limit() -> None:
    given, cascade = data(), sdn()
    display = CascadeDisplay.from_estimator(
        cascade, given.test, given.test_y, oracle=True, mark_operating_point=False
    )
    proba = cascade.stage_probabilities(given.test)
    codes = np.searchsorted(NAMES, given.test_y)
    depth = Oracle().depth(proba, codes)
    right = proba.argmax(axis=2)[depth, np.arange(240)] == codes
    saved = 1 - cascade.depth_costs_[depth].mean() / sum(cascade.layout_.stage_macs)
    (star,) = of_kind(display, "oracle")
    np.testing.assert_allclose(star.get_xydata(), [[100 * saved, 100 * right.mean()]])
    assert "oracle of SDNClassifier (upper limit)" in legend_of(display)
    assert not of_kind(display, "point")
    unnamed = display_of(name=None, oracle=(0.7, 0.95)).plot()
    assert "oracle (upper limit)" in legend_of(unnamed)


def test_methods_share_one_entry_for_their_operating_points() -> None:
    display = display_of(operating_point=(0.1, 0.9)).plot()
    other = display_of(operating_point=(0.3, 0.88), name="two").plot(display.ax_)
    assert legend_of(display) == ["one", "operating point", "backbone", "two"]
    rings = of_kind(display, "point")
    colors = [to_rgba(ring.get_markeredgecolor()) for ring in rings]
    lines = [to_rgba(each.line_.get_color()) for each in (display, other)]
    assert colors == lines  # each ring is its method's


def test_pipelines_and_searches_are_looked_into() -> None:
    given = data()
    inside = make_pipeline(FrozenEstimator(calexnet()))
    points = [
        CascadeDisplay.from_estimator(each, given.test, given.test_y, margins=[0.0])
        for each in (calexnet(), inside)
    ]
    np.testing.assert_array_equal(
        points[0].line_.get_xydata(), points[1].line_.get_xydata()
    )
    assert points[1].name == "CascadeClassifier"


def test_the_front_joins_what_no_point_beats() -> None:
    reduction, accuracy = [0.1, 0.2, 0.3, 0.3, 0.5], [0.9, 0.8, 0.85, 0.84, 0.7]
    beaten = ~pareto_front(reduction, accuracy)
    assert beaten.tolist() == [False, True, False, True, False]
    spread = {"accuracy_std": [0.01, 0.02, 0.03, 0.04, 0.05]}
    both = display_of(reduction, accuracy, **spread).plot(pareto=True)
    np.testing.assert_allclose(both.line_.get_xdata(), [10, 30, 50])
    (others,) = of_kind(both, "beaten")
    np.testing.assert_allclose(others.get_xydata(), [[20, 80], [30, 84]])
    assert others.get_linestyle() == "None"
    alone = display_of(reduction, accuracy, **spread).plot(pareto="only")
    assert not of_kind(alone, "beaten")
    # The band is that of the points that are left.
    band = alone.ax_.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(65)
    assert len(np.unique(band[:, 0])) == 3


def test_deviations_are_a_band_or_bars() -> None:
    spread = {"accuracy_std": [0.01, 0.02, 0.04], "flops_reduction_std": [0.1] * 3}
    display = display_of([0.5, 0.1, 0.3], [0.7, 0.9, 0.88], **spread).plot()
    (band,) = display.ax_.collections
    corners = {(round(x, 6), round(y, 6)) for x, y in band.get_paths()[0].vertices}
    assert {(10, 88), (10, 92), (30, 84), (30, 92), (50, 69), (50, 71)} <= corners
    display = display_of([0.5, 0.1, 0.3], [0.7, 0.9, 0.88], **spread).plot(
        spread="bars"
    )
    across, along = display.ax_.collections
    np.testing.assert_allclose(across.get_segments()[0], [[0, 90], [20, 90]])
    np.testing.assert_allclose(along.get_segments()[2], [[50, 69], [50, 71]])
    assert not display_of().plot(spread="bars").ax_.collections


def test_searches_are_drawn_with_bars_over_folds() -> None:
    given = data()
    search = GridSearchCV(
        fit().set_params(cv=0.3),
        {"margin": [-0.1, 0.0, 0.1]},
        scoring={"accuracy": "accuracy", "saved": flops_reduction_scorer},
        refit=cheapest_within(max_accuracy_drop=1, baseline=1, flops="saved"),
        cv=2,
    ).fit(given.X, given.y)
    results = search.cv_results_
    display = CascadeDisplay.from_cv_results(
        results, flops="saved", best_index=search.best_index_, name="grid"
    )
    order = np.argsort(results["mean_test_saved"], kind="stable")
    expected = np.c_[results["mean_test_saved"], results["mean_test_accuracy"]]
    np.testing.assert_allclose(
        drawn_points(display), np.unique(100 * expected[order], axis=0)
    )
    assert "numbers: margin, bars: one standard deviation" in display.ax_.get_title()
    assert len(display.ax_.collections) == 2
    (ring,) = of_kind(display, "point")
    best = search.best_index_
    assert ring.get_ydata()[0] == 100 * results["mean_test_accuracy"][best]
    assert display.values == results["params"]


def test_a_margin_search_is_drawn_too() -> None:
    given = data()
    search = MarginSearchCV(
        FrozenEstimator(calexnet()), max_accuracy_drop=1.0, margins=[-0.1, 0.1]
    ).fit(given.test, given.test_y)
    display = CascadeDisplay.from_cv_results(search.cv_results_)
    assert display.values == [-0.1, 0.1]
    assert display.value_name == "margin"


@pytest.mark.parametrize("n_curves", [1, 7])
def test_the_legend_covers_no_curve(n_curves: int) -> None:
    x = np.linspace(0, 0.7, 12)
    ax = None
    for i in range(n_curves):
        y = 0.73 - (0.1 + i / 50) * x**3 - i / 300
        display = display_of(x, y, name=f"method number {i}").plot(ax)
        ax = display.ax_
    display.figure_.canvas.draw()
    box = display.ax_.get_legend().get_window_extent()
    for line in of_kind(display, "curve"):
        points = display.ax_.transData.transform(line.get_xydata())
        assert not Path(points).intersects_bbox(box, filled=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pareto": "yes"}, "pareto='yes' must be"),
        ({"spread": "fan"}, "spread='fan'"),
    ],
)
def test_unknown_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        display_of().plot(**options)


def test_knobs_are_named_rightly() -> None:
    given = data()
    with pytest.raises(ValueError, match="give one"):
        CascadeDisplay.from_estimator(
            calexnet(), given.test, given.test_y, values=[0], margins=[0]
        )
    with pytest.raises(ValueError, match="moves by 'threshold'"):
        CascadeDisplay.from_estimator(sdn(), given.test, given.test_y, margins=[0])
    cascade = fit(calibrator=SharedThreshold())
    with pytest.raises(ValueError, match="calibrator__threshold"):
        CascadeDisplay.from_estimator(cascade, given.test, given.test_y, margins=[0])
    with pytest.raises(ValueError, match="never saw"):
        CascadeDisplay.from_estimator(cascade, given.test, ["dog"] * 240)


def test_points_that_another_beats_at_both_ends_are_pale() -> None:
    display = display_of([-0.1, 0.1, 0.2, 0.5], [0.85, 0.9, 0.88, 0.7]).plot()
    np.testing.assert_allclose(display.line_.get_xdata(), [10, 20, 50])
    (tail,) = of_kind(display, "tail")
    np.testing.assert_allclose(tail.get_xydata(), [[-10, 85], [10, 90]])
    assert tail.get_alpha() < 0.5
    assert tail.get_color() == display.line_.get_color()
    assert legend_of(display) == ["one", "backbone"]
    # At one saving only the more accurate point is worth having.
    display = display_of([0.1, 0.5, 0.5], [0.9, 0.7, 0.6]).plot()
    np.testing.assert_allclose(display.line_.get_xdata(), [10, 50])
    (tail,) = of_kind(display, "tail")
    np.testing.assert_allclose(tail.get_xydata(), [[50, 70], [50, 60]])


def test_points_are_labelled_with_their_value_where_there_is_room() -> None:
    display = display_of(values=[0.0, 0.05, 0.1], value_name="margin").plot()
    assert values_of(display) == ["0", "0.05", "0.1"]
    title = display.ax_.get_title()
    assert title == "Accuracy against FLOPs saved\nnumbers: margin"
    x = np.linspace(0.1, 0.5, 200)
    display = display_of(x, 0.9 - x**2, values=x).plot()
    assert 3 <= len(values_of(display)) < 60
    # A curve that comes later makes the labels of both move or go.
    display = display_of(values=[0.0, 0.05, 0.1]).plot()
    other = display_of(accuracy=[0.899, 0.879, 0.699], values=[1, 2, 3]).plot(
        display.ax_
    )
    renderer = display.figure_.canvas.get_renderer()
    display.figure_.canvas.draw()
    boxes = [
        t.get_window_extent(renderer) for t in display.ax_.texts if t.get_visible()
    ]
    assert len(boxes) >= 3
    assert not any(
        a.shrunk(0.9, 0.9).overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]
    )
    for display_ in (display, other):
        path = Path(display.ax_.transData.transform(display_.line_.get_xydata()))
        assert not any(
            path.intersects_bbox(box.shrunk(0.8, 0.8), filled=False) for box in boxes
        )


@pytest.mark.parametrize(
    "values", [[(0, 1)] * 3, ["a", "b", "c"], [{"a": 1, "b": 2}] * 3]
)
def test_values_that_are_no_numbers_are_not_written(values: list) -> None:
    display = display_of(values=values, value_name="margin").plot()
    assert values_of(display) == []
    assert display.ax_.get_title() == "Accuracy against FLOPs saved"


def test_the_number_of_samples_gives_clopper_pearson_intervals() -> None:
    display = display_of([0.1, 0.3], [0.9, 0.5], n_samples=10).plot(spread="bars")
    (bars,) = display.ax_.collections
    # Of 9 and 5 of 10; tables of Clopper and Pearson.
    expected = [[[10, 55.498], [10, 99.747]], [[30, 18.709], [30, 81.291]]]
    np.testing.assert_allclose(bars.get_segments(), expected, atol=1e-3)
    assert "bars: 95 % interval, n = 10" in display.ax_.get_title()
    # Deviations over seeds say more than one test set: they are drawn where known.
    both = display_of([0.1], [0.9], n_samples=10, accuracy_std=[0.01]).plot()
    assert "band: one standard deviation" in both.ax_.get_title()


def test_weighted_samples_count_as_their_effective_number() -> None:
    rows = {"y_true": [0, 1, 1], "y_pred": [0, 1, 0], "depth": [0, 0, 0]}
    costs = {"costs": [50.0, 110.0], "backbone_cost": 100.0}
    assert CascadeDisplay.from_predictions(**rows, **costs).n_samples == 3
    weighted = CascadeDisplay.from_predictions(**rows, **costs, sample_weight=[2, 1, 1])
    assert weighted.n_samples == pytest.approx(16 / 6)


def test_a_figure_or_a_part_of_one_is_drawn_on() -> None:
    whole = Figure()
    left, right = whole.subfigures(1, 2)
    assert display_of().plot(left).figure_ is left
    assert display_of().plot(right).ax_ in right.axes
    assert display_of().plot(Figure()).ax_.get_title()
    with pytest.raises(ValueError, match="ax holds 2 axes but one is drawn on"):
        display_of().plot(Figure().subplots(2))


def test_the_title_tells_curves_over_different_knobs() -> None:
    values = {"values": [0.0, 0.1, 0.2], "value_name": "margin", "n_samples": 50}
    display = display_of(**values).plot()
    display_of(**values).plot(display.ax_)
    assert "numbers: margin, band" in display.ax_.get_title()
    display_of(**values | {"value_name": "threshold"}).plot(display.ax_)
    assert "numbers: the knob of each, band" in display.ax_.get_title()
    alone = display_of(values=[0.0, 0.1, 0.2], value_name="margin").plot()
    display_of(values=[0.0, 0.1, 0.2], value_name="quota").plot(alone.ax_)
    assert alone.ax_.get_title().endswith("numbers: the knob of each")
