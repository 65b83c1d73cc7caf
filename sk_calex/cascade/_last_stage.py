"""The last stage: the backbone's own classifier, or one on its outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sk_calex.branches._as_branch import (
    Probabilities,
    fit_with_weights,
    probabilities_of,
)
from sk_calex.branches._soft_targets import row_blocks
from sk_calex.cascade._training_data import Folds
from sk_calex.utils._codec import savable
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._rows import as_rows, take_rows
from sk_calex.utils._validation import check_finite, softmax64

__all__ = [
    "LastStage",
    "all_classes",
    "backbone_probabilities",
    "check_output_order",
    "final_estimator_for",
    "fit_final_estimator",
    "output_order",
    "read_backbone",
]


@savable
@dataclass(frozen=True)
class LastStage:
    """What answers the samples that no branch answers.

    Parameters
    ----------
    estimator : classifier or None
        Fitted on the backbone's outputs; None: the outputs are logits of the classes.
    columns : ndarray of intp, shape (n_classes,)
        Output of the backbone for each class, or class of each column of the
        estimator's probabilities.
    n_classes : int
        Number of classes.
    """

    estimator: Any
    columns: NDArray[np.intp]
    n_classes: int

    def probabilities(self) -> Probabilities:
        """Return the function from outputs to probabilities of the classes."""
        if self.estimator is None:
            order = self.columns
            return lambda logits: backbone_probabilities(logits)[:, order]
        # By codes: a frozen one may have been fitted on other labels.
        return probabilities_of(self.estimator, self.n_classes, self.columns)


def backbone_probabilities(logits: Tensor) -> NDArray[np.float64]:
    """Compute probabilities from the outputs of the backbone's own classifier."""
    logits = logits.cpu()  # once, to be checked and to answer
    check_finite(logits, "the logits of the backbone", "Check samples and weights.")
    return softmax64(logits)


def final_estimator_for(given: Any, shared: bool) -> Any:
    """Return the template of the final estimator; None: the backbone answers itself.

    `shared` says that there is no backbone: taps and outputs are the columns of X.
    """
    if given is None and shared:
        return LogisticRegression(max_iter=1000)
    return given


def read_backbone(
    outputs: NDArray[Any],
    order: NDArray[np.intp],
    codes: NDArray[np.intp],
    folds: Folds,
    check_order: bool,
) -> tuple[LastStage, LogitRows]:
    """Take the backbone's own classifier as last stage; also its probabilities."""
    for part in row_blocks(np.arange(len(outputs))):
        logits = np.asarray(take_rows(outputs, part))
        check_finite(logits, "the logits of the backbone", "Check its weights.")
    proba = LogitRows(outputs, order)
    if check_order:
        held = folds.calibration
        answers = [proba[part].argmax(axis=1) for part in row_blocks(held)]
        check_output_order(np.concatenate(answers), codes[held])
    return LastStage(None, order, len(order)), proba


@dataclass(frozen=True, eq=False)
class LogitRows:
    """Probabilities of the backbone's classifier, computed as rows are read.

    Parameters
    ----------
    logits : ndarray of shape (n_samples, n_outputs)
        Outputs of the backbone; may be some of the columns of a memory map.
    order : ndarray of intp, shape (n_classes,)
        Output of each class.
    """

    logits: NDArray[Any]
    order: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of classes."""
        return len(self.logits), len(self.order)

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: Any) -> NDArray[np.float64]:
        return softmax64(np.asarray(self.logits[rows]))[:, self.order]


def fit_final_estimator(
    template: Any,
    outputs: Any,
    codes: NDArray[np.intp],
    weight: NDArray[np.float64],
    folds: Folds,
    classes: NDArray[Any],
    verbose: int,
) -> tuple[LastStage, NDArray[np.float64]]:
    """Fit an estimator on the backbone's outputs; also its probabilities of all rows.

    Where the rows that calibrate also train, their probabilities are out of fold.
    """
    n_classes = len(classes)

    def fit(rows: NDArray[np.intp]) -> LastStage:
        if isinstance(template, FrozenEstimator):
            columns = _codes_of_frozen(template, classes)
            return LastStage(template, columns, n_classes)
        fitted = fit_with_weights(
            clone(template),
            take_rows(outputs, rows),
            codes[rows],
            weight[rows],
            "final_estimator",
            "Give one whose fit takes them, or no sample_weight.",
        )
        return LastStage(fitted, np.asarray(fitted.classes_, np.intp), n_classes)

    def answer(stage: LastStage, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return stage.probabilities()(as_rows(take_rows(outputs, rows)))

    proba = np.full((len(codes), n_classes), 1 / n_classes)
    pairs = folds.pairs if folds.out_of_fold else ()
    with (
        showing(verbose, "final estimator"),
        bar(unit="fit", total=1 + len(pairs)) as shown,
    ):
        stage = fit(folds.train)
        shown.update()
        if not pairs:
            rows = np.concatenate([folds.train, folds.calibration])
            proba[rows] = answer(stage, rows)
        for train, held in pairs:
            proba[held] = answer(fit(train), held)
            shown.update()
    return stage, proba


def _codes_of_frozen(frozen: Any, classes: NDArray[Any]) -> NDArray[np.intp]:
    """Find the class code of each column of a fitted classifier's probabilities."""
    position = {label: i for i, label in enumerate(classes.tolist())}
    labels = np.asarray(frozen.classes_).tolist()
    unknown = [label for label in labels if label not in position]
    if unknown:
        raise ValueError(
            f"final_estimator is frozen and knows the labels {labels[:5]}, of which y "
            f"lacks {unknown[:5]}: y holds {classes.tolist()[:5]}. Give labels as it "
            "was fitted on, or a classifier that may be trained."
        )
    return np.array([position[label] for label in labels], dtype=np.intp)


def output_order(
    classes: NDArray[Any], given: ArrayLike | None, n_outputs: int
) -> NDArray[np.intp]:
    """Order of the backbone's outputs: column of each of the sorted classes."""
    if given is None:
        if len(classes) != n_outputs:
            raise ValueError(
                f"the backbone has {n_outputs} outputs but y has {len(classes)} "
                "classes. Name the labels of all outputs, those that y lacks too: "
                "FrozenBackbone(classes=[...]). If the outputs are other classes, give "
                "a final_estimator, which is trained on them."
            )
        return np.arange(n_outputs)
    labels = np.asarray(given)
    position = {label: i for i, label in enumerate(labels.tolist())}
    missing = [label for label in classes.tolist() if label not in position]
    if missing:
        raise ValueError(
            f"y holds labels that are not among the {len(labels)} of "
            f"FrozenBackbone(classes=...): {missing[:5]}. Name the label of each "
            "output there, or give a final_estimator, which is trained on the outputs."
        )
    return np.array([position[label] for label in classes.tolist()])


def all_classes(found: NDArray[Any], given: ArrayLike | None) -> NDArray[Any]:
    """Return the sorted classes of a cascade: those of y, or all of the backbone's."""
    if given is None:
        return found
    named = np.unique(np.asarray(given))
    return named if np.isin(found, named).all() else found


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
