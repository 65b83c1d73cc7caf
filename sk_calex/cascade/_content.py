"""Digests of what is given to fit and predict, by content."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
from joblib import Memory
from numpy.typing import NDArray
from torch import Tensor

from sk_calex.backbone._image_files import are_paths
from sk_calex.backbone._samples import Samples

__all__ = ["array_digest", "digest_for", "input_digest", "labels_digest"]

_CHUNK_BYTES = 8 * 2**20
_FILES = 64


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 of dtype, shape and values, block by block; not of objects."""
    rows = np.asarray(array)
    digest = sha256(f"{rows.dtype.str}{rows.shape}".encode())
    if rows.ndim == 0:
        rows = rows[None]
    row_bytes = max(1, rows.nbytes // max(1, len(rows)))
    step = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step])
        digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_for(memory: Any, *arrays: NDArray[Any] | None) -> str:
    """One digest of several arrays, for a key in a cache; empty where it keeps nothing.

    joblib's own hash of an array copies it, and is taken anew for every call.
    """
    if isinstance(memory, Memory) and memory.store_backend is None:
        return ""
    return " ".join("none" if a is None else array_digest(a) for a in arrays)


def input_digest(X: Any) -> str | None:
    """Digest of samples or features; None where it cannot be told cheaply.

    Image files count by their bytes, feature matrices and data frames also by what
    their columns are. Not digested are Datasets, lists and columns of objects.
    """
    kind = type(X).__name__
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        kind = f"{kind} {list(X.columns)}"
        X = X.to_numpy()
    elif isinstance(X, Tensor):
        X = X.detach().cpu()
        if not X.is_floating_point() or X.element_size() > 2:
            X = X.numpy()
        else:  # bfloat16 is not known to numpy
            X = X.float().numpy()
    elif isinstance(X, list | tuple | np.ndarray) and len(X) and are_paths(X):
        samples, digest = Samples(X), sha256()
        for _, files in samples.batches(_FILES):
            for content in files.contents:
                digest.update(sha256(content).digest())
        return f"files {digest.hexdigest()}"
    if not isinstance(X, np.ndarray) or X.dtype.hasobject or X.ndim == 0:
        return None
    kind = f"{kind} {getattr(X, 'layout', None)}"
    return f"{kind} {array_digest(X)}"


def labels_digest(y: Any) -> str | None:
    """Digest of labels, weights or groups; None where they are neither."""
    values = np.asarray(y)
    if values.dtype.kind in "biufUS":
        return array_digest(values)
    if values.dtype.kind == "O" and all(isinstance(v, str) for v in values.flat):
        return array_digest(values.astype(str))
    return None
