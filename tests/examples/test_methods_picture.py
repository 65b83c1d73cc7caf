"""The picture of the comparison tells the methods apart, and is drawn from its JSON."""

import importlib
import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks"
METHODS = (
    *("CalexNet", "CalexNet, quota", "reference", "BTS-EE", "PTEENet 0.5"),
    *("PTEENet 1.5", "ZTW", "BoostNet", "SDN", "PABEE"),
)


@pytest.fixture
def load(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    plt.close("all")


def runs(seeds=(0, 1)):
    """Fronts that fall, each method's a little lower than the one before."""
    reduction = np.linspace(0.1, 0.7, 5)
    out = []
    for seed in seeds:
        for i, method in enumerate(METHODS):
            accuracy = 0.73 - 0.15 * reduction**2 - i / 300 - seed / 500
            part = {
                "flops_reduction": reduction.tolist(),
                "accuracy": accuracy.tolist(),
            }
            extra = {"backbone_accuracy": 0.73, "fit_seconds": 1.0}
            keys = {"method": method, "seed": seed, "validation": part, "test": part}
            out.append(keys | extra)
    return out


@pytest.fixture
def axes(load, monkeypatch, tmp_path):
    """Axes of the picture of some seeds, kept open."""
    picture = load("_picture")
    monkeypatch.setattr(plt, "close", lambda figure: None)

    def draw(seeds):
        picture.draw(runs(seeds), tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 10_000
        return plt.gcf().axes[0]

    yield draw
    monkeypatch.undo()


def test_methods_are_told_apart_and_the_others_are_thin_and_grey(axes):
    ax = axes((0, 1))
    handles, labels = ax.get_legend_handles_labels()
    shown = [text.get_text() for text in ax.get_legend().get_texts()]
    assert shown == [
        "CalexNet",
        "reference (no alignment, no distillation)",
        *("PTEENet", "ZTW", "BoostNet", "BTS-EE", "SDN", "PABEE", "backbone"),
    ]
    lines = dict(zip(labels, handles, strict=True))
    main = [lines[name] for name in shown[:5]]
    for look in ("get_color", "get_marker", "get_linestyle"):
        assert len({str(getattr(line, look)()) for line in main[:3]}) == 3
    assert len({line.get_color() for line in main}) == 5
    assert len({line.get_marker() for line in main}) == 5
    assert len({str(line._dash_pattern) for line in main}) == 5
    others = [lines[name] for name in ("BTS-EE", "SDN", "PABEE")]
    assert len(set(to_rgb(others[0].get_color()))) == 1  # grey
    assert len({line.get_marker() for line in others}) == 3
    thin = max(line.get_linewidth() for line in others)
    assert thin < min(line.get_linewidth() for line in main)
    widest = max(main, key=lambda line: line.get_linewidth())
    assert widest.get_label() == "CalexNet"


def test_lines_are_means_over_seeds_with_a_band_for_the_main_methods(axes):
    ax = axes((0, 1))
    (line,) = [line for line in ax.lines if line.get_label() == "CalexNet"]
    x, y = line.get_data()
    assert (x[0], y[0]) == (0, 73)
    assert x[-1] == pytest.approx(70)
    assert y[-1] == pytest.approx(73 - 15 * 0.49 - 0.1)
    assert len(ax.collections) == 5
    assert "mean of 2 seeds" in ax.get_title()


def test_one_seed_has_no_band(axes):
    ax = axes((0,))
    assert not ax.collections
    assert "one seed" in ax.get_title()


def test_results_that_are_there_are_drawn_without_a_fit(
    load, monkeypatch, tmp_path, capsys
):
    script, common = load("compare_methods"), load("_common")
    for module in (script, common):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps({"runs": runs()}))
    arguments = ["compare_methods.py", "--draw-only", "--name", "mine"]
    monkeypatch.setattr(sys, "argv", arguments)
    script.main()
    assert (tmp_path / "mine.png").exists()
    assert "| CalexNet, quota | " in capsys.readouterr().out
