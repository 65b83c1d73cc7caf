"""The course of the statistic, with its level and its alarm."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from sk_calex import ExitMonitor, MonitorDisplay
from tests._fixed_cascade import fixed_cascade, rows


@pytest.fixture(scope="module")
def monitor():
    X, _ = rows(800, seed=2, lost=0.05)
    monitor = ExitMonitor(
        fixed_cascade(), mean_time_between_false_alarms=1e4, random_state=0
    ).fit(rows(500, seed=1)[0])
    monitor.update(X[:300])
    return monitor.load_state_dict(monitor.state_dict())


def entries(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_course_and_level_are_those_of_the_monitor(monitor):
    display = MonitorDisplay.from_monitor(monitor)
    assert display.line_.get_xdata().tolist() == monitor.statistic_rows_.tolist()
    assert display.line_.get_ydata().tolist() == monitor.statistic_.tolist()
    assert set(display.level_.get_ydata()) == {1e4}
    assert entries(display.ax_) == ["statistic", "alarm level"]
    assert display.ax_.get_yscale() == "log"
    assert display.ax_.get_xlabel() == "Rows seen"


def test_alarm_is_marked_where_it_was_raised(monitor):
    X, _ = rows(2000, seed=3)
    unsure = X[X[:, :3].max(axis=1) < 0.7]
    assert monitor.update(unsure)
    display = MonitorDisplay.from_monitor(monitor)
    assert entries(display.ax_)[-1] == f"alarm at row {monitor.alarm_row_:,}"
    assert set(display.ax_.lines[-1].get_xdata()) == {monitor.alarm_row_}


def test_given_axes_and_style_are_used(monitor):
    _, ax = plt.subplots()
    display = MonitorDisplay.from_monitor(monitor, ax=ax, color="red")
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert display.line_.get_color() == "red"


def test_numbers_alone_are_drawn():
    display = MonitorDisplay(rows=[1, 2], statistic=np.array([3.0, 4.0]), level=10)
    assert display.plot().ax_.get_ylim()[1] == 300


def test_unfitted_monitor_is_refused():
    with pytest.raises(NotFittedError):
        MonitorDisplay.from_monitor(ExitMonitor(fixed_cascade()))
