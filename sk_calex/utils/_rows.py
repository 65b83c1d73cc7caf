"""Rows of whatever a cascade reads: arrays, features, sparse and framed data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils import _safe_indexing
from torch import Tensor

from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._validation import as_tensor

__all__ = ["as_rows", "gather_rows", "take_rows"]


def take_rows(X: Any, rows: Any) -> Any:
    """Take rows by indices or a slice; they are of the same kind as X."""
    if isinstance(X, np.ndarray | DecodedFeatures):
        return X[rows]
    return _safe_indexing(X, rows)


def as_rows(X: Any) -> Any:
    """View rows of an array as a tensor, and decode features; others stay."""
    if isinstance(X, DecodedFeatures):
        return X.tensor()
    return as_tensor(X) if isinstance(X, np.ndarray) else X


def gather_rows(X: Any, rows: Tensor, device: torch.device, dtype: Any) -> Tensor:
    """Gather rows of a matrix of numbers on a device, for a mini-batch.

    Parameters
    ----------
    X : Tensor, ndarray or DecodedFeatures of shape (n_samples, n_columns)
        The matrix; may be some of the columns of a memory map.
    rows : Tensor of int64, shape (n,)
        Which.
    device : torch.device
        Where to.
    dtype : torch.dtype
        Of the result.

    Returns
    -------
    gathered : Tensor of shape (n, n_columns)
        The rows.
    """
    if isinstance(X, DecodedFeatures):
        return X.tensor(rows, device).to(dtype)
    # index_select on the strided view copies whole rows: no pass over the rest.
    X = X if isinstance(X, Tensor) else as_tensor(X)
    return X.index_select(0, rows).to(device, dtype)
