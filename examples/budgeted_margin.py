"""A budget instead of a margin: say what may be lost, or what must be saved.

    python examples/budgeted_margin.py

MarginSearchCV measures all operating points out of fold and takes the cheapest one that
loses at most so much accuracy, or the most accurate one that saves at least so many
FLOPs; with one margin for all branches or one for each. Branches are trained once a
fold, whatever the number of points.
"""

from __future__ import annotations

from _digits import TAPS, load, parser, small_branch, trained_network
from matplotlib.figure import Figure

from sk_calex import (
    CascadeClassifier,
    CascadeDisplay,
    FrozenBackbone,
    MarginSearchCV,
)


def main(argv=None):
    args = parser(__doc__).parse_args(argv)
    data = load(args)
    cascade = CascadeClassifier(
        FrozenBackbone(trained_network(data, args), TAPS),
        branch=small_branch(args),
        random_state=args.seed,
    )
    budget = 0.05 if args.quick else 0.6
    questions = {
        "lose 1 point at most": {"max_accuracy_drop": 0.01},
        "the same, margins by branch": {"max_accuracy_drop": 0.01, "per_branch": True},
        f"save {budget:.0%} at least": {"flops_budget": budget},
    }
    print("                               out of fold         on test images")
    print(
        "                               accuracy   saved    accuracy   saved   margin"
    )
    searches = []
    for question, constraint in questions.items():
        search = MarginSearchCV(cascade, cv=2 if args.quick else 5, **constraint)
        # On images that the network was not trained on: see the user guide.
        search.fit(data.X_val, data.y_val)
        searches.append(search)
        margins = search.best_margin_
        margins = margins if isinstance(margins, tuple) else (margins,)
        print(
            f"{question:29}  {search.best_score_:8.1%}  "
            f"{search.best_flops_reduction_:6.1%}  "
            f"{search.score(data.X_test, data.y_test):10.1%}  "
            f"{search.flops_reduction(data.X_test):6.1%}   "
            + ", ".join(f"{margin:+.2f}" for margin in margins)
        )
    plain = search.best_estimator_.backbone_.predict(data.X_test)
    print(f"{'plain network':29}  {search.backbone_accuracy_:8.1%}  {0:6.1%}", end="")
    print(f"  {(plain == data.y_test).mean():10.1%}  {0:6.1%}")
    draw(searches[0], args.output)


def draw(search, folder):
    """All points that were measured, with their spread over the folds."""
    ax = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    CascadeDisplay.from_cv_results(
        search.cv_results_, best_index=search.best_index_, name="out of fold", ax=ax
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "budgeted_margin.png"
    ax.figure.savefig(path, dpi=100)
    print(f"Picture: {path.name}")


if __name__ == "__main__":
    main()
