"""Settings that say how branches are trained: classifiers, targets, soft shares."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from sk_calex.branches._soft_targets import row_blocks
from sk_calex.cascade._training_data import TrainingData
from sk_calex.utils._validation import is_auto

__all__ = ["alphas_to_try", "check_branch_list", "check_shares", "check_targets"]

# What alpha="auto" tries; of equal ones the first.
_ALPHAS = (0.5, 1.0, 0.0)


def check_branch_list(branch: Any) -> None:
    """Refuse a list that is empty or holds what is no classifier."""
    if not isinstance(branch, list):
        return
    if not branch:
        raise ValueError(
            "branch is an empty list. Give one classifier for each tap, a single one "
            "for all, or None."
        )
    for k, each in enumerate(branch):
        if not (hasattr(each, "fit") and hasattr(each, "predict_proba")):
            raise TypeError(
                f"branch[{k}]={each!r} must be a classifier with fit and predict_proba."
            )


def alphas_to_try(alpha: Any, n_taps: int) -> list[tuple[float | None, ...]]:
    """Return for each tap the shares of the soft targets to train with."""
    if alpha is None:
        return [(None,)] * n_taps
    if is_auto(alpha):
        return [_ALPHAS] * n_taps
    shares = check_shares(alpha, n_taps, accepted=", 'auto' or None")
    return [(share,) for share in shares]


def check_shares(alpha: Any, n_taps: int, accepted: str = "") -> list[float]:
    """Return for each tap the share of the soft targets.

    Parameters
    ----------
    alpha : float or sequence of float
        One for all taps, or one for each.
    n_taps : int
        Number of taps.
    accepted : str, default=""
        What else the parameter may be, for the message.

    Returns
    -------
    shares : list of float
        One for each tap.

    Raises
    ------
    ValueError
        If a share is not in [0, 1], or there are more or fewer than taps.
    """
    one = isinstance(alpha, Real)
    shares = np.asarray([alpha] * n_taps if one else alpha, dtype=np.float64)
    if shares.shape != (n_taps,) or not ((shares >= 0) & (shares <= 1)).all():
        raise ValueError(
            f"alpha={alpha!r} must be a number in [0, 1], one for each of the {n_taps} "
            f"branches{accepted}."
        )
    return [float(share) for share in shares]


def check_targets(targets: str, data: TrainingData) -> None:
    """Refuse answers of the last stage that are all the same class."""
    if targets != "argmax":
        return
    rows = data.folds.train
    answers = [data.final[part].argmax(axis=1) for part in row_blocks(rows)]
    answered = np.unique(np.concatenate(answers))
    if len(answered) < 2:
        raise ValueError(
            "targets='argmax' trains branches on the answers of the last stage, but "
            f"it answers class number {answered[0]} to all {len(rows)} training "
            f"samples (n_features={data.features.shape[1]}). Check the backbone and "
            "its preprocessing, or use targets='soft' or 'labels'."
        )
