"""A table without a network: logistic regression, small trees, large boosted trees.

    python examples/tabular_cascade.py

No torch module is involved: a cascade of three classifiers of scikit-learn, from the
quickest to the best, on 20 columns of numbers. What they cost is milliseconds, measured
on this machine, so the figures are other ones on yours. It

1. fits the cascade: the boosted trees answer only what the two before them leave;
2. measures what each part takes, and counts that instead of FLOPs from then on;
3. compares accuracy and time with the boosted trees alone, over margins, and by the
   clock.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sk_calex import (
    CascadeClassifier,
    CascadeDisplay,
    ExitDepthDisplay,
    margin_curve,
    measure_costs,
)

MARGINS = [0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, few trees: a smoke test")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    X, y = make_classification(
        600 if args.quick else 30_000,
        n_features=20,
        n_informative=8,
        n_clusters_per_class=3,
        class_sep=1.6,
        random_state=args.seed,
    )
    X = X.astype(np.float32)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.5, random_state=args.seed)
    print(f"{len(X):,} rows to fit, {len(X_test):,} to test")

    n_trees, n_rounds = (3, 10) if args.quick else (10, 400)
    cascade = CascadeClassifier(
        branch=[
            make_pipeline(StandardScaler(), LogisticRegression()),
            RandomForestClassifier(n_trees, max_depth=8),
        ],
        final_estimator=HistGradientBoostingClassifier(
            max_iter=n_rounds, learning_rate=0.05, random_state=args.seed
        ),
        margin=0.01,
        cv=0.25,  # rows that choose when the first two may answer
        random_state=args.seed,
    )
    cascade.fit(X, y)

    # As many rows as are answered at once where it is used: few take longer each.
    costs = measure_costs(cascade, X_test)
    cascade.set_params(costs=costs)
    print("Milliseconds per row:")
    names = ("logistic regression", "small forest", "boosted trees")
    for name, spent in zip(names, [*costs.heads, costs.stages[-1]], strict=True):
        print(f"  {name:20} {spent:.5f}")

    curve = margin_curve(cascade, X_test, y_test, margins=MARGINS)
    print(f"Boosted trees alone: {curve.backbone_accuracy:.1%} right")
    print("margin  accuracy  time saved  answered by each")
    for margin, accuracy, saved, share in zip(
        curve.margins,
        curve.accuracy,
        curve.flops_reduction,  # here of the milliseconds
        curve.depth_share,
        strict=True,
    ):
        shares = "  ".join(f"{part:6.1%}" for part in share)
        print(f"{margin:6.3f}  {accuracy:8.1%}  {saved:10.1%}  {shares}")

    faster = seconds(cascade.final_estimator_.predict_proba, X_test) / seconds(
        cascade.predict_proba, X_test
    )
    print(
        f"At a margin of {cascade.margin:g} the cascade is {faster:.1f} times as fast "
        "as the boosted trees alone."
    )
    print(f"Picture: {draw(cascade, X_test, y_test, args.output)}")


def seconds(call, X):
    """Return the shortest of three times that a call takes, after one to warm up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        call(X)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def draw(cascade, X, y, folder):
    """Draw accuracy against the time saved, and who answers."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    CascadeDisplay.from_estimator(cascade, X, y, margins=MARGINS, ax=left)
    ExitDepthDisplay.from_estimator(cascade, X, ax=right)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "tabular_cascade.png", dpi=100)
    return folder / "tabular_cascade.png"


if __name__ == "__main__":
    main()
