"""The recipe against every baseline on several backbones, points by validation alone.

Each cell, a task, a method and a seed, trains what the method trains on cached
features, sweeps its exit rules over their knobs on validation rows that fitted neither
rule nor ensemble, freezes the operating points, and only then reads the labels of the
test set. Finished cells are read back from the record, and fits from the cache, so an
interrupted run goes on.

    python examples/benchmarks/front.py --cache ~/.cache/sk_calex/features
    python examples/benchmarks/front.py --tasks resnet50 --weights resnet50=r50.json

The last two tasks need a network that train_backbone.py left.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import environment, read_json, write_json
from _front_fits import (
    BUDGETS,
    COST_WEIGHT,
    DEFAULT_TAPS,
    LARGE,
    Fit,
    fit_or_read,
    labels_of,
)
from _front_judge import AIMS, CUTS, FOLDS, Variant, judge
from _front_tasks import TASKS, WEIGHTED_TASKS, Task, load_task
from _rule_curves import mean_and_sd
from numpy.typing import NDArray

from sk_calex import SurvivorThresholdCalibrator
from sk_calex.cascade._soft_shares import loss_with_the_last
from sk_calex.policies import OptimalStopping, OwnGate, Quota, SharedThreshold

PRICES = np.r_[0, np.geomspace(0.01, 1.2, 16)]
MARGINS = np.r_[-0.01, np.linspace(0, 0.1, 7), np.geomspace(0.13, 0.7, 9)]
PRECISION_MARGINS = np.r_[np.linspace(-0.6, 0.3, 16), 0.5]
DECAYS = np.geomspace(0.15, 10, 17)
THRESHOLDS = np.r_[np.linspace(0.2, 0.9, 15), 1 - np.geomspace(0.09, 1e-4, 15)]

LOCAL = Variant(SurvivorThresholdCalibrator(margin_mode="local"), MARGINS)
STOPPING = Variant(OptimalStopping(), PRICES)
QUOTA = Variant(Quota(), DECAYS)
SHARED = Variant(SharedThreshold(), THRESHOLDS)
OWN_GATE = Variant(OwnGate(), THRESHOLDS)


def precision_gate(calibrate_on: str) -> Variant:
    """The paper's gate: a margin on the precision of each class."""
    rule = SurvivorThresholdCalibrator(
        margin_mode="relative", calibrate_on=calibrate_on
    )
    return Variant(rule, PRECISION_MARGINS)


def together(variant: Variant, has_auto: bool = False) -> Variant:
    """The same rule on stages that answer with those before them."""
    return Variant(variant.rule, variant.values, ensemble=True, has_auto=has_auto)


def found(variant: Variant) -> Variant:
    """The same rule, the value that it finds by itself judged, too."""
    return Variant(variant.rule, variant.values, variant.ensemble, has_auto=True)


#: Fits of each method, the ones that matter most first.
METHODS = {
    "cascade": ("soft", "labels"),
    "boostnet": ("boostnet",),
    "added": ("added",),
    "defaults": ("defaults",),
    "ztw": ("ztw",),
    "reference": ("reference",),
    "btsee": ("btsee",),
    "pteenet": ("pteenet",),
}
RECIPE = "recipe"
SUMS = "recipe, sums of logits"
DEFAULTS = "defaults"
#: Names of what takes, for each saving, the variant that validation prefers there.
CHOSEN, BOOSTNET_CHOSEN = "recipe, chosen by validation", "BoostNet, chosen so, too"
CHOICES = {
    CHOSEN: (
        RECIPE,
        "recipe, local margins",
        "recipe, no ensemble",
        "recipe, local margins, no ensemble",
        "recipe, soft targets on all",
        "recipe, labels on all",
        "labels alone, quota",
        "labels alone, quota, ensemble",
    ),
    BOOSTNET_CHOSEN: (
        "BoostNet",
        "BoostNet, our ensemble",
        "BoostNet, our rule",
        "BoostNet, our ensemble and rule",
    ),
}
#: Names of the variants that are the competition.
BASELINES = (
    "BoostNet",
    "BoostNet, our ensemble",
    "BoostNet, our ensemble and rule",
    BOOSTNET_CHOSEN,
    "ZTW",
    "PTEENet",
    "BTS-EE",
    "reference",
)


def alphas_by_validation(soft: Fit, labels: Fit, y: NDArray[Any]) -> list[int]:
    """Branches that labels teach better, as `alpha="auto"` judges in an ensemble."""
    *of_soft, final = soft.calibration.proba
    ones, chosen, taught = np.ones(len(y)), [], []
    for k, tried in enumerate(zip(of_soft, labels.calibration.proba, strict=False)):
        losses = [
            loss_with_the_last(np.stack([*chosen, proba]), final, y, ones)
            for proba in tried
        ]
        best = int(np.argmin(losses))
        chosen.append(tried[best])
        if best == 1:
            taught.append(k)
    return taught


