"""The benchmarks' fronts: chosen on validation, read off on test."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

PATH = Path(__file__).parents[2] / "examples" / "benchmarks" / "_fronts.py"


@pytest.fixture(scope="module")
def fronts():
    spec = importlib.util.spec_from_file_location("_fronts", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def a_run(validation, test, seed=0, method="a"):
    parts = {
        name: {
            "flops_reduction": [point[0] for point in points],
            "accuracy": [point[1] for point in points],
        }
        for name, points in (("validation", validation), ("test", test))
    }
    extra = {"backbone_accuracy": 0.8, "fit_seconds": 1.0}
    return {"seed": seed, "method": method, **parts, **extra}


def test_the_front_is_chosen_on_validation_alone(fronts):
    # The second value is dominated on validation, however good it is on test.
    run = a_run(
        [(0.2, 0.8), (0.3, 0.6), (0.5, 0.7)], [(0.2, 0.7), (0.3, 1), (0.5, 0.6)]
    )
    reduction, accuracy = fronts.front([run])
    assert reduction.tolist() == [0.2, 0.5]
    assert accuracy.tolist() == [0.7, 0.6]


def test_settings_of_one_method_compete(fronts):
    weak = a_run([(0.3, 0.5)], [(0.3, 0.5)])
    strong = a_run([(0.4, 0.6)], [(0.4, 0.6)])
    assert fronts.front([weak, strong])[0].tolist() == [0.4]


def test_values_are_read_between_points_and_not_beyond(fronts):
    points = [(0.2, 0.79), (0.6, 0.75)]
    read = fronts.read_off([a_run(points, points)])
    np.testing.assert_allclose(read["accuracy_at"][:4], [0.78, 0.77, 0.76, 0.75])
    assert np.isnan(read["accuracy_at"][4])
    assert np.isnan(read["mean_accuracy_30_70"])
    # Half a point is lost at half way to the first one, two points at 0.3.
    np.testing.assert_allclose(read["reduction_at_drop"], [0.1, 0.2, 0.3], atol=1e-3)


def test_a_method_that_saves_nothing(fronts):
    points = [(-0.1, 0.8)]
    read = fronts.read_off([a_run(points, points)])
    assert np.isnan(read["accuracy_at"]).all()
    assert read["reduction_at_drop"] == [0.0, 0.0, 0.0]


def test_the_summary_is_over_seeds_and_families(fronts):
    runs = [
        a_run([(0.8, 0.7 + seed / 10)], [(0.8, 0.7 + seed / 10)], seed, f"PTEENet {w}")
        for seed in (0, 1)
        for w in (1, 2)
    ]
    result = fronts.summary(runs)
    assert list(result) == ["PTEENet"]
    assert result["PTEENet"]["fit_seconds"] == [2.0, 2.0]
    at = [0.8 - 0.1 * 0.5 / 0.8, 0.8]
    assert result["PTEENet"]["accuracy_at"]["mean"][2] == pytest.approx(np.mean(at))
    assert result["PTEENet"]["accuracy_at"]["sd"][2] == pytest.approx(
        np.std(at, ddof=1)
    )
    assert "| PTEENet | " in fronts.table(result)


def test_what_was_not_reached_is_not_printed_as_a_number(fronts):
    points = [(0.35, 0.79)]
    text = fronts.table(fronts.summary([a_run(points, points)]))
    assert text.splitlines()[-1].split("|")[3:7] == [" - "] * 4


def test_equal_points_on_validation_count_once_and_the_first_of_them(fronts):
    run = a_run([(0.2, 0.8), (0.2, 0.8)], [(0.25, 0.7), (0.15, 0.9)])
    assert fronts.front([run])[0].tolist() == [0.25]


def test_mean_fronts_go_as_far_as_every_seed(fronts):
    short, long = [(0.4, 0.7)], [(0.2, 0.8), (0.8, 0.6)]
    runs = [a_run(short, short, 0), a_run(long, long, 1)]
    reduction, accuracy, sd = fronts.mean_front(runs, step=0.1)
    np.testing.assert_allclose(reduction, [0, 0.1, 0.2, 0.3, 0.4])
    each = [
        [0.8, 0.775, 0.75, 0.725, 0.7],
        [0.8, 0.8, 0.8, 0.8 - 0.1 / 3, 0.8 - 0.2 / 3],
    ]
    np.testing.assert_allclose(accuracy, np.mean(each, axis=0))
    np.testing.assert_allclose(sd, np.std(each, axis=0, ddof=1), atol=1e-12)
    assert fronts.mean_front(runs[:1])[2] is None
