"""The pictures of results show the records, on light and on dark pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from tests.docs._scripts import DOCS, load

front, methods = load("draw_front"), load("draw_methods")
recipe = load("draw_recipe")
grounds = load("_grounds")


@pytest.mark.parametrize(
    ("script", "shown"),
    [
        (front, {"front": "FLOPs saved", "exits": "MMACs each"}),
        (methods, {"methods": "BoostNet"}),
        (recipe, {"recipe": "FLOPs saved"}),
    ],
)
def test_pictures_show_the_record(
    script: Any, shown: dict[str, str], tmp_path: Path
) -> None:
    """If this fails: run the script in docs, and look at what has changed."""
    record = json.loads(script.RECORD.read_text(encoding="utf-8"))
    script.main(tmp_path)
    for ground in grounds.INK:
        for name, words in shown.items():
            kept = (DOCS / "images" / f"{name}-{ground}.svg").read_text("utf-8")
            drawn = (tmp_path / f"{name}-{ground}.svg").read_text("utf-8")
            for picture in (kept, drawn):
                assert f"numbers {script.digest(record)}" in picture
                assert words in picture


def test_drawn_exits_add_up_to_the_saving_of_the_record() -> None:
    record = json.loads(front.RECORD.read_text(encoding="utf-8"))
    share, cost = front.exits(record)
    assert share.sum() == pytest.approx(1, abs=1e-3)
    i = record["margins"]["calexnet"].index(front.MARGIN)
    saved = record["summary"]["calexnet"]["flops_reduction"]["mean"][i]
    assert 1 - share @ cost / 140.2 == pytest.approx(saved, abs=0.01)


def a_record(seeds: tuple[int, ...]) -> dict[str, Any]:
    """Give fronts that fall, each method's a little lower than the one before."""
    names = ("CalexNet", "CalexNet, quota", "reference", "BTS-EE", "PTEENet 1", "SDN")
    reduction = np.linspace(0.1, 0.7, 5)
    runs = []
    for seed in seeds:
        for i, method in enumerate(names):
            accuracy = 0.73 - 0.15 * reduction**2 - i / 300 - seed / 500
            part = {
                "flops_reduction": reduction.tolist(),
                "accuracy": accuracy.tolist(),
            }
            run = {"method": method, "seed": seed, "backbone_accuracy": 0.73}
            runs.append(run | {"validation": part, "test": part})
    return {"runs": runs}


def drawn(seeds: tuple[int, ...], ground: str = "light") -> Axes:
    return methods.draw(a_record(seeds), ground).axes[0]


def test_methods_are_told_apart_without_their_colours() -> None:
    ax = drawn((0, 1))
    lines = {line.get_label(): line for line in ax.lines[1:]}
    named = ["CalexNet", methods.NAMES["reference"], "PTEENet"]
    assert list(lines) == ["the network itself", *named, "BTS-EE", "SDN"]
    main, others = [lines[name] for name in named], [lines["BTS-EE"], lines["SDN"]]
    assert len({line.get_color() for line in main}) == 3
    assert len({line.get_marker() for line in [*main, *others]}) == 5
    assert len({str(line._dash_pattern) for line in main}) == 3
    assert {line.get_color() for line in others} == {grounds.INK["light"]}
    widths = [line.get_linewidth() for line in (main[0], main[1], others[0])]
    assert widths == sorted(widths, reverse=True)


def test_lines_are_means_over_seeds_with_a_band() -> None:
    ax = drawn((0, 1))
    (line,) = [line for line in ax.lines if line.get_label() == "CalexNet"]
    x, y = line.get_data()
    assert (x[0], y[0]) == (0, 73)
    assert x[-1] == pytest.approx(70)
    assert y[-1] == pytest.approx(73 - 15 * 0.49 - 0.1)
    assert len(ax.collections) == 3
    assert "means of 2 seeds" in ax.get_title()


def test_one_seed_has_no_band() -> None:
    ax = drawn((0,))
    assert not ax.collections
    assert "one seed" in ax.get_title()


def test_each_ground_has_its_own_ink() -> None:
    for ground, ink in grounds.INK.items():
        ax = drawn((0,), ground)
        texts = [ax.xaxis.label, ax.title, *ax.get_legend().get_texts()]
        assert {to_hex(text.get_color()) for text in texts} == {ink}