def variants_of(
    method: str, fits: dict[str, Fit], y: NDArray[Any]
) -> dict[str, tuple[Variant, Fit]]:
    """Variants of a method by name, each with the fit whose answers it takes."""
    if method != "cascade":
        fit = fits[method]
        rules = {
            "boostnet": {
                "BoostNet": QUOTA,
                "BoostNet, our ensemble": together(QUOTA),
                "BoostNet, our rule": STOPPING,
                "BoostNet, our ensemble and rule": together(STOPPING),
            },
            "added": {
                SUMS: together(STOPPING, has_auto=True),
                f"{SUMS}, no ensemble": STOPPING,
            },
            "defaults": {
                DEFAULTS: found(LOCAL),
                "defaults, optimal stopping": found(STOPPING),
                "defaults, ensemble": together(LOCAL, has_auto=True),
                "defaults, ensemble, optimal stopping": together(
                    STOPPING, has_auto=True
                ),
            },
            "ztw": {"ZTW": SHARED},
            "reference": {"reference": precision_gate("all")},
            "btsee": {"BTS-EE": precision_gate("survivors")},
            "pteenet": {"PTEENet": OWN_GATE},
        }[method]
        return {name: (variant, fit) for name, variant in rules.items()}
    soft, labels = fits["soft"], fits["labels"]
    n_branches = len(soft.heads)
    late = soft.with_branches(labels, range(n_branches // 2, n_branches))
    by_validation = soft.with_branches(labels, alphas_by_validation(soft, labels, y))
    return {
        RECIPE: (together(STOPPING, has_auto=True), late),
        "recipe, local margins": (together(LOCAL, has_auto=True), late),
        "recipe, no ensemble": (found(STOPPING), late),
        "recipe, local margins, no ensemble": (found(LOCAL), late),
        "recipe, soft targets on all": (together(STOPPING), soft),
        "recipe, alpha by validation": (
            together(STOPPING, has_auto=True),
            by_validation,
        ),
        "recipe, labels on all": (together(STOPPING), labels),
        # BoostNet's rule on the same heads, without its sums.
        "labels alone, quota": (QUOTA, labels),
        "labels alone, quota, ensemble": (together(QUOTA), labels),
    }


def run(
    task_name: str, load: Callable[[], Task], method: str, seed: int, folder: Path
) -> dict[str, Any]:
    """Train what a method trains, and judge its variants: one cell."""
    fits = {
        name: fit_or_read(load, task_name, name, seed, folder)
        for name in METHODS[method]
    }
    y, sealed = labels_of(load, task_name, folder)
    start = time.process_time()
    variants = variants_of(method, fits, y)
    cell = {
        "task": task_name,
        "method": method,
        "seed": seed,
        "fit_cpu_seconds": {name: fit.seconds for name, fit in fits.items()},
        "head_mmacs": {
            name: (fit.heads / 1e6).round(4).tolist() for name, fit in fits.items()
        },
        "validation_accuracy_of_stages": {
            name: (fit.calibration.proba.argmax(axis=2) == y).mean(axis=1).tolist()
            for name, fit in fits.items()
        },
        "variants": judge(variants, y, sealed, seed),
    }
    if method == "cascade":
        chosen = alphas_by_validation(fits["soft"], fits["labels"], y)
        cell["labels_by_validation"] = chosen
    cell["judge_cpu_seconds"] = time.process_time() - start
    return cell


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations over seeds, by task and variant, and the recipe's lead."""
    out: dict[str, Any] = {}
    for task in dict.fromkeys(cell["task"] for cell in cells):
        found: dict[str, dict[int, Any]] = {}
        for cell in (c for c in cells if c["task"] == task):
            offered = dict(cell["variants"])
            for name, names in CHOICES.items():
                if set(names) <= set(offered):
                    offered[name] = chosen_by_validation([offered[n] for n in names])
            for name, one in offered.items():
                found.setdefault(name, {})[cell["seed"]] = one
        out[task] = {
            name: {"seeds": sorted(each)} | _means([each[s] for s in sorted(each)])
            for name, each in found.items()
        }
        for leader in (RECIPE, SUMS, CHOSEN):
            for name in BASELINES:
                mine, theirs = found.get(leader, {}), found.get(name, {})
                seeds = sorted(set(mine) & set(theirs))
                if seeds:
                    ahead = [
                        np.asarray(mine[s]["test_at_cuts"], dtype=float)
                        - np.asarray(theirs[s]["test_at_cuts"], dtype=float)
                        for s in seeds
                    ]
                    leads = out[task][leader].setdefault("ahead_by", {})
                    leads[name] = mean_and_sd(ahead)
    return out


def chosen_by_validation(variants: list[dict[str, Any]]) -> dict[str, Any]:
    """Take, for each saving and each aim, the variant that is best on validation."""

    def best(values: list[float | None]) -> int:
        return max(range(len(values)), key=lambda i: (values[i] or 0.0, -i))

    chosen: dict[str, Any] = {"plain": variants[0]["plain"]}
    picks = [
        best(list(v))
        for v in zip(*(o["validation_at_cuts"] for o in variants), strict=True)
    ]
    for key in ("validation_at_cuts", "test_at_cuts"):
        chosen[key] = [variants[i][key][cut] for cut, i in enumerate(picks)]
    chosen["aims"] = {}
    for aim in variants[0]["aims"]:
        offered = [one["aims"][aim] for one in variants]
        chosen["aims"][aim] = offered[best([o["validated_saved"] for o in offered])]
    return chosen


def _means(each: list[dict[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {
        key: mean_and_sd([one[key] for one in each])
        for key in ("validation_at_cuts", "test_at_cuts")
    }
    result["aims"] = {
        aim: {
            key: mean_and_sd([one["aims"][aim][key] for one in each])
            for key in ("saved", "lost", "validated_saved", "on_the_front")
        }
        for aim in each[0]["aims"]
    }
    result["plain"] = mean_and_sd([one["plain"] for one in each])
    if "auto" in each[0]:
        result["auto"] = {
            key: mean_and_sd([one["auto"][key] for one in each])
            for key in each[0]["auto"]
        }
    return result


def show(record: dict[str, Any]) -> None:
    """Print what was found, in per cent."""
    for task, found in record["summary"].items():
        for part in ("validation", "test"):
            print(f"\n{task}, {part}, accuracy at a cut of {CUTS}")
            for name, one in found.items():
                print(f"  {name:38}", _cells(one[f"{part}_at_cuts"]))
        print(f"\n{task}, points lost and saved for {AIMS}, and with one error")
        for name, one in found.items():
            each = one["aims"].values()
            pairs = (
                f"{100 * a['lost']['mean']:5.2f}/{100 * a['saved']['mean']:4.1f}"
                for a in each
            )
            print(f"  {name:38}", *pairs)
        print(f"\n{task}, found by the rule itself")
        for name, one in found.items():
            if "auto" in one:
                each = one["auto"].items()
                cells = (
                    f"{key} {100 * v['mean']:.2f}"
                    for key, v in each
                    if v["mean"] is not None
                )
                print(f"  {name:38}", *cells)


def _cells(found: dict[str, Any]) -> str:
    cells = []
    for mean, sd in zip(found["mean"], found["sd"], strict=True):
        text = "-" if mean is None else f"{100 * mean:.2f}"
        cells.append(text + ("" if sd is None else f"+-{100 * sd:.2f}"))
    return "  ".join(f"{cell:>11}" for cell in cells)


def settings() -> dict[str, Any]:
    """What the record says of how things were done."""
    budgets = {name: BUDGETS.get(name, LARGE) for name in (*TASKS, *WEIGHTED_TASKS)}
    return {
        "budgets": {
            name: {"widths": list(budget.widths), **budget.training}
            for name, budget in budgets.items()
        },
        "pteenet_cost_weight": COST_WEIGHT,
        "taps_of_defaults": list(DEFAULT_TAPS),
        "cuts": list(CUTS),
        "aims": list(AIMS),
        "folds": FOLDS,
        "knobs": {
            "price": PRICES.round(5).tolist(),
            "margin": MARGINS.round(5).tolist(),
            "precision_margin": PRECISION_MARGINS.round(5).tolist(),
            "quota_decay": DECAYS.round(5).tolist(),
            "threshold": THRESHOLDS.round(5).tolist(),
        },
    }


def goes_on(record: dict[str, Any]) -> bool:
    """Whether a record's cells were made as they are now; it may lack newer tasks."""
    now, before = settings(), record["settings"]
    budgets = {name: now["budgets"].get(name) for name in before["budgets"]}
    return bool(now | {"budgets": budgets} == before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="TASK=PATH",
        help="JSON of train_backbone.py for a task that needs one",
    )
    parser.add_argument(
        "--again", action="store_true", help="judge finished cells again"
    )
    parser.add_argument("--name", default="front")
    args = parser.parse_args()
    torch.set_num_threads(1)
    weights = {task: Path(path) for task, path in (w.split("=") for w in args.weights)}
    folder = Path(args.cache).expanduser().parent / "front_fits"
    record = read_json(args.name)
    if record and not goes_on(record):
        raise SystemExit(f"{args.name}.json has other settings: give another --name.")
    cells, tasks = record.get("cells", []), record.get("tasks", {})

    @cache
    def load(name: str) -> Task:
        task = load_task(name, args.cache, weights.get(name))
        tasks[name] = task.settings
        return task

    for seed in args.seeds:
        for name in args.tasks:
            for method in args.methods:
                key = (name, method, seed)
                old = [c for c in cells if (c["task"], c["method"], c["seed"]) == key]
                if old and not args.again:
                    continue
                cell = run(name, partial(load, name), method, seed, folder)
                cells = [c for c in cells if c not in old] + [cell]
                record = {
                    "what": __doc__.splitlines()[0],
                    "environment": environment(),
                    "settings": settings(),
                    "tasks": tasks,
                    "not_run": [t for t in WEIGHTED_TASKS if t not in tasks],
                    "summary": summary(cells),
                    "cells": cells,
                }
                write_json(args.name, record)
                print(*key, f"judged in {cell['judge_cpu_seconds']:.0f} s", flush=True)
    show(record)


if __name__ == "__main__":
    main()
