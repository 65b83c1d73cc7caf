"""Precision over thresholds, with the bar and the threshold that was chosen."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from sk_calex import ThresholdDisplay
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.inspection._plot._precision_curves import choose_classes
from sk_calex.policies import EntropyThreshold, SharedThreshold
from tests.inspection._inspected import HELD, NAMES, calexnet, data, fit, reference, sdn


def of_kind(panel, kind):
    return [x for x in panel.lines if x.get_gid() == f"sk_calex.{kind}"]


def notes(panel):
    return [x.get_text() for x in panel.texts if x.get_gid() == "sk_calex.note"]


def slow_precision(scores, right, threshold, weight=None):
    mask = scores >= threshold
    return np.average(right[mask], weights=None if weight is None else weight[mask])


def samples(n=80, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.integers(1, 20, n) / 20  # ties
    return scores, rng.integers(0, 3, n), rng.integers(0, 3, n), rng.integers(0, 3, n)


def test_curves_are_the_precision_at_or_above_each_threshold():
    scores, predicted, truth, weight = samples()
    last = np.roll(truth, 1)
    display = ThresholdDisplay.from_predictions(
        scores, predicted, truth, sample_weight=weight, last_predicted=last
    )
    assert [panel.get_title() for panel in display.axes_] == ["0", "1", "2"]
    for c, (panel, curve) in enumerate(zip(display.axes_, display.curves, strict=True)):
        mine = (predicted == c) & (weight > 0)
        s, w = scores[mine], weight[mine]
        np.testing.assert_array_equal(curve.threshold, np.unique(s))
        for i, t in enumerate(curve.threshold):
            want = slow_precision(s, (truth == c)[mine], t, w)
            assert curve.precision[i] == pytest.approx(want)
            want = slow_precision(s, (last == truth)[mine], t, w)
            assert curve.last_precision[i] == pytest.approx(want)
            assert curve.support[i] == w[s >= t].sum()
        line = display.lines_[c]
        assert line in panel.lines
        np.testing.assert_allclose(line.get_xdata(), curve.threshold)
        np.testing.assert_allclose(line.get_ydata(), 100 * curve.precision)
        # Between two scores precision is that of the higher one.
        assert line.get_drawstyle() == "steps-pre"
        (other,) = of_kind(panel, "last")
        np.testing.assert_allclose(other.get_ydata(), 100 * curve.last_precision)
        assert not of_kind(panel, "bar")
        assert not of_kind(panel, "chosen")


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("cascade", [calexnet, reference])
def test_the_chosen_point_is_the_one_of_the_fit(cascade, branch):
    fitted = cascade()
    display = ThresholdDisplay.from_estimator(fitted, branch)
    bars = (1 - fitted.margin) * fitted.reference_precision_
    enabled = fitted.enabled_[branch]
    for c, panel in enumerate(display.axes_):
        dots = of_kind(panel, "chosen")
        assert len(dots) == enabled[c]
        assert panel.get_title() == NAMES[c]
        if not enabled[c]:
            assert notes(panel) == ["never exits"]
        for dot in dots:
            assert not notes(panel)
            (x,), (y,) = dot.get_data()
            assert x == fitted.thresholds_[branch, c]
            assert y == pytest.approx(100 * fitted.precision_[branch, c])
        if fitted.calibrator_.margin_mode == "relative":
            (bar,) = of_kind(panel, "bar")
            np.testing.assert_allclose(bar.get_ydata(), 100 * bars[c])
    survivors = fitted.calibrator_.calibrate_on == "survivors" and branch
    n = (HELD == 0).sum()
    if survivors:
        first = fitted.calibration_.answers.stage(0)
        n -= (first.confidence >= fitted.thresholds_[0][first.predicted]).sum()
        assert 0 < n < 120
    assert f"{n} calibration samples" in display.figure_.get_suptitle().replace(
        "\n", " "
    )
    total = sum(curve.support[0] for curve in display.curves if len(curve.support))
    assert total == n


def test_local_margins_have_a_bar_where_a_class_exits():
    fitted = fit(margin=0.1, min_support=3)
    assert fitted.calibrator_.margin_mode == "local"
    assert fitted.enabled_[0].any()
    display = ThresholdDisplay.from_estimator(fitted, 0)
    for c, panel in enumerate(display.axes_):
        bars, curve = of_kind(panel, "bar"), display.curves[c]
        assert len(bars) == fitted.enabled_[0, c]
        for bar in bars:
            at = np.searchsorted(curve.threshold, fitted.thresholds_[0, c])
            last = curve.last_precision[at]
            np.testing.assert_allclose(bar.get_ydata(), 100 * (last - 0.1))


def test_branches_have_names_and_classes_can_be_chosen():
    display = ThresholdDisplay.from_estimator(calexnet(), "stem", classes=["cat"])
    assert [panel.get_title() for panel in display.axes_] == ["cat"]
    assert display.axes_[0].get_xlabel() == "Threshold (confidence)"
    assert display.axes_[0].get_ylabel() == "Precision (%)"
    assert "Branch 1 (stem)" in display.figure_.get_suptitle()


def test_baselines_have_thresholds_and_no_bar():
    display = ThresholdDisplay.from_estimator(sdn(), 0)
    for panel in display.axes_:
        assert not of_kind(panel, "bar")
        for dot in of_kind(panel, "chosen"):
            assert dot.get_xdata()[0] == 0.6
    assert sum(len(of_kind(panel, "chosen")) for panel in display.axes_) > 0


@pytest.mark.parametrize(
    ("calibrator", "name"),
    [
        (SharedThreshold(0.5, score="gap"), "gap"),
        (EntropyThreshold(0.9), "minus entropy, nats"),
        (SurvivorThresholdCalibrator(0.1), "confidence"),
    ],
)
def test_scores_are_those_of_the_rule(calibrator, name):
    margin = {"margin": 0.1} if calibrator.knob == "margin" else {}
    cascade = fit(calibrator=calibrator, **margin)
    display = ThresholdDisplay.from_estimator(cascade, 0)
    assert display.score_name == name
    said = cascade.calibration_.answers.stage(0)
    scores = cascade.calibrator_.scores(0, said)
    lowest = min(c.threshold[0] for c in display.curves if len(c.threshold))
    assert lowest == scores.min()
    bars = sum(len(of_kind(panel, "bar")) for panel in display.axes_)
    assert bars == (3 if isinstance(calibrator, SurvivorThresholdCalibrator) else 0)


def test_few_samples_are_dotted_without_a_gap():
    scores = [0.9, 0.8, 0.7, 0.6]
    display = ThresholdDisplay.from_predictions(
        scores, [1] * 4, [1, 1, 0, 1], classes=[1], min_support=3
    )
    (few,) = of_kind(display.axes_[0], "few")
    np.testing.assert_allclose(display.lines_[0].get_xdata(), [0.6, 0.7])
    np.testing.assert_allclose(few.get_xdata(), [0.7, 0.8, 0.9])
    assert few.get_linestyle() == ":"


def test_titles_name_classes_with_infinite_thresholds():
    display = ThresholdDisplay.from_predictions(
        [0.9, 0.8],
        ["a", "b"],
        ["a", "b"],
        thresholds=[np.inf, -np.inf],
        bars=[0.5, np.nan],
    )
    assert [panel.get_title() for panel in display.axes_] == ["a", "b"]
    assert [notes(panel) for panel in display.axes_] == [
        *(["never exits"], ["always exits"])
    ]
    assert [len(of_kind(panel, "bar")) for panel in display.axes_] == [1, 0]


def test_thresholds_above_all_scores_have_no_point():
    display = ThresholdDisplay.from_predictions([0.5], [0], [0], thresholds=[0.9])
    assert not of_kind(display.axes_[0], "chosen")


def test_classes_that_are_never_answered_are_empty():
    display = ThresholdDisplay.from_predictions([0.5], [0], [0], classes=[0, 1])
    assert len(display.lines_[1].get_xdata()) == 0


def test_of_many_classes_the_most_frequent_answers_are_shown():
    answers = np.repeat(np.arange(30), np.arange(30))
    codes = choose_classes(np.arange(30), None, answers)
    assert codes.tolist() == list(range(18, 30))
    assert choose_classes(NAMES, None, answers[answers < 3]).tolist() == [0, 1, 2]


def test_the_lowest_panel_of_each_column_is_labelled_and_shared_axes_fit():
    labels = np.arange(6)
    display = ThresholdDisplay.from_predictions(
        np.linspace(0.4, 0.9, 6), labels, labels, bars=np.full(6, 0.7)
    )
    labelled = [bool(panel.get_xlabel()) for panel in display.axes_]
    assert labelled == [False, False, True, True, True, True]
    assert [bool(panel.get_ylabel()) for panel in display.axes_] == [
        *(True, False, False, False, True, False)
    ]
    low, high = display.axes_[0].get_ylim()
    assert 60 < low < 70
    assert 100 < high < 102
    figure = display.figure_
    figure.canvas.draw()
    (legend,) = figure.legends
    entries = [text.get_text() for text in legend.get_texts()]
    assert entries == ["precision", "its 95 % interval", "bar: precision asked for"]
    for panel in display.axes_:
        assert not legend.get_window_extent().overlaps(panel.get_tightbbox())


def test_given_axes_are_drawn_on():
    axes = Figure().subplots(2)
    display = ThresholdDisplay.from_predictions(
        [0.9, 0.8], [0, 1], [0, 1], ax=axes, color="red"
    )
    assert display.axes_.tolist() == axes.tolist()
    assert display.lines_[0].get_color() == "red"
    assert not display.figure_.legends
    assert [panel.get_xlabel() for panel in axes] == ["Threshold (confidence)"] * 2
    with pytest.raises(ValueError, match="ax holds 2 axes but 1 classes"):
        ThresholdDisplay.from_predictions([0.9], [0], [0], ax=axes)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"branch": 2}, "branch=2 must be an index from 0 to 1"),
        ({"branch": -1}, "branch=-1"),
        ({"branch": "head"}, r"taps \['stem', 'block1'\]"),
        ({"classes": ["dog"]}, r"classes=\['dog'\] must be labels"),
        ({"classes": []}, "at least one"),
    ],
)
def test_unknown_branches_and_classes_are_refused(params, message):
    with pytest.raises(ValueError, match=message):
        ThresholdDisplay.from_estimator(calexnet(), **params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"scores": [np.nan, 0.5]}, "scores contains NaN"),
        ({"y_true": [0]}, "inconsistent numbers of samples"),
        ({"last_predicted": [0]}, "inconsistent numbers of samples"),
        ({"bars": [0.5]}, "bars must have one entry for each of the 2 classes"),
        ({"thresholds": [0.5] * 3}, "thresholds must have one entry"),
    ],
)
def test_what_does_not_fit_is_refused(params, message):
    given = {"scores": [0.9, 0.5], "predicted": [0, 1], "y_true": [0, 1]} | params
    with pytest.raises(ValueError, match=message):
        ThresholdDisplay.from_predictions(**given)


def test_display_draws_the_calibration_samples():
    """Only what calibrated the cascade is drawn: no data is given."""
    display = ThresholdDisplay.from_estimator(calexnet(), 0)
    right = sum(c.precision[0] * c.support[0] for c in display.curves)
    proba = calexnet().stage_probabilities(data().X[HELD == 0])[0]
    truth = np.searchsorted(NAMES, data().y[HELD == 0])
    assert right == pytest.approx((proba.argmax(axis=1) == truth).sum())


def test_the_axes_show_the_part_with_enough_samples():
    scores = [0.5, 0.6, 0.7, 0.99]
    display = ThresholdDisplay.from_predictions(
        scores, [1] * 4, [1, 1, 1, 0], classes=[1], min_support=2
    )
    (panel,) = display.axes_
    # At 0.99 one sample is left, and it is wrong: not what the picture is about.
    assert panel.get_xlim() == pytest.approx((0.5 - 0.008, 0.7 + 0.008))
    assert 40 < panel.get_ylim()[0] < 50


def test_the_band_is_the_interval_of_the_precision():
    display = ThresholdDisplay.from_predictions(
        [0.5] * 10, [1] * 10, [1] * 9 + [0], classes=[1]
    )
    (band,) = display.axes_[0].collections
    heights = band.get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose(
        [heights.min(), heights.max()], [55.498, 99.747], atol=1e-3
    )


def test_a_chosen_point_below_its_bar_is_hollow_and_explained():
    rows = {"scores": [0.5, 0.6], "predicted": [0, 1], "y_true": [0, 0]}
    display = ThresholdDisplay.from_predictions(
        **rows, bars=[0.9, 0.9], thresholds=[0.5, 0.6]
    )
    above, below = (of_kind(panel, "chosen")[0] for panel in display.axes_)
    assert above.get_markerfacecolor() == "black"
    assert below.get_markerfacecolor() == "white"
    entries = [text.get_text() for text in display.figure_.legends[0].get_texts()]
    assert entries[-2:] == ["chosen threshold", "chosen, below the bar (few samples)"]


def test_long_titles_do_not_collide():
    labels = [f"a very long name of class number {i}" for i in range(8)]
    display = ThresholdDisplay.from_predictions(
        np.linspace(0.1, 0.9, 8), labels, labels, thresholds=np.full(8, np.inf)
    )
    display.title = "A title of many words " * 12
    display.plot(figure := Figure(figsize=(7, 5), layout="constrained"))
    figure.canvas.draw()
    titles = [panel.title.get_window_extent() for panel in display.axes_]
    assert len({panel.get_title() for panel in display.axes_}) == 8
    assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])
    assert figure.bbox.width > figure._suptitle.get_window_extent().width


def test_half_a_figure_is_drawn_on():
    figure = Figure(layout="constrained")
    half, _ = figure.subfigures(1, 2)
    display = ThresholdDisplay.from_predictions([0.9, 0.8], [0, 1], [0, 1], ax=half)
    assert display.figure_ is half
    assert half.legends
