"""From what `fit` is given to training data: checks, split, features, last stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse
from sklearn.base import is_classifier
from sklearn.utils import check_random_state
from sklearn.utils.validation import _num_samples, check_consistent_length

from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._soft_targets import ProbabilityRows
from sk_calex.cascade._costs import Prices
from sk_calex.cascade._inputs import training_features
from sk_calex.cascade._last_stage import (
    all_classes,
    final_estimator_for,
    fit_final_estimator,
    output_order,
    read_backbone,
)
from sk_calex.cascade._training_data import TrainingData, make_folds
from sk_calex.utils._progress import showing
from sk_calex.utils._validation import check_labels, check_sample_weight

__all__ = ["read_training_data"]


def read_training_data(
    cascade: Any,
    X: Any,
    y: ArrayLike,
    sample_weight: ArrayLike | None,
    split_args: Mapping[str, Any],
) -> TrainingData:
    """Check and split what a fit is given, and compute features and last stage.

    Sets on the cascade all that does not need branches: `classes_`, `layout_` and the
    last stage.

    What can be checked without the samples is checked before the backbone runs,
    which may take hours.
    """
    labels = check_labels(y)
    if len(labels) == 0:
        raise ValueError(
            "Found array with 0 sample(s) while a minimum of 1 is required: X and "
            "y are empty."
        )
    _check_lengths(X, labels)
    weight = check_sample_weight(sample_weight, labels)
    found = np.unique(labels)
    if len(np.unique(labels[weight > 0])) < 2:
        raise ValueError(
            f"{type(cascade).__name__} needs at least 2 classes, y holds one class: "
            f"{labels[weight > 0].tolist()[0]!r}."
        )
    if cascade.final_estimator is not None and not is_classifier(
        cascade.final_estimator
    ):
        raise TypeError(
            f"final_estimator must be a classifier, got {cascade.final_estimator!r}."
        )
    named = getattr(cascade.backbone, "classes", None)
    classes = found
    if cascade.final_estimator is None:
        classes = all_classes(found, named)
    codes = np.searchsorted(classes, labels)
    seeds = check_random_state(cascade.random_state)
    folds = make_folds(cascade.cv, codes, weight, classes, seeds, split_args)

    cascade._check_split(folds, codes, classes)

    def check_layout(layout: TapLayout) -> None:
        cascade._check_taps(layout)
        if final_estimator_for(cascade.final_estimator, layout.shared) is None:
            output_order(classes, named, layout.n_outputs)
        if cascade.costs is not None:
            Prices.read(cascade.costs, layout.n_taps)

    with showing(cascade.verbose, "features"):
        features, layout = training_features(cascade, X, check_layout)
    check_consistent_length(features, labels)
    cascade.classes_, cascade.layout_ = classes, layout
    outputs = layout.block(features, layout.n_taps)
    template = final_estimator_for(cascade.final_estimator, layout.shared)
    if template is None:
        order = output_order(classes, named, outputs.shape[1])
        stage, rows = read_backbone(outputs, order, codes, folds, named is None)
        final: ProbabilityRows = rows
    else:
        stage, final = fit_final_estimator(
            template, outputs, codes, weight, folds, classes, cascade.verbose
        )
    cascade._last_stage_, cascade.final_estimator_ = stage, stage.estimator
    return TrainingData(features, layout, codes, weight, final, folds, seeds)


def _check_lengths(X: Any, labels: NDArray[Any]) -> None:
    """Refuse samples and labels of different numbers, where samples can be counted."""
    if isinstance(X, Mapping) and not issparse(X):  # one kind of sparse is a dict
        parts = list(X.values())
    else:
        parts = [X] if hasattr(X, "__len__") or hasattr(X, "shape") else []
    lengths = [_num_samples(part) for part in parts]
    if set(lengths) - {len(labels)}:
        raise ValueError(
            "X and y have inconsistent numbers of samples: "
            f"{', '.join(map(str, [*lengths, len(labels)]))}. Give one label for each "
            "sample."
        )
