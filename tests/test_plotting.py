"""The accuracy-FLOPs picture shows the numbers of the curve, and who drew them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from sklearn.datasets import make_classification
from sklearn.utils import Bunch

from sk_calex import CascadeClassifier, margin_curve
from sk_calex.plotting import CascadeDisplay


@pytest.fixture(autouse=True)
def close_figures() -> Iterator[None]:
    yield
    plt.close("all")


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


def test_curve_backbone_labels_and_legend() -> None:
    display = display_of().plot()
    np.testing.assert_allclose(display.line_.get_xdata(), [10, 30, 50])
    np.testing.assert_allclose(display.line_.get_ydata(), [90, 88, 70])
    assert stars(display) == [(0, 91)]
    assert display.ax_.get_xlabel() == "FLOPs reduction (%)"
    assert display.ax_.get_ylabel() == "Accuracy (%)"
    assert legend_of(display) == ["one", "backbone"]
    assert display.figure_ is display.ax_.figure


def test_points_are_joined_in_the_order_of_their_cost() -> None:
    display = display_of([0.5, -0.1, 0.3], [0.7, 0.9, 0.88]).plot()
    np.testing.assert_allclose(display.line_.get_xdata(), [-10, 30, 50])
    np.testing.assert_allclose(display.line_.get_ydata(), [90, 88, 70])


def test_methods_on_the_same_axes_differ_without_colour() -> None:
    display = display_of().plot()
    styles = set()
    for name in "abcdefgh":
        other = display_of(accuracy=[0.9, 0.8, 0.6], name=name).plot(display.ax_)
        styles.add((other.line_.get_marker(), other.line_.get_linestyle()))
        assert other.ax_ is display.ax_
    assert len(styles) == 8
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
    for line in (display.line_, again.line_):
        np.testing.assert_allclose(line.get_xdata(), 100 * curve.flops_reduction[order])
        np.testing.assert_allclose(line.get_ydata(), 100 * curve.accuracy[order])
    np.testing.assert_array_equal(display.margins, margins)
    assert stars(display) == [(0, 100 * curve.backbone_accuracy)]
    assert legend_of(display) == ["CascadeClassifier", "backbone", "again"]


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
