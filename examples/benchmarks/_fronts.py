"""Fronts chosen on validation rows, and what is read off them on the test set."""

from __future__ import annotations

import numpy as np

REDUCTIONS = (0.3, 0.4, 0.5, 0.6, 0.7)
DROPS = (0.005, 0.01, 0.02)


def front(runs):
    """Test points of the knob values that are Pareto efficient on validation.

    Several runs are one method with different settings, such as a loss weight that
    needs a refit: their points compete.
    """
    validation = np.concatenate([_points(r["validation"]) for r in runs])
    test = np.concatenate([_points(r["test"]) for r in runs])
    order = np.lexsort((-validation[:, 1], -validation[:, 0]))
    best, kept = -np.inf, []
    for (
        i
    ) in order:  # from the cheapest on: keep what is more accurate than cheaper ones
        if validation[i, 1] > best:
            best = validation[i, 1]
            kept.append(i)
    chosen = test[kept]
    chosen = chosen[np.argsort(chosen[:, 0], kind="stable")]
    return chosen[:, 0], chosen[:, 1]


def _points(part):
    return np.column_stack([part["flops_reduction"], part["accuracy"]])


def read_off(runs):
    """Accuracy at given reductions, reductions at given drops, area over 30-70 %.

    Interpolated between neighbouring points of the front. The plain backbone, which
    saves nothing, is a point of every front. NaN beyond the cheapest point.
    """
    reduction, accuracy = front(runs)
    backbone = runs[0]["backbone_accuracy"]
    reduction = np.r_[0.0, reduction[reduction > 0]]
    accuracy = np.r_[backbone, accuracy[-(len(reduction) - 1) :]]
    if len(reduction) == 1:
        accuracy = np.array([backbone])
    at = np.interp(REDUCTIONS, reduction, accuracy, right=np.nan)
    fine = np.linspace(0.3, 0.7, 201)
    area = np.interp(fine, reduction, accuracy, right=np.nan).mean()
    saved = [_largest_reduction(reduction, accuracy, backbone - d) for d in DROPS]
    return {
        "accuracy_at": at.tolist(),
        "reduction_at_drop": saved,
        "mean_accuracy_30_70": float(area),
    }


def _largest_reduction(reduction, accuracy, floor):
    """Most that is saved at an accuracy of at least `floor`, along the segments."""
    grid = np.linspace(0, reduction[-1], 2001)
    enough = np.interp(grid, reduction, accuracy) >= floor
    return float(grid[enough].max()) if enough.any() else float("nan")


def summary(runs):
    """Mean and standard deviation over seeds, by method; PTEENet's weights are one."""
    families = dict.fromkeys(_family(r["method"]) for r in runs)
    out = {}
    for family in families:
        mine = [r for r in runs if _family(r["method"]) == family]
        seeds = sorted({r["seed"] for r in mine})
        read = [read_off([r for r in mine if r["seed"] == s]) for s in seeds]
        out[family] = {
            "seeds": seeds,
            "backbone_accuracy": mine[0]["backbone_accuracy"],
            "fit_seconds": [
                sum(r["fit_seconds"] for r in mine if r["seed"] == s) for s in seeds
            ],
        }
        for key in read[0]:
            values = np.array([r[key] for r in read], dtype=float)
            sd = values.std(axis=0, ddof=1) if len(seeds) > 1 else values[0] * np.nan
            out[family][key] = {
                "mean": _plain(values.mean(axis=0)),
                "sd": _plain(sd),
            }
    return out


def _family(method):
    return "PTEENet" if method.startswith("PTEENet") else method


def _plain(array):
    """JSON has no NaN."""
    array = np.asarray(array, dtype=float)
    listed = np.where(np.isnan(array), None, array.astype(object))
    return listed.tolist()


def table(results):
    """The summary as a Markdown table; accuracy in per cent, mean and deviation."""
    head = [f"{r:.0%}" for r in REDUCTIONS] + ["mean 30-70 %"]
    head += [f"saved at -{100 * d:g}" for d in DROPS] + ["fit"]
    lines = ["| method | " + " | ".join(head) + " |", "|---" * (len(head) + 1) + "|"]
    for name, result in results.items():
        cells = [
            *_cells(result["accuracy_at"]),
            *_cells(result["mean_accuracy_30_70"]),
            *_cells(result["reduction_at_drop"], digits=1),
            f"{np.mean(result['fit_seconds']):.0f} s",
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(value, digits=2):
    pairs = zip(np.atleast_1d(value["mean"]), np.atleast_1d(value["sd"]), strict=True)
    return [
        "-"
        if mean is None
        else f"{100 * mean:.{digits}f}"
        + ("" if sd is None else f" ± {100 * sd:.{digits}f}")
        for mean, sd in pairs
    ]
