"""Survivors and weights: is a branch trained on what will reach it?

    python examples/survivors_and_weights.py

A later branch sees only what the earlier ones let pass. This compares, branch by
branch, the weighted training rows with the survivors among the test images, for the
three settings of `alignment`; and draws who exits where, which precision the thresholds
were chosen for, and the two distributions side by side.
"""

from __future__ import annotations

from _digits import TAPS, load, parser, small_branch, trained_network

from sk_calex import (
    AlignmentDisplay,
    CascadeClassifier,
    ExitDepthDisplay,
    FrozenBackbone,
    ThresholdDisplay,
    alignment_report,
    exit_report,
)


def main(argv=None):
    args = parser(__doc__).parse_args(argv)
    data = load(args)
    backbone = FrozenBackbone(trained_network(data, args), TAPS)
    cascades = {
        alignment: CascadeClassifier(
            backbone,
            branch=small_branch(args),
            alignment=alignment,
            cv=data.held_out,
            random_state=args.seed,
        ).fit(data.X, data.y)
        for alignment in ("soft", "hard", "none")
    }
    print_distances(cascades, data)
    print_exits(cascades["soft"], data)
    draw(cascades["soft"], data, args.output)


def print_distances(cascades, data):
    """Total-variation distance of the classes: 0 is the same mix, 1 is disjoint."""
    print("               training   worth    survivors   distance  unweighted  chance")
    for name, cascade in cascades.items():
        report = alignment_report(
            cascade,
            data.X_test,
            data.y_test,
            X_train=data.X_train,
            y_train=data.y_train,
        )
        for k, branch in enumerate(report.branch_names):
            print(
                f"{name:5} {branch:7} {report.n_train:8}  "
                f"{report.effective_sample_size[k]:7.0f}  "
                f"{report.n_survivors[k]:9}  "
                f"{report.tv_class[k]:9.2f}  "
                f"{report.tv_class_unweighted[k]:10.2f}  "
                f"{report.tv_class_noise[k]:6.2f}"
            )


def print_exits(cascade, data):
    report = exit_report(cascade, data.X_test, data.y_test)
    print("\nanswered at   share of test images   right")
    for name, share, right in zip(
        report.depth_names, report.depth_share, report.depth_precision, strict=True
    ):
        print(f"{name:12}  {share:20.1%}  {f'{right:.1%}' if share else '-':>6}")


def draw(cascade, data, folder):
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "depths": ExitDepthDisplay.from_estimator(cascade, data.X_test, data.y_test),
        "thresholds": ThresholdDisplay.from_estimator(cascade, branch=1),
        "weights": AlignmentDisplay.from_estimator(cascade, data.X_test, data.y_test),
    }
    for name, display in pictures.items():
        display.figure_.savefig(folder / f"survivors_{name}.png", dpi=80)
    print("\nPictures:", ", ".join(f"survivors_{name}.png" for name in pictures))


if __name__ == "__main__":
    main()
