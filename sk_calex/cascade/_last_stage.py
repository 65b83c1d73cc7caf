"""Which output of the backbone is which class."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

__all__ = ["check_output_order", "output_order"]


def output_order(
    classes: NDArray[Any], given: ArrayLike | None, n_outputs: int
) -> NDArray[np.intp]:
    """Order of the backbone's outputs: column of each of the sorted classes."""
    if given is None:
        if len(classes) != n_outputs:
            raise ValueError(
                f"the backbone has {n_outputs} outputs but y has {len(classes)} "
                "classes. Give a final_estimator, which is trained on the outputs, or "
                "the labels of the outputs by FrozenBackbone(classes=...)."
            )
        return np.arange(n_outputs)
    labels = np.asarray(given)
    position = {label: i for i, label in enumerate(labels.tolist())}
    missing = [label for label in classes.tolist() if label not in position]
    if missing or len(labels) != len(classes):
        raise ValueError(
            f"FrozenBackbone(classes=...) has {len(labels)} labels and y has "
            f"{len(classes)} classes{f', {missing[:5]} not among them' * bool(missing)}"
            ". They must be the same labels; otherwise give a final_estimator."
        )
    return np.array([position[label] for label in classes.tolist()])


def check_output_order(predicted: NDArray[np.intp], codes: NDArray[np.intp]) -> None:
    """Refuse labels whose order is evidently not that of the outputs.

    Sorted labels and outputs that go by another order would make every answer wrong
    without a word: names in alphabetical order, outputs in that of a training script.
    """
    if np.mean(predicted == codes) >= 0.5:
        return  # no other order is twice as good; and this takes no matrix
    n_classes = int(max(predicted.max(), codes.max())) + 1
    counts = np.bincount(predicted * n_classes + codes, minlength=n_classes**2)
    confusion = counts.reshape(n_classes, n_classes)
    right = np.trace(confusion) / len(codes)
    best = confusion[linear_sum_assignment(-confusion)].sum() / len(codes)
    if best >= 0.5 and right < best / 2:
        raise ValueError(
            f"the backbone is right for {right:.0%} of the calibration samples if its "
            f"outputs are in the sorted order of the labels, and for {best:.0%} in "
            "another order. Name the label of each output: "
            "FrozenBackbone(classes=[...])."
        )
