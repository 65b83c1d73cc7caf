"""A pipeline and a grid search over margins: twenty margins, one training a fold.

    python examples/pipeline_grid_search.py

The backbone is a step of a pipeline that turns images into features; the cascade behind
it is searched by scikit-learn's own GridSearchCV. Accuracy and FLOPs are scored side by
side, and a refit rule takes the cheapest margin that loses at most a point of accuracy.
Margins share their branches, and features are kept in a store.
"""

from __future__ import annotations

import tempfile

import numpy as np
from _digits import TAPS, load, parser, trained_network
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    cheapest_within,
    flops_reduction_scorer,
)

MARGINS = np.linspace(0, 0.19, 20).round(2)


class CountedBranch(BranchClassifier):
    """A branch that counts how often any of its kind is trained."""

    trained = 0

    def fit(self, X, y, **params):
        CountedBranch.trained += 1
        return super().fit(X, y, **params)


def main(argv=None):
    args = parser(__doc__).parse_args(argv)
    data = load(args)
    module = trained_network(data, args)
    branch = CountedBranch(
        "conv",
        head_params={"widths": (16, 32)},
        max_iter=2 if args.quick else None,
    )
    CountedBranch.trained = 0
    with tempfile.TemporaryDirectory() as store:
        pipeline = Pipeline(
            [
                ("backbone", FrozenBackbone(module, TAPS, cache=store)),
                (
                    "cascade",
                    CascadeClassifier(
                        input="features", branch=branch, random_state=args.seed
                    ),
                ),
            ]
        )
        search = GridSearchCV(
            pipeline,
            {"cascade__margin": MARGINS[::5] if args.quick else MARGINS},
            scoring={"accuracy": "accuracy", "flops": flops_reduction_scorer},
            refit=cheapest_within(max_accuracy_drop=0.01),
            cv=2 if args.quick else 5,
        )
        # On images that the network was not trained on: see the user guide.
        search.fit(data.X_val, data.y_val)
        print_results(search)
        right = (search.predict(data.X_test) == data.y_test).mean()
        saved = flops_reduction_scorer(search, data.X_test)
        print(f"On test images: accuracy {right:.1%}, FLOPs saved {saved:.1%}")


def print_results(search):
    found = search.cv_results_
    margins = found["param_cascade__margin"]
    fits = (len(margins) * search.n_splits_ + 1) * len(TAPS)
    print(f"Branches trained: {CountedBranch.trained}, not {fits}")
    print("margin  accuracy  FLOPs saved     (means over the folds)")
    for i, margin in enumerate(margins):
        mark = "  <- taken" if i == search.best_index_ else ""
        print(
            f"{margin:+6.2f}  {found['mean_test_accuracy'][i]:8.1%}  "
            f"{found['mean_test_flops'][i]:11.1%}{mark}"
        )


if __name__ == "__main__":
    main()
