"""Which kinds of 2-D data a classifier takes: missing values, sparse, data frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.utils import get_tags

from sk_calex.utils._validation import is_frame

__all__ = ["describe", "name_refusal", "takes_missing", "takes_sparse"]


def takes_missing(estimator: Any) -> bool:
    """Tell whether a classifier may take NaN, by its tag `allow_nan`.

    Pipelines, searches and the like may, whatever their tag says: it depends on what
    they hold, and they refuse what they cannot take.
    """
    return _may(estimator, "allow_nan")


def takes_sparse(estimator: Any) -> bool:
    """Tell whether a classifier may take sparse matrices, by its tag `sparse`."""
    return _may(estimator, "sparse")


def _may(estimator: Any, tag: str) -> bool:
    if not hasattr(estimator, "__sklearn_tags__"):
        return True  # of another library, and without tags: it will say so itself
    parts = estimator.get_params(deep=True).values()
    holds_others = any(hasattr(part, "fit") for part in parts)
    return holds_others or bool(getattr(get_tags(estimator).input_tags, tag))


def describe(estimator: Any) -> str:
    """Write an estimator in one line, for messages."""
    return " ".join(repr(estimator).split())


@contextmanager
def name_refusal(role: str, estimator: Any, rows: Any) -> Iterator[None]:
    """Say which classifier it is that cannot take X as it is, and what helps.

    Of dense numbers without gaps nothing is said: what a classifier refuses there is
    its own matter.
    """
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = _kind_of(rows)
        if kind is None:
            raise
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"{role}={describe(estimator)} does not take X, {kind}: {reason}. Give, as "
            "branch and as final_estimator, a pipeline that encodes and imputes first, "
            "such as make_pipeline(ColumnTransformer(...), LogisticRegression()), or a "
            "classifier that takes it."
        ) from error


def _kind_of(rows: Any) -> str | None:
    """Describe what is special about rows; None: nothing."""
    if issparse(rows):
        return "a sparse matrix"
    if is_frame(rows):
        columns = zip(rows.columns, rows.dtypes, strict=True)
        kinds = ", ".join(f"{name!r}: {dtype}" for name, dtype in list(columns)[:8])
        return f"a data frame with the columns {{{kinds}}}"
    if isinstance(rows, np.ndarray) and rows.dtype.kind == "f" and np.isnan(rows).any():
        return "which has missing values"
    return None
