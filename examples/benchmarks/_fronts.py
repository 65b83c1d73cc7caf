"""Fronts chosen on validation rows, and what is read off them on the test set."""

from __future__ import annotations

import numpy as np

from sk_calex import pareto_front

REDUCTIONS = (0.3, 0.4, 0.5, 0.6, 0.7)
DROPS = (0.005, 0.01, 0.02)


def front(runs):
    """Test points of the knob values that are Pareto efficient on validation.

    Several runs are one method with different settings, such as a loss weight that
    needs a refit: their points compete.
    """
    validation = np.concatenate([_points(r["validation"]) for r in runs])
    test = np.concatenate([_points(r["test"]) for r in runs])
    # Of values that are equal on validation, the first.
    _, first = np.unique(validation, axis=0, return_index=True)
    kept = first[pareto_front(*validation[first].T)]
    chosen = test[kept[::-1]]
    chosen = chosen[np.argsort(chosen[:, 0], kind="stable")]
    return chosen[:, 0], chosen[:, 1]


def _points(part):
    return np.column_stack([part["flops_reduction"], part["accuracy"]])


def read_off(runs):
    """Accuracy at given reductions, reductions at given drops, area over 30-70 %.

    Interpolated between neighbouring points of the front. The plain backbone, which
    saves nothing, is a point of every front. NaN beyond the cheapest point.
    """
    reduction, accuracy = _from_backbone(runs)
    backbone = accuracy[0]
    at = accuracy_at(runs, REDUCTIONS)
    fine = np.linspace(0.3, 0.7, 201)
    area = np.interp(fine, reduction, accuracy, right=np.nan).mean()
    saved = [_largest_reduction(reduction, accuracy, backbone - d) for d in DROPS]
    return {
        "accuracy_at": at.tolist(),
        "reduction_at_drop": saved,
        "mean_accuracy_30_70": float(area),
    }


def accuracy_at(runs, reductions):
    """Test accuracy where the front saves so much; NaN beyond its cheapest point."""
    return np.interp(reductions, *_from_backbone(runs), right=np.nan)


def _from_backbone(runs):
    """The front with the plain backbone as its first point."""
    reduction, accuracy = front(runs)
    saves = reduction > 0
    backbone = runs[0]["backbone_accuracy"]
    return np.r_[0.0, reduction[saves]], np.r_[backbone, accuracy[saves]]


def mean_front(runs, step=0.01):
    """Mean and deviation over seeds, interpolated, as far as every seed's front goes.

    Returns reductions, accuracies, and their standard deviations, None with one seed.
    """
    seeds = dict.fromkeys(r["seed"] for r in runs)
    fronts = [_from_backbone([r for r in runs if r["seed"] == s]) for s in seeds]
    end = min(reduction[-1] for reduction, _ in fronts)
    grid = np.r_[np.arange(0, end, step), end]
    accuracy = np.stack([np.interp(grid, *points) for points in fronts])
    sd = accuracy.std(axis=0, ddof=1) if len(seeds) > 1 else None
    return grid, accuracy.mean(axis=0), sd


def _largest_reduction(reduction, accuracy, floor):
    """Most that is saved at an accuracy of at least `floor`, along the segments."""
    grid = np.linspace(0, reduction[-1], 2001)
    enough = np.interp(grid, reduction, accuracy) >= floor
    return float(grid[enough].max()) if enough.any() else float("nan")


def summary(runs):
    """Mean and standard deviation over seeds, by method; PTEENet's weights are one."""
    out = {}
    for family, mine in families(runs).items():
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


def families(runs):
    """Runs by method; PTEENet's weights are one method."""
    out = {}
    for run in runs:
        method = run["method"]
        family = "PTEENet" if method.startswith("PTEENet") else method
        out.setdefault(family, []).append(run)
    return out


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
