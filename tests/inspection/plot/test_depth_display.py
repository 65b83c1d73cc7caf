"""The picture of depths shows their shares, by class and for all."""

import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.dummy import DummyClassifier
from sklearn.frozen import FrozenEstimator

from sk_calex import CascadeClassifier, ExitDepthDisplay, FeatureArray
from tests.inspection._inspected import NAMES, calexnet, data, fit, sdn


def widths(display):
    """Widths of the stacked bars, shape (n_rows, n_depths)."""
    return np.array([[p.get_width() for p in bar] for bar in display.bars_]).T


def heights(display):
    return [bar[0].get_height() for bar in display.bars_]


@pytest.mark.parametrize("cascade", [calexnet, sdn])
def test_shares_of_a_cascade(cascade):
    fitted, given = cascade(), data()
    display = ExitDepthDisplay.from_estimator(FrozenEstimator(fitted), given.test)
    share = np.bincount(fitted.exit_depth(given.test), minlength=3) / 240
    np.testing.assert_allclose(heights(display), 100 * share)
    np.testing.assert_allclose(display.share, share)
    ticks = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert [tick.splitlines()[0] for tick in ticks] == ["stem", "block1", "last stage"]
    assert all(tick.endswith(" MACs") for tick in ticks)
    assert display.ax_.get_ylabel() == "Share of samples (%)"
    written = [text.get_text() for text in display.ax_.texts]
    assert written == [f"{100 * s:.1f} %" for s in share]
    assert display.figure_ is display.ax_.figure


def test_shares_by_class_with_all_on_top():
    fitted, given = calexnet(), data()
    display = ExitDepthDisplay.from_estimator(fitted, given.test, given.test_y)
    depth = fitted.exit_depth(given.test)
    want = [np.bincount(depth, minlength=3) / 240]
    for name in NAMES:
        mine = depth[given.test_y == name]
        want.append(np.bincount(mine, minlength=3) / len(mine))
    np.testing.assert_allclose(display.class_share, want[1:])
    ticks = [label.get_text() for label in display.ax_.get_yticklabels()]
    cost = np.array(want[1:]) @ fitted.depth_costs_
    order = np.argsort(cost, kind="stable")
    count = [np.sum(given.test_y == name) for name in NAMES[order]]
    assert ticks == [
        "all, n = 240",
        *(f"{name}, n = {n}" for name, n in zip(NAMES[order], count, strict=True)),
    ]
    assert display.ax_.yaxis_inverted()  # "all" on top
    shares = 100 * np.array([want[0], *(want[1 + i] for i in order)])
    np.testing.assert_allclose(widths(display), shares)
    # Each row is full: the parts lie side by side.
    ends = [p.get_x() + p.get_width() for p in display.bars_[-1]]
    np.testing.assert_allclose(ends, 100)
    legend = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert [entry.split(",")[0] for entry in legend] == ["stem", "block1", "last stage"]
    assert display.ax_.get_xlabel() == "Share of the samples of a class (%)"


def test_depths_differ_without_colour():
    display = ExitDepthDisplay.from_predictions([0, 1, 2, 3], [0, 0, 1, 1])
    patches = [bar[0] for bar in display.bars_]
    greys = [np.dot(p.get_facecolor()[:3], [0.299, 0.587, 0.114]) for p in patches]
    assert (np.diff(greys) < -0.1).all()  # from light to dark
    assert len({p.get_hatch() for p in patches}) == 4


def test_empty_depths_are_drawn_and_small_shares_have_no_text():
    labels = ["a"] * 20
    display = ExitDepthDisplay.from_predictions([0] * 19 + [1], labels, n_depths=3)
    np.testing.assert_allclose(widths(display), [[95, 5, 0]] * 2)
    written = [t.get_text() for t in display.ax_.texts]
    assert written == ["95", "95", "", "", "", ""]
    names = [text.get_text() for text in display.ax_.get_legend().get_texts()]
    assert names == ["depth 0", "depth 1", "depth 2"]


def test_the_legend_lies_above_the_bars():
    display = ExitDepthDisplay.from_predictions(
        [0, 1, 2, 3], [0, 0, 1, 1], depth_names=["a rather long name"] * 4
    )
    display.figure_.canvas.draw()
    legend = display.ax_.get_legend().get_window_extent()
    assert not legend.overlaps(display.ax_.get_window_extent())
    assert display.figure_.bbox.containsx(legend.x1)
    assert display.figure_.bbox.containsy(legend.y1)


