"""Survivors beside training weights, with their distance written in."""

import numpy as np
import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from sk_calex import AlignmentDisplay, alignment_report
from tests.inspection._inspected import TRAIN, calexnet, data, reference, sdn


def bars(panel):
    """Heights of the survivors' bars, of the training rows', and of the dashes."""
    both = [each for each in panel.containers if isinstance(each, BarContainer)]
    real, trained = ([p.get_height() for p in each] for each in both)
    (dashes,) = (x for x in panel.lines if x.get_label() == "training, unweighted")
    return real, trained, dashes.get_ydata()


@pytest.fixture(scope="module")
def given():
    return data()


def test_bars_are_the_shares_of_the_report(given):
    display = AlignmentDisplay.from_estimator(calexnet(), given.test, given.test_y)
    report = alignment_report(calexnet(), given.test, given.test_y)
    assert display.axes_.shape == (1, 2)  # the second branch: classes, confidence
    for panel, what in zip(display.axes_[0], ("class", "confidence"), strict=True):
        shares = report[f"{what}_share"]
        order = np.argsort(-shares.survivors[1], kind="stable")
        if what == "confidence":
            order = np.arange(len(order))
        keys = ("survivors", "training", "unweighted")
        for drawn, key in zip(bars(panel), keys, strict=True):
            np.testing.assert_allclose(drawn, 100 * shares[key][1][order])
        title = panel.get_title()
        assert f"Distance {report[f'tv_{what}'][1]:.3f} (" in title
        assert f"unweighted {report[f'tv_{what}_unweighted'][1]:.3f}," in title
        assert f"by chance {report[f'tv_{what}_noise'][1]:.3f})" in title
        assert panel.get_ylabel() == "Share (%)"
    title = display.axes_[0, 0].get_title()
    size = report.effective_sample_size[1]
    assert f"Branch 2 (block1): {report.n_survivors[1]} survivors" in title
    assert f"{len(TRAIN)} training rows worth {size:,.0f}" in title
    ticks = [label.get_text() for label in display.axes_[0, 0].get_xticklabels()]
    often = np.argsort(-report.class_share.survivors[1], kind="stable")
    assert ticks == [report.classes[i] for i in often]
    assert display.axes_[0, 1].get_xlabel() == "Confidence of the branch before (%)"


def test_bars_differ_without_colour_and_the_legend_names_them(given):
    display = AlignmentDisplay.from_estimator(calexnet(), given.test, given.test_y)
    kinds = display.axes_[0, 0].containers
    real, trained = (each[0] for each in kinds if isinstance(each, BarContainer))
    assert real.get_hatch() != trained.get_hatch()
    (legend,) = display.figure_.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == ["survivors", "weighted training", "training, unweighted"]
    display.figure_.canvas.draw()
    for panel in display.axes_.flat:
        assert not legend.get_window_extent().overlaps(panel.get_tightbbox())


def test_the_first_branch_has_no_branch_before_it(given):
    display = AlignmentDisplay.from_estimator(
        calexnet(), given.test, given.test_y, branches=[0, 1], n_bins=5, at="alignment"
    )
    assert display.axes_.shape == (2, 2)
    assert not display.axes_[0, 1].axison
    assert not display.axes_[0, 1].containers
    assert len(bars(display.axes_[1, 1])[0]) == 5
    alone = display.plot(branches=[0])
    assert alone.axes_.shape == (1, 1)


def test_methods_without_weights_are_drawn_from_the_rows(given):
    display = AlignmentDisplay.from_estimator(
        sdn(), given.test, given.test_y, X_train=given.X, y_train=given.y
    )
    for panel in display.axes_.flat:
        _, trained, plain = bars(panel)
        np.testing.assert_allclose(trained, plain)
    # Without them the reference still knows its classes.
    display = AlignmentDisplay.from_estimator(reference(), given.test, given.test_y)
    assert display.axes_.shape == (1, 1)


