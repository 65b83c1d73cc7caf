"""What the comparison with peers computes itself; one check needs a peer."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from sk_calex import TapLayout
from sk_calex.utils._flops import depth_costs

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def peers():
    # It imports a neighbour by its plain name, as scripts do.
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("_peers", FOLDER / "_peers.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["_peers"] = module  # where its dataclasses look for their types
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(FOLDER))
        for name in ("_peers", "_fronts"):
            sys.modules.pop(name, None)


def a_run(front, method="a", seed=0, **more):
    reduction, accuracy = zip(*front, strict=True)
    part = {"flops_reduction": reduction, "accuracy": accuracy}
    run = {"method": method, "seed": seed, "backbone_accuracy": 0.8}
    return run | {"validation": part, "test": part} | more


def test_pooled_is_the_mean_of_each_channel_and_the_logits(peers):
    layout = TapLayout(("a", "b"), ((3, 2, 2), (2, 1, 4)), n_outputs=5)
    features = np.random.default_rng(0).normal(size=(7, layout.width))
    found = peers.pooled(features, layout, rows=3)
    columns = peers.pooled_columns(layout)
    assert found.dtype == np.float32
    assert [found[:, part].shape[1] for part in columns] == [3, 2, 5]
    for row, wanted in zip(found, features, strict=True):
        channel = [wanted[4 * c : 4 * c + 4].mean() for c in range(5)]
        np.testing.assert_allclose(row[:5], channel, rtol=1e-5)
        np.testing.assert_allclose(row[5:], wanted[20:], rtol=1e-5)


def test_a_head_that_is_off_costs_nothing(peers):
    stages, heads = [10, 20, 30], [1, 2]
    np.testing.assert_array_equal(
        peers.costs_of(stages, heads), depth_costs(stages, heads)
    )
    found = peers.costs_of(stages, heads, [False, True])
    assert found.tolist() == [10, 32, 62]


def test_softmax_of_large_logits(peers):
    found = peers.softmax([[1000.0, 1000.0 + np.log(3)], [0.0, 0.0]])
    np.testing.assert_allclose(found, [[0.25, 0.75], [0.5, 0.5]])


def slow_rounds(leads, frequency, margin):
    for done in range(1, len(leads) + 1):
        if done % frequency == 0 and leads[done - 1] > margin:
            return done
    return len(leads)


@pytest.mark.parametrize("frequency", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("margin", [0.0, 0.5, 3.0])
def test_rounds_until_the_early_stop(peers, frequency, margin):
    leads = np.random.default_rng(1).uniform(0, 2, size=(9, 40))
    found = peers.stopped_after(leads, frequency, margin)
    wanted = [slow_rounds(row, frequency, margin) for row in leads.T]
    assert found.tolist() == wanted


def test_rounds_are_those_of_lightgbm(peers):
    """Needs the peer itself: `pip install lightgbm`."""
    lightgbm = pytest.importorskip("lightgbm", reason="lightgbm is not installed")
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    X = rng.normal(size=(300, 4)) + y[:, None]
    params = {"objective": "multiclass", "num_class": 3, "verbose": -1}
    params |= {"num_threads": 1, "num_leaves": 4}
    model = lightgbm.train(params, lightgbm.Dataset(X, y), num_boost_round=12)
    each = [
        model.predict(X, start_iteration=k, num_iteration=1, raw_score=True)
        for k in range(12)
    ]
    raw = np.cumsum(each, axis=0)
    top = np.sort(raw, axis=2)
    used = peers.stopped_after(top[:, :, -1] - top[:, :, -2], 2, 1.0)
    stopped = model.predict(
        X,
        raw_score=True,
        pred_early_stop=True,
        pred_early_stop_freq=2,
        pred_early_stop_margin=1.0,
    )
    np.testing.assert_allclose(stopped, raw[used - 1, np.arange(300)])
    assert len(np.unique(used)) > 2


def test_accuracy_where_as_much_is_saved(peers):
    run = a_run([(-0.1, 0.9), (0.2, 0.78), (0.6, 0.7)])
    assert peers.accuracy_at([run], 0.1) == pytest.approx(0.79)
    assert peers.accuracy_at([run], 0.4) == pytest.approx(0.74)
    assert np.isnan(peers.accuracy_at([run], 0.61))


def test_static_networks_stand_beside_the_mean_over_seeds(peers):
    runs = [
        a_run([(0.4, 0.7)], "near"),
        a_run([(0.4, 0.72)], "near", seed=1),
        a_run([(0.1, 0.7)], "far"),
    ]
    net = {"arch": "small", "mmacs": 83.5, "flops_reduction": 0.4, "test": 0.703}
    text = peers.static_table([net], runs)
    assert text.splitlines()[0].endswith("| accuracy | near | far |")
    assert text.splitlines()[-1] == "| small | 83.5 | 40.0 % | 70.30 | 71.00 | - |"


def test_points_are_means_over_seeds(peers):
    points = [
        {"asked": "it", "accuracy": a, "flops_reduction": r, "own_count": 0.5}
        for a, r in ((0.7, 0.2), (0.72, 0.4))
    ]
    runs = [a_run([(0, 0)], seed=s, points=[p]) for s, p in enumerate(points)]
    text = peers.points_table([*runs, a_run([(0, 0)], "silent")])
    assert text.splitlines()[2:] == ["| a | it | 71.00 | 9.00 | 30.0 % | 50.0 % |"]


def test_what_the_early_stop_saves_is_no_mac(peers):
    settings = {
        "off": {"kwargs": {}, "accuracy": 0.7, "predict_cpu_seconds": 2.0},
        "default": {"kwargs": {}, "accuracy": 0.7, "predict_cpu_seconds": 2.0},
        "best": {
            "kwargs": {"pred_early_stop_freq": 1, "pred_early_stop_margin": 2.0},
            "accuracy": 0.69,
            "predict_cpu_seconds": 1.0,
        },
    }
    grid = [
        {"frequency": f, "margin": m, "test": {"accuracy": 0.7, "trees_saved": s}}
        for f, m, s in ((10, 10.0, 0.0), (1, 2.0, 0.5))
    ]
    last = peers.lightgbm_table({"settings": settings, "grid": grid}).splitlines()[-1]
    assert last == "| best (every 1 rounds, margin 2) | 69.00 | 50.0 % | 0.50 | 0 % |"


def test_a_cascade_on_a_small_network_saves_over_both(peers):
    test = {"accuracy": [0.71], "flops_reduction": [0.7], "over_itself": [0.4]}
    text = peers.stacked_table({"arch": "small", "margins": [-0.2], "test": test})
    assert text.splitlines()[-1] == "| -0.20 | 71.00 | 70.0 % | 40.0 % |"
