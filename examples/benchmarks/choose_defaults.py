"""Which settings validation rows alone choose for CalexNet, and what test says of them.

Branches are trained on the 45,000 training rows, with each weight of the soft targets.
The 5,000 validation rows are then cut into five folds, twice: thresholds are chosen on
four folds and judged on the fifth. The settings with the highest accuracy there, as the
mean over savings of 30 to 60 %, are the choice; its margin is the largest that costs at
most half a point there. The test set is read for every candidate, to show how far the
choice is from the best, and chooses nothing.

    python examples/benchmarks/choose_defaults.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _common import cifar_features, environment, read_json, write_json
from sklearn.model_selection import RepeatedStratifiedKFold

from sk_calex import CascadeClassifier, PrototypePoolingClassifier
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.cascade._costs import depth_prices

ALPHAS = (0.0, 0.5, 1.0)
LOCAL = np.r_[-0.02, np.linspace(0, 0.1, 11), np.linspace(0.12, 0.2, 5), 0.25, 0.3]
RELATIVE = np.linspace(-0.5, 0.2, 15)
GATES = {
    "relative": ({"margin_mode": "relative"}, RELATIVE),
    **{
        f"local, shrinkage {s:g}": ({"margin_mode": "local", "shrinkage": s}, LOCAL)
        for s in (0.0, 50.0, 200.0, 1000.0)
    },
}
REDUCTIONS = (0.3, 0.4, 0.5, 0.6)
MOST_LOST = 0.005


def answers(alpha, seed, epochs, data, split, memory):
    """Probabilities (n_stages, n, n_classes) by part, and the price of each depth."""
    branch = PrototypePoolingClassifier(max_iter=epochs, alpha=alpha)
    settings = {"input": "features", "memory": memory, "random_state": seed}
    cascade = CascadeClassifier(branch=branch, cv=split, **settings)
    cascade.fit(*data["train"])
    costs = np.divide(*depth_prices(cascade, None))
    parts = ("validation", "test")
    return {p: cascade.stage_probabilities(data[p][0]) for p in parts}, costs


def points(policy, margins, chosen_on, judged_on, costs):
    """FLOPs saved and accuracy at each margin; last, with nobody exiting."""
    proba, y = judged_on
    right = proba.argmax(axis=2) == y
    out = []
    for margin in margins:
        depth = policy.set_params(margin=margin).fit(*chosen_on).depth(proba)
        out.append((1 - costs[depth].mean(), right[depth, np.arange(len(y))].mean()))
    return np.array([*out, (0.0, right[-1].mean())])


def judged(gate, proba, y, costs, seed):
    """`points` on validation rows that chose no threshold, the mean over the folds."""
    settings, margins = gate
    policy = SurvivorThresholdCalibrator(**settings)
    folds = RepeatedStratifiedKFold(n_splits=5, n_repeats=2, random_state=seed)
    return np.mean(
        [
            points(policy, margins, (proba[:, a], y[a]), (proba[:, b], y[b]), costs)
            for a, b in folds.split(y, y)
        ],
        axis=0,
    )


def at_reductions(curve):
    """Accuracy at the given savings, interpolated along the margins."""
    saved, accuracy = curve[np.argsort(curve[:, 0], kind="stable")].T
    return np.interp(REDUCTIONS, saved, accuracy)


def summary(runs):
    """Candidates from the best on validation to the worst, and the margin of each."""
    out = []
    for alpha in ALPHAS:
        for name, (_, margins) in GATES.items():
            mine = [r for r in runs if r["alpha"] == alpha]
            parts = {
                part: np.array([r[part][name] for r in mine])
                for part in ("validation", "test")
            }
            read = {
                part: np.array([at_reductions(curve) for curve in curves])
                for part, curves in parts.items()
            }
            loss = parts["validation"][:, -1:, 1] - parts["validation"][:, :-1, 1]
            within = np.flatnonzero(loss.mean(axis=0) <= MOST_LOST)
            best = int(within[-1]) if len(within) else 0
            saved, accuracy = parts["test"][:, best].mean(axis=0)
            out.append(
                {
                    "alpha": alpha,
                    "gate": name,
                    "validation_score": float(read["validation"].mean()),
                    "validation_at": read["validation"].mean(axis=0).tolist(),
                    "test_score": float(read["test"].mean()),
                    "test_at": read["test"].mean(axis=0).tolist(),
                    "margin": float(margins[best]),
                    "test_accuracy_at_margin": float(accuracy),
                    "test_flops_reduction_at_margin": float(saved),
                    "test_points_lost_at_margin": float(
                        100 * (parts["test"][:, -1, 1].mean() - accuracy)
                    ),
                }
            )
    return sorted(out, key=lambda each: -each["validation_score"])


def table(candidates):
    """The candidates as a Markdown table."""
    lines = [
        "| alpha | gate | validation | test | margin | saved | points lost |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in candidates:
        lines.append(
            f"| {c['alpha']:g} | {c['gate']} | {100 * c['validation_score']:.2f} "
            f"| {100 * c['test_score']:.2f} | {c['margin']:+.3f} "
            f"| {c['test_flops_reduction_at_margin']:.1%} "
            f"| {c['test_points_lost_at_margin']:.2f} |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--name", default="choose_defaults")
    args = parser.parse_args()

    data, split = cifar_features(args.cache)
    memory = str(Path(args.cache).expanduser().parent / "fits")
    runs = read_json(args.name).get("runs", [])
    done = {(r["alpha"], r["seed"]) for r in runs}
    for seed in args.seeds:
        for alpha in ALPHAS:
            if (alpha, seed) in done:
                continue
            proba, costs = answers(alpha, seed, args.epochs, data, split, memory)
            chosen_on = (proba["validation"], data["validation"][1])
            judged_on = (proba["test"], data["test"][1])
            run = {"alpha": alpha, "seed": seed, "validation": {}, "test": {}}
            for name, gate in GATES.items():
                held = judged(gate, *chosen_on, costs, seed)
                run["validation"][name] = held.tolist()
                policy = SurvivorThresholdCalibrator(**gate[0])
                seen = points(policy, gate[1], chosen_on, judged_on, costs)
                run["test"][name] = seen.tolist()
            runs.append(run)
            record = {
                "what": __doc__.splitlines()[0],
                "environment": environment(),
                "settings": {
                    "epochs": args.epochs,
                    "reductions": REDUCTIONS,
                    "most_lost": MOST_LOST,
                    "folds": "5, twice",
                },
                "candidates": summary(runs) if len(runs) % len(ALPHAS) == 0 else None,
                "runs": runs,
            }
            write_json(args.name, record)
            print(f"alpha {alpha:g} seed {seed}", flush=True)
    print(table(summary(runs)))


if __name__ == "__main__":
    main()
