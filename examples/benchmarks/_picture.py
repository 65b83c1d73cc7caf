"""The picture of the comparison: who is who, also without colours."""

from __future__ import annotations

import matplotlib.pyplot as plt
from _fronts import families, mean_front

from sk_calex import CascadeDisplay

# What the page is about, in the order of the legend, and how each looks.
STYLES = {
    "CalexNet": {"color": "#0072B2", "marker": "o", "linestyle": "-", "linewidth": 2.6},
    "CalexNet, ensemble": {"color": "#56B4E9", "marker": "P", "linestyle": "-"},
    "reference": {"color": "black", "marker": "s", "linestyle": "--"},
    "PTEENet": {"color": "#D55E00", "marker": "^", "linestyle": "-."},
    "ZTW": {"color": "#009E73", "marker": "D", "linestyle": (0, (1, 1.2))},
    "BoostNet": {"color": "#AA3377", "marker": "v", "linestyle": (0, (6, 1, 1, 1))},
}
NAMES = {"reference": "reference (no alignment, no distillation)"}
_OTHERS = ("x", "+", "1", "2", "3", "4")
_STEP = 0.01  # of the reduction; a marker at every fifth


def draw(runs, path):
    """Mean fronts over seeds, with a band of one standard deviation each.

    Points are chosen on validation and drawn as on test. Other exit rules on CalexNet's
    branches are in the table only.
    """
    drawn = {k: v for k, v in families(runs).items() if k in STYLES or "," not in k}
    others = [name for name in drawn if name not in STYLES]
    order = [*others, *(name for name in reversed(STYLES) if name in drawn)]
    _, ax = plt.subplots(figsize=(8.5, 5.6), layout="constrained")
    for i, name in enumerate(order):
        style = {"linewidth": 1.6, "markersize": 6, "zorder": 3} | STYLES.get(name, {})
        if name in others:
            marker = _OTHERS[i % len(_OTHERS)]
            style |= {"color": "0.6", "linewidth": 0.8, "markersize": 5}
            style |= {"marker": marker, "linestyle": "-", "zorder": 2}
        reduction, accuracy, sd = mean_front(drawn[name], _STEP)
        CascadeDisplay(
            flops_reduction=reduction,
            accuracy=accuracy,
            accuracy_std=None if name in others else sd,
            backbone_accuracy=drawn[name][0]["backbone_accuracy"],
            name=NAMES.get(name, name),
        ).plot(ax, markevery=(1 + i % 5, 5), **style)
    backbone = 100 * runs[0]["backbone_accuracy"]
    ax.set(xlim=(-1, 82), ylim=(backbone - 13, backbone + 1.5))
    seeds = len({run["seed"] for run in runs})
    of = f"mean of {seeds} seeds, band: standard deviation" if seeds > 1 else "one seed"
    ax.set_title(f"Points chosen on validation, drawn as on test; {of}", fontsize=10)
    handles, labels = ax.get_legend_handles_labels()
    wanted = [*(NAMES.get(name, name) for name in STYLES), *others, "backbone"]
    at = [labels.index(name) for name in wanted if name in labels]
    ax.legend([handles[k] for k in at], [labels[k] for k in at], loc="lower left")
    ax.figure.savefig(path, dpi=120)
    plt.close(ax.figure)
