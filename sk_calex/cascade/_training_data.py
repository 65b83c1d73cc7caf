"""Which rows train and which calibrate."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedShuffleSplit, check_cv
from sklearn.utils.validation import _check_method_params

__all__ = ["Folds", "make_folds"]


@dataclass(frozen=True)
class Folds:
    """Row indices: what trains the branches that are kept, and what calibrates.

    One pair: `train` and `calibration` are disjoint, branches are trained once. Several
    pairs partition the rows: calibration scores are out of fold, and the branches that
    are kept are trained on all rows.
    """

    pairs: tuple[tuple[NDArray[np.intp], NDArray[np.intp]], ...]

    @property
    def train(self) -> NDArray[np.intp]:
        """Rows that train the branches that are kept."""
        if len(self.pairs) == 1:
            return self.pairs[0][0]
        return self.calibration

    @property
    def calibration(self) -> NDArray[np.intp]:
        """Rows that calibrate, in ascending order."""
        return np.sort(np.concatenate([held for _, held in self.pairs]))


def make_folds(
    cv: Any,
    codes: NDArray[np.intp],
    weight: NDArray[np.float64],
    classes: NDArray[Any],
    seeds: np.random.RandomState,
    split_args: dict[str, Any],
) -> Folds:
    """Folds of `cv`: a share, a number of folds, or a splitter.

    Rows of weight 0 are absent: neither part may count on them. A share or a number
    does not even count them; a splitter that was given speaks of all rows.
    """
    present = np.flatnonzero(weight > 0)
    counts = cv is None or isinstance(cv, Real)
    rows = present if counts else np.arange(len(codes))
    if isinstance(cv, Real) and not isinstance(cv, Integral):
        seed = seeds.randint(2**31 - 1)
        splitter: Any = StratifiedShuffleSplit(1, test_size=cv, random_state=seed)
    else:
        splitter = check_cv(cv, codes[rows], classifier=True)
    args = split_args
    if len(rows) < len(codes):
        args = _check_method_params(codes, split_args, indices=rows)
    split = splitter.split(np.zeros((len(rows), 1)), codes[rows], **args)
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
    for train, held in pairs:
        _check_part(codes[train], classes, cv, "training")
        if len(pairs) == 1:
            _check_part(codes[held], classes, cv, "calibration")
    return Folds(pairs)


def _check_part(
    codes: NDArray[np.intp], classes: NDArray[Any], cv: Any, part: str
) -> None:
    absent = np.setdiff1d(np.arange(len(classes)), codes)
    if len(absent):
        raise ValueError(
            f"the {part} part of cv={_named(cv)} holds no sample of class "
            f"{classes.tolist()[absent[0]]!r}: each class needs some in both parts. "
            "Give more samples, a stratified split, or leave the class out."
        )


def _named(cv: Any) -> str:
    # A predefined split prints the fold of every row.
    return type(cv).__name__ if hasattr(cv, "split") else repr(cv)
