"""Keys of rows: digests of the content of samples."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
from numpy.typing import ArrayLike, NDArray

KEY_BYTES = 16

_CHUNK_BYTES = 8 * 2**20


def row_keys(X: ArrayLike) -> NDArray[np.uint8]:
    """Digest each sample of an array.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Booleans, integers or floats of at most 64 bits, in any memory layout and byte
        order: only the values, the dtype and the shape of a sample count. Convert
        tensors of other libraries to arrays first.

    Returns
    -------
    keys : ndarray of shape (n_samples, 16), dtype uint8
        The first 128 bits of the SHA-256 digest of: the SHA-256 digest of the dtype
        and the shape of one sample, then the sample's bytes in C order, little-endian.
        Equal samples have equal keys; values that compare equal but are stored
        differently (0.0 and -0.0, 1 and 1.0) do not.

    Raises
    ------
    ValueError
        If X has no sample axis or a dtype that cannot be digested.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.store import row_keys
    >>> X = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    >>> row_keys(X).shape
    (2, 16)
    >>> bool((row_keys(X) == row_keys(np.asfortranarray(X))).all())
    True
    """
    X = np.asarray(X)
    if X.ndim == 0:
        raise ValueError(
            "X must have a first axis of samples, got a single value; "
            "pass an array of shape (n_samples, ...)."
        )
    if X.dtype.kind not in "biuf" or X.dtype.itemsize > 8:
        raise ValueError(
            f"X must hold booleans, integers or floats of at most 64 bits, got dtype "
            f"{X.dtype}; convert it, for example with X.astype('float32')."
        )
    dtype = X.dtype.newbyteorder("<")
    # A digest has a fixed length, so no dtype and shape can run over into a sample.
    prefix = sha256(sha256(f"{dtype.str}{X.shape[1:]}".encode()).digest())

    n_samples = X.shape[0]
    sample_bytes = dtype.itemsize * int(np.prod(X.shape[1:], dtype=np.int64))
    digests = bytearray()
    chunk = max(1, _CHUNK_BYTES // max(1, sample_bytes))
    for start in range(0, n_samples, chunk):
        part = np.ascontiguousarray(X[start : start + chunk], dtype=dtype)
        content = part.reshape(-1).view(np.uint8).data
        for i in range(len(part)):
            digest = prefix.copy()
            digest.update(content[i * sample_bytes : (i + 1) * sample_bytes])
            digests += digest.digest()[:KEY_BYTES]
    return np.frombuffer(digests, dtype=np.uint8).reshape(n_samples, KEY_BYTES)


def check_keys(keys: ArrayLike) -> NDArray[np.uint8]:
    """Return keys as a C-contiguous (n, 16) uint8 array, or raise ValueError."""
    keys = np.asarray(keys)
    if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise ValueError(
            f"keys must be an array of shape (n, {KEY_BYTES}) and dtype uint8, got "
            f"shape {keys.shape} and dtype {keys.dtype}; make it with row_keys."
        )
    return np.ascontiguousarray(keys)


def as_strings(keys: NDArray[np.uint8]) -> NDArray[np.bytes_]:
    """View (n, 16) keys as n fixed-width strings, which NumPy can sort and search.

    NumPy ignores trailing zero bytes in such strings, which changes no comparison of
    strings of the same width.
    """
    return keys.view(f"S{KEY_BYTES}").reshape(len(keys))
