"""What a cascade is trained on, and which rows train and which calibrate."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedShuffleSplit, check_cv
from sklearn.utils.validation import _check_method_params

from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._soft_targets import ProbabilityRows

__all__ = ["Folds", "TrainingData", "check_n_folds", "make_folds"]


@dataclass(frozen=True)
class TrainingData:
    """What a cascade is trained on, of all rows.

    Parameters
    ----------
    features : ndarray of shape (n_samples, n_columns)
        Features of the taps and outputs of the backbone. Without a backbone also a
        sparse matrix or a data frame.
    layout : TapLayout
        Which columns are which tap.
    codes : ndarray of intp, shape (n_samples,)
        True class codes.
    weight : ndarray of float64, shape (n_samples,)
        Sample weights; rows of weight 0 are absent.
    final : ProbabilityRows of float64, shape (n_samples, n_classes)
        Probabilities of the last stage: computed from its logits as rows are read, or
        an array where a final estimator was trained; out of fold where `folds` has
        several pairs.
    folds : Folds
        Which rows train and which calibrate.
    seeds : RandomState
        Source of the seeds that are still to be drawn.
    """

    features: Any
    layout: TapLayout
    codes: NDArray[np.intp]
    weight: NDArray[np.float64]
    final: ProbabilityRows
    folds: Folds
    seeds: np.random.RandomState

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.final.shape[1]


@dataclass(frozen=True)
class Folds:
    """Row indices: what trains the final branches, and what calibrates.

    One pair: `train` and `calibration` are disjoint, branches are trained once. Several
    pairs partition the rows: calibration scores are out of fold, and the branches that
    are kept are trained on all rows.
    """

    pairs: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]

    @property
    def train(self) -> NDArray[np.intp]:
        """Rows that train the final branches."""
        if len(self.pairs) == 1:
            return self.pairs[0][0]
        return self.calibration

    @property
    def calibration(self) -> NDArray[np.intp]:
        """Rows that calibrate, in ascending order."""
        return np.sort(np.concatenate([held for _, held in self.pairs]))

    @property
    def out_of_fold(self) -> bool:
        """Whether the rows that calibrate also train, in other folds."""
        return len(self.pairs) > 1


def make_folds(
    cv: Any,
    codes: NDArray[np.intp],
    weight: NDArray[np.float64],
    classes: NDArray[Any],
    seeds: np.random.RandomState,
    split_args: Mapping[str, Any],
) -> Folds:
    """Split the rows by `cv`: a share, a number of folds, or a splitter.

    Rows of weight 0 are absent: neither part may count on them. A share or a number
    does not even count them; a splitter that was given speaks of all rows.
    """
    present = np.flatnonzero(weight > 0)
    counts = cv is None or isinstance(cv, Real)
    rows = present if counts else np.arange(len(codes))
    if isinstance(cv, Real) and not isinstance(cv, Integral):
        seed = seeds.randint(2**31 - 1)
        splitter: Any = _hold_out_share(float(cv), codes[rows], classes, seed)
    else:
        if counts:
            check_n_folds("cv", 5 if cv is None else int(cv), codes[rows], classes)
        splitter = check_cv(cv, codes[rows], classifier=True)
    args = split_args
    if len(rows) < len(codes):
        args = _check_method_params(codes, split_args, indices=rows)
    with warnings.catch_warnings():
        # Where that leaves a class out of a part, the check below says so.
        warnings.filterwarnings("ignore", message="The least populated class in y")
        split = list(splitter.split(np.zeros((len(rows), 1)), codes[rows], **args))
    pairs = tuple(
        (np.intersect1d(rows[train], present), np.intersect1d(rows[held], present))
        for train, held in split
    )
    if len(pairs) > 1:
        tested = np.sort(np.concatenate([held for _, held in pairs]))
        if not np.array_equal(tested, present):
            raise ValueError(
                f"cv={_named(cv)} gives {len(pairs)} splits whose test parts do not "
                "hold every sample exactly once, so they cannot calibrate out of fold. "
                "Use a partition (StratifiedKFold, ...), a single split or a float."
            )
    labelled = np.unique(codes[present])
    for train, held in pairs:
        _check_training_part(codes[train], labelled, classes, cv)
        if len(held) == 0:
            raise ValueError(
                f"cv={_named(cv)} holds out no sample of positive weight to calibrate "
                "on. Hold out some."
            )
    return Folds(pairs)


def check_n_folds(
    name: str, n_folds: int, codes: NDArray[np.intp], classes: NDArray[Any]
) -> None:
    """Refuse more folds than any class has rows."""
    counts = np.bincount(codes, minlength=len(classes))
    if n_folds > counts.max():
        raise ValueError(
            f"{name}={n_folds} makes more folds than any class has rows: the most "
            f"frequent, {classes.tolist()[counts.argmax()]!r}, has {counts.max()}. "
            f"Give a smaller {name}, or more samples."
        )


def _hold_out_share(
    share: float, codes: NDArray[np.intp], classes: NDArray[Any], seed: int
) -> Any:
    """Return a splitter that holds out a share of each class with enough rows.

    Where classes have a row or two, or the share has fewer rows than there are classes,
    one row of each class trains, and the others are held out evenly over the classes.
    """
    counts = np.bincount(codes, minlength=len(classes))
    n_classes, n_held = np.count_nonzero(counts), int(np.ceil(share * len(codes)))
    n_trained = len(codes) - n_held
    if n_trained < n_classes:
        raise ValueError(
            f"cv={share} of {len(codes)} samples leaves {n_trained} that are trained "
            f"on, fewer than the {n_classes} classes. Give a smaller share, or more "
            "samples of each class."
        )
    if counts[counts > 0].min() > 1 and n_held >= n_classes:
        return StratifiedShuffleSplit(1, test_size=share, random_state=seed)
    rng = np.random.RandomState(seed)
    shuffled = rng.permutation(len(codes))
    by_class = shuffled[np.argsort(codes[shuffled], kind="stable")]
    first = np.append(True, np.diff(codes[by_class]) > 0)  # these train
    others = by_class[~first]  # as many as are held out, at least
    start = rng.uniform()
    held = others[((np.arange(n_held) + start) * len(others) / n_held).astype(np.intp)]
    return check_cv([(np.setdiff1d(np.arange(len(codes)), held), np.sort(held))])


def _check_training_part(
    codes: NDArray[np.intp], labelled: NDArray[np.intp], classes: NDArray[Any], cv: Any
) -> None:
    absent = np.setdiff1d(labelled, codes)
    if len(absent):
        raise ValueError(
            f"the training part of cv={_named(cv)} holds no sample of class "
            f"{classes.tolist()[absent[0]]!r}, which then no branch could learn. Give "
            "more samples, a stratified split, or leave the class out."
        )


def _named(cv: Any) -> str:
    # A predefined split prints the fold of every row.
    return type(cv).__name__ if hasattr(cv, "split") else repr(cv)