def test_a_layout_without_macs_is_drawn_without_prices():
    given = data()
    names = given.X.layout.feature_names()
    import pandas as pd

    frame = pd.DataFrame(np.asarray(given.X), columns=names)
    cascade = CascadeClassifier(
        branch=calexnet().branch, input="features", random_state=0
    ).fit(frame, given.y)
    display = ExitDepthDisplay.from_estimator(cascade, frame)
    ticks = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert ticks == ["stem", "block1", "last stage"]
    assert isinstance(given.X, FeatureArray)


def test_axes_and_the_arguments_of_bars_are_taken():
    ax = Figure().subplots()
    display = ExitDepthDisplay.from_predictions([0, 1], ax=ax, edgecolor="red")
    assert display.ax_ is ax
    assert display.bars_[0][0].get_edgecolor() == (1, 0, 0, 1)


def test_classes_without_samples_have_no_bar():
    display = ExitDepthDisplay(
        share=[0.5, 0.5], class_share=[[0.5, 0.5], [np.nan, np.nan]]
    ).plot()
    np.testing.assert_allclose(widths(display), [[50, 50], [50, 50], [0, 0]])
    ticks = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert ticks == ["all", "0", "1"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"depth": []}, "at least one"),
        ({"depth": [0.5]}, "integer >= 0"),
        ({"depth": [-1, 0]}, "integer >= 0"),
        ({"depth": [0, 3], "n_depths": 3}, "goes up to 3, but n_depths=3"),
        ({"depth": [0, 1], "labels": [0]}, "inconsistent numbers of samples"),
        ({"depth": [0, 1], "depth_names": ["a"]}, "each of the 2 depths"),
        ({"depth": [0, 1], "depth_costs": [1, 2, 3]}, "each of the 2 depths"),
    ],
)
def test_what_does_not_fit_is_refused(params, message):
    with pytest.raises(ValueError, match=message):
        ExitDepthDisplay.from_predictions(**params)


def test_shares_of_other_classes_are_refused():
    display = ExitDepthDisplay(share=[1.0], class_share=[[1.0]], classes=["a", "b"])
    with pytest.raises(ValueError, match=r"must have shape \(2, 1\)"):
        display.plot()


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"ExitDepthDisplay .*sk-calex\[plot\]"):
        ExitDepthDisplay.from_predictions([0, 1])


def test_heads_of_unknown_cost_are_drawn_without_it():
    given, fitted = data(), fit(branch=DummyClassifier())
    with pytest.raises(ValueError, match="MACs"):
        _ = fitted.depth_costs_
    display = ExitDepthDisplay.from_estimator(fitted, given.test)
    ticks = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert not any("MACs" in tick for tick in ticks)


def test_names_that_begin_with_an_underscore_are_in_the_legend():
    depth = np.array([0, 0, 1, 1])
    display = ExitDepthDisplay.from_predictions(
        depth, np.array([0, 1, 0, 1]), depth_names=["_blocks.2", "last stage"]
    )
    legend = display.ax_.get_legend() or display.figure_.legends[0]
    texts = [text.get_text().strip() for text in legend.get_texts()]
    assert texts == ["_blocks.2", "last stage"]


def test_classes_go_from_the_cheapest_to_the_dearest_or_by_label():
    rows = {"share": [0.5, 0.5], "class_share": [[0, 1], [1, 0], [0.5, 0.5]]}
    display = ExitDepthDisplay(**rows)

    def ticks():
        return [label.get_text() for label in display.ax_.get_yticklabels()]

    display.plot()
    assert ticks() == ["all", "1", "2", "0"]
    display.plot(sort="label")
    assert ticks() == ["all", "0", "1", "2"]
    with pytest.raises(ValueError, match="sort='size' must be 'cost' or 'label'"):
        display.plot(sort="size")
    with pytest.raises(ValueError, match="class_counts"):
        ExitDepthDisplay(**rows, class_counts=[1]).plot()


def test_shares_have_clopper_pearson_intervals():
    display = ExitDepthDisplay.from_predictions([0] * 9 + [1])
    (bars,) = display.bars_[0].errorbar.lines[2]
    (x, low), (_, high) = bars.get_segments()[0]
    assert x == 0
    np.testing.assert_allclose([low, high], [55.498, 99.747], atol=1e-3)
    assert "10 samples" in display.ax_.get_title()
    bare = ExitDepthDisplay(share=[0.9, 0.1]).plot()
    assert bare.bars_[0].errorbar is None


def test_a_figure_is_drawn_on():
    figure = Figure()
    display = ExitDepthDisplay.from_predictions([0, 1], ax=figure)
    assert figure.axes == [display.ax_]
