"""What `branches="auto"` leaves out on real networks, and what that saves.

Cascades with six taps and heads by cost on two networks, each fitted once a seed; at
several margins all branches answer, or those that pay. The calibration rows choose; the
test set reports.

    python examples/benchmarks/paying_branches.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import warnings

import torch
from _common import environment, read_json, write_json
from _front_fits import QUICK
from _front_tasks import load_task
from _rule_curves import mean_and_sd

from sk_calex import CascadeClassifier
from sk_calex.branches import BranchCostWarning
from sk_calex.branches._defaults import default_branches
from sk_calex.calibration import CalibrationWarning

TASKS = {"resnet18_cifar100": 2, "resnet32_cifar10": 6}  # and epochs
MARGINS = (-0.01, 0.0, 0.01, 0.02, 0.05, 0.1, "auto")


def run(name, task, seed):
    """Fit one cascade and move it."""
    layout = task.X.layout
    branches = default_branches(layout.shapes, layout.stage_macs, int(task.y.max()) + 1)
    for branch in branches:
        branch.set_params(solver="adam", max_iter=TASKS[name], **QUICK)
    cascade = CascadeClassifier(
        branch=branches,
        input="features",
        cv=task.split,
        margin=0.0,
        alignment="none",
        random_state=seed,
    ).fit(task.X, task.y)
    points = []
    for margin in MARGINS:
        for which in ("all", "auto"):
            cascade.set_params(branches=which).set_margin(margin)
            predicted = cascade.predict(task.test_X)
            points.append(
                {
                    "margin": margin,
                    "branches": which,
                    "kept": cascade.kept_branches_.tolist(),
                    "predicted": predicted,
                    "saved": cascade.flops_reduction(task.test_X),
                }
            )
    task.test_y.freeze(repr([point["margin"] for point in points]))
    y = task.test_y.read()
    for point in points:
        point["accuracy"] = float((point.pop("predicted") == y).mean())
    return {"task": name, "seed": seed, "points": points}


def summary(runs):
    """Means over seeds by task and margin, of both, and of the gain of leaving out."""
    out = {}
    for name in dict.fromkeys(run["task"] for run in runs):
        mine = [run["points"] for run in runs if run["task"] == name]
        for i in range(0, len(mine[0]), 2):
            both = [(points[i], points[i + 1]) for points in mine]
            out.setdefault(name, {})[str(both[0][0]["margin"])] = {
                "left_out": mean_and_sd(
                    [sum(a["kept"]) - sum(b["kept"]) for a, b in both]
                ),
                **{
                    f"{key}_{which}": mean_and_sd([pair[k][key] for pair in both])
                    for key in ("saved", "accuracy")
                    for k, which in enumerate(("all", "auto"))
                },
                "saves_more": mean_and_sd([b["saved"] - a["saved"] for a, b in both]),
                "loses_more": mean_and_sd(
                    [a["accuracy"] - b["accuracy"] for a, b in both]
                ),
            }
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", CalibrationWarning)  # where nothing exits
    warnings.simplefilter("ignore", BranchCostWarning)
    runs = read_json("paying_branches").get("runs", [])
    done = {(run["task"], run["seed"]) for run in runs}
    for name in args.tasks:
        seeds = [seed for seed in args.seeds if (name, seed) not in done]
        for seed in seeds:
            runs.append(run(name, load_task(name, args.cache), seed))
            record = {
                "what": __doc__.splitlines()[0],
                "environment": environment(),
                "settings": {"epochs": TASKS, **QUICK, "margins": MARGINS},
                "summary": summary(runs),
                "runs": runs,
            }
            write_json("paying_branches", record)
            print(name, seed, flush=True)
    for name, found in summary(runs).items():
        for margin, one in found.items():
            print(
                f"{name:18} {margin:5} left out {one['left_out']['mean']:.1f}",
                *(
                    f"{key}_{which} {one[f'{key}_{which}']['mean']:.4f}"
                    for key in ("saved", "accuracy")
                    for which in ("all", "auto")
                ),
            )


if __name__ == "__main__":
    main()
