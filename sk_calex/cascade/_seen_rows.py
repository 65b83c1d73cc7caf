"""Which rows a cascade has seen in its fit, known by their content."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from torch import Tensor

from sk_calex.backbone._image_files import are_paths
from sk_calex.backbone._samples import Samples, is_dataset
from sk_calex.store import row_keys
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._warn import warn_caller

__all__ = ["check_rows_are_new", "digest_rows", "join_digests"]

_FILES = 64  # image files read at once
_ROWS = 1024  # rows decoded at once
_SHOWN = 20  # rows that an error names


def digest_rows(X: Any) -> NDArray[np.uint64] | None:
    """Digest of the content of each sample; None where reading all of X again is dear.

    That is the case for Datasets and sparse matrices, and impossible for objects. Files
    count by their bytes. float64 counts as float32, so that a change of type does not
    hide a row.
    """
    if issparse(X) or is_dataset(X):
        return None
    if are_paths(X):
        files = Samples(X)
        parts = [
            row_keys(np.frombuffer(content, dtype=np.uint8)[None])
            for _, batch in files.batches(_FILES)
            for content in batch.contents
        ]
        return _as_integers(np.concatenate(parts))
    if isinstance(X, DecodedFeatures):  # as the floats that they stand for
        parts = [
            row_keys(np.asarray(X[start : start + _ROWS]))
            for start in range(0, len(X), _ROWS)
        ]
        return _as_integers(np.concatenate(parts))
    if isinstance(X, Tensor):
        X = X.detach().cpu()
        X = X if X.dtype.itemsize > 2 or not X.is_floating_point() else X.float()
        X = X.numpy()
    rows = np.asarray(X)
    if rows.ndim == 0 or rows.dtype.kind not in "biuf":
        return None
    if rows.dtype == np.float64:
        rows = rows.astype(np.float32)
    return _as_integers(row_keys(rows))


def _as_integers(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Take the first half of each key: of a million rows, no two then collide."""
    return np.ascontiguousarray(keys[:, :8]).view(np.uint64).ravel()


def join_digests(
    one: NDArray[np.uint64] | None, two: NDArray[np.uint64] | None
) -> NDArray[np.uint64] | None:
    """Join the digests of two sets of rows; None where one of them is unknown."""
    return None if one is None or two is None else np.concatenate([one, two])


def check_rows_are_new(cascade: Any, X: Any, what: str, reason: str) -> None:
    """Refuse rows that trained or calibrated a cascade; warn where nothing is known.

    Parameters
    ----------
    cascade : cascade
        A fitted one.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Rows as the cascade gets them.
    what, reason : str
        What is to be done with the rows, and why it needs others.
    """
    seen, given = getattr(cascade, "row_digests_", None), digest_rows(X)
    if seen is None or given is None:
        warn_caller(
            f"it is not known whether X holds rows of the cascade's fit, because "
            f"{'that' if seen is None else 'this'} X was not an array, a tensor or "
            f"image files. {what} is void if it does: {reason}",
            UserWarning,
        )
        return
    again = np.flatnonzero(np.isin(given, seen))
    if len(again):
        rows = ", ".join(map(str, again[:_SHOWN]))
        more = "" if len(again) <= _SHOWN else ", ..."
        raise ValueError(
            f"{len(again)} of {len(given)} rows of X trained or calibrated this "
            f"cascade (rows {rows}{more}). {what} would be void: {reason} Give rows "
            "that were held out from its fit, or leave these out."
        )