def test_one_branch_from_its_rows():
    display = AlignmentDisplay.from_predictions(
        ["a", "a", "b", "b"],
        [2, 2, 0, 4],
        ["b", "b", "c"],
        train_confidence=[0.05, 0.5, 0.9, 1.0],
        survivor_confidence=[0.1, 0.55, 0.95],
        n_bins=2,
    )
    over_classes, over_confidence = display.axes_[0]
    real, trained, plain = bars(over_classes)
    ticks = [label.get_text() for label in over_classes.get_xticklabels()]
    assert ticks == ["b", "c", "a"]  # the most frequent survivors first
    np.testing.assert_allclose(real, [200 / 3, 100 / 3, 0])
    np.testing.assert_allclose(trained, [50, 0, 50])
    np.testing.assert_allclose(plain, [50, 0, 50])
    real, trained, plain = bars(over_confidence)
    np.testing.assert_allclose(real, [100 / 3, 200 / 3])
    np.testing.assert_allclose(trained, [25, 75])
    np.testing.assert_allclose(plain, [25, 75])
    assert display.report.effective_sample_size == pytest.approx([64 / 24])
    assert "Distance 0.500" in over_classes.get_title()
    assert display.report.n_train == 4


def test_classes_alone_from_rows():
    display = AlignmentDisplay.from_predictions([0, 1], [1, 1], [0, 1, 1])
    assert display.axes_.shape == (1, 1)


def test_many_names_are_slanted():
    names = [f"class number {i}" for i in range(9)]
    display = AlignmentDisplay.from_predictions(names, np.ones(9), names)
    labels = display.axes_[0, 0].get_xticklabels()
    assert labels[0].get_rotation() == 45
    display.figure_.canvas.draw()
    boxes = [label.get_window_extent() for label in labels]
    assert all(display.figure_.bbox.containsy(box.y0) for box in boxes)


def test_given_axes_are_drawn_on():
    ax = Figure().subplots()
    display = AlignmentDisplay.from_predictions([0, 1], [1, 1], [0, 1], ax=ax)
    assert display.axes_[0, 0] is ax
    assert not display.figure_.legends
    with pytest.raises(ValueError, match="ax holds 2 axes but 1 x 1 panels"):
        display.plot(Figure().subplots(2))


def test_unknown_branches_are_refused(given):
    display = AlignmentDisplay.from_estimator(calexnet(), given.test, given.test_y)
    with pytest.raises(ValueError, match=r"branches=\[2\] must be indices from 0 to 1"):
        display.plot(branches=[2])
    with pytest.raises(ValueError, match="at least one"):
        display.plot(branches=[])
    assert display.plot(branches=np.array([0, 1])).axes_.shape == (2, 2)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"weight": [1]}, "weight must hold one finite, non-negative weight"),
        ({"weight": [0, 0]}, "not all zero"),
        ({"train_confidence": [0.5, 0.5]}, "both, or neither"),
        (
            {"train_confidence": [0.5, 0.5], "survivor_confidence": [0.5, 1.5]},
            r"must lie in \[0, 1\]",
        ),
        (
            {"train_confidence": [0.5], "survivor_confidence": [0.5, 0.5]},
            "inconsistent numbers of samples",
        ),
        ({"n_bins": 7}, "n_bins=7"),
    ],
)
def test_what_does_not_fit_is_refused(params, message):
    rows = {"y_train": [0, 1], "weight": [1, 1], "y_survivors": [0, 1]} | params
    with pytest.raises(ValueError, match=message):
        AlignmentDisplay.from_predictions(**rows)


def test_survivors_have_clopper_pearson_intervals():
    display = AlignmentDisplay.from_predictions(
        [0, 1], [1, 1], [0] * 9 + [1], ax=Figure()
    )
    (survivors, _) = (
        each
        for each in display.axes_[0, 0].containers
        if isinstance(each, BarContainer)
    )
    (lines,) = survivors.errorbar.lines[2]
    (_, low), (_, high) = lines.get_segments()[0]
    np.testing.assert_allclose([low, high], [55.498, 99.747], atol=1e-3)
    assert display.figure_.legends
