"""Plain 2-D data of a cascade without a backbone: what its classifiers can take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import get_tags
from sklearn.utils.validation import validate_data

from sk_calex.branches._as_branch import takes_frames
from sk_calex.branches._input_kinds import describe, takes_missing, takes_sparse
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._validation import is_frame

__all__ = ["plain_tags", "read_plain"]

# The first is what other types become: not every integer is a float32.
_DTYPES = [np.float64, np.float32, np.float16]


class _Kind(NamedTuple):
    """A kind of data that not every classifier takes, and what to give instead."""

    what: str
    tag: str
    takes: Callable[[Any], bool]
    data: str
    classifiers: str


_SPARSE = _Kind(
    "X is sparse",
    "sparse",
    takes_sparse,
    "X.toarray()",
    "LogisticRegression() or RandomForestClassifier()",
)
_MISSING = _Kind(
    "X contains NaN",
    "allow_nan",
    takes_missing,
    "data without gaps",
    "HistGradientBoostingClassifier() or make_pipeline(SimpleImputer(), "
    "LogisticRegression())",
)


def plain_tags(readers: dict[str, list[Any]] | None) -> dict[str, bool]:
    """Tags of a cascade that plain 2-D data go into: what all its classifiers take.

    Parameters
    ----------
    readers : dict of lists of classifiers, or None
        By the parameter that holds them. None: the cascade is no cascade of classifiers
        of scikit-learn.

    Returns
    -------
    tags : dict of bool
        "sparse" and "allow_nan", of `input_tags`.
    """
    given = [] if readers is None else [c for part in readers.values() for c in part]
    tags = [get_tags(c).input_tags for c in given if hasattr(c, "__sklearn_tags__")]
    known = bool(given) and len(tags) == len(given)
    return {
        name: known and all(getattr(tag, name) for tag in tags)
        for name in ("sparse", "allow_nan")
    }


def read_plain(
    cascade: Any, X: Any, readers: dict[str, list[Any]] | None, *, reset: bool
) -> Any:
    """Check plain 2-D data as far as its classifiers leave it open.

    Parameters
    ----------
    cascade : cascade
        Gets `n_features_in_` and `feature_names_in_`, or has them.
    X : array-like, sparse matrix or data frame of shape (n_samples, n_features)
        The data.
    readers : dict of lists of classifiers, or None
        Classifiers that read X themselves, by parameter. None: only dense numbers
        without gaps can be read.
    reset : bool
        Whether this is a fit.

    Returns
    -------
    rows : ndarray, CSR matrix or data frame of shape (n_samples, n_features)
        A data frame as it is where only classifiers of scikit-learn read it, which may
        choose and encode columns; otherwise numbers.
    """
    if isinstance(X, DecodedFeatures):  # numbers without gaps
        validate_data(cascade, X, skip_check_array=True, reset=reset)
        return X
    if issparse(X):
        _refuse_where_not_taken(cascade, readers, _SPARSE)
    elif readers is not None and is_frame(X) and _take_frames(readers):
        validate_data(cascade, X, skip_check_array=True, reset=reset)
        if X.shape[0] == 0:
            raise ValueError(
                f"Found array with 0 sample(s) (shape={X.shape}) while a minimum of 1 "
                "is required: X is empty."
            )
        return X
    try:
        rows = validate_data(
            cascade,
            X,
            accept_sparse="csr",
            dtype=_DTYPES,
            ensure_all_finite=False,
            reset=reset,
        )
    except (TypeError, ValueError) as error:
        if not any(text in str(error) for text in ("could not convert", "Cannot cast")):
            raise
        raise ValueError(
            f"X holds text or categories ({error}). Give numbers; or a data frame, and "
            "pipelines with an encoder as branch and as final_estimator."
        ) from error
    values = rows.data if issparse(rows) else rows
    if np.isinf(values).any():
        raise ValueError(
            "X contains infinity. Remove or replace the samples concerned."
        )
    if np.isnan(values).any():
        _refuse_where_not_taken(cascade, readers, _MISSING)
    return rows


def _take_frames(readers: dict[str, list[Any]]) -> bool:
    return all(takes_frames(c) for part in readers.values() for c in part)


def _refuse_where_not_taken(
    cascade: Any, readers: dict[str, list[Any]] | None, kind: _Kind
) -> None:
    """Raise where some classifier does not take such data."""
    if readers is None:
        raise ValueError(
            f"{kind.what}, which {type(cascade).__name__} does not take here. Give "
            f"{kind.data}."
        )
    unable = [
        f"{name}={describe(classifier)}"
        for name, part in readers.items()
        for classifier in part
        if not kind.takes(classifier)
    ]
    if unable:
        raise ValueError(
            f"{kind.what}, which {unable[0]} does not take (its tag {kind.tag} is "
            f"False). Give {kind.data}, or classifiers that take it, as branch and as "
            f"final_estimator: such as {kind.classifiers}."
        )
