"""The key of a fit: its data by content, and the parameters that reach the training."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from joblib import Memory
from joblib import hash as content_hash
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from torch import Tensor, nn

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._image_files import are_paths
from sk_calex.backbone._placed import state_of
from sk_calex.backbone._samples import Samples
from sk_calex.branches._soft_targets import SoftTargets
from sk_calex.cascade._last_stage import LogitRows
from sk_calex.store import StoredRows
from sk_calex.utils._decoded import DecodedFeatures

__all__ = ["FitRequest", "array_digest", "digest_for", "fit_request", "input_digest"]

_CHUNK_BYTES = 8 * 2**20
_FILES = 64

#: Parameters that change how fast something is computed, not what.
HOUSEKEEPING = frozenset({"n_jobs", "verbose", "memory"})

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, type(None))
_NAMED = (torch.device, torch.dtype, np.dtype, range, slice)
_BY_IDENTITY = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    nn.Module,
)


class _CannotTellError(Exception):
    """A value whose content cannot be hashed, or that changes with use."""


@dataclass(frozen=True)
class FitRequest:
    """What is to be fitted, and whether another fit may stand for it.

    `key` tells apart all that reaches the training, `point` what only moves the trained
    cascade. Where `repeatable` is False the fit draws from numpy's global generator:
    then different points share a draw, but a point that comes again gets another one.
    `keeps` are objects that the key knows by their identity.
    """

    key: Any
    point: Any
    repeatable: bool
    keeps: tuple[Any, ...] = ()


def fit_request(
    cascade: Any,
    X: Any,
    y: Any,
    sample_weight: Any,
    split_args: Mapping[str, Any],
    *,
    trained: Mapping[str, Any],
    moved: Mapping[str, Any],
) -> FitRequest | None:
    """Describe a fit of an unfitted cascade; None where it cannot be shared.

    `trained` are the parameters that reach the training, `moved` those that only move
    the trained cascade. Random generators given as such are used up by each fit, so
    those fits are never shared.
    """
    content = [input_digest(X), labels_digest(y)]
    if sample_weight is not None:
        content.append(labels_digest(sample_weight))
    for name, value in sorted(split_args.items()):
        digest = labels_digest(value)
        content.append(None if digest is None else f"{name} {digest}")
    if None in content:
        return None
    reaching, moving = _Description(), _Description()
    try:
        key = [
            (name, reaching.of(value, seeded=name == "branch"))
            for name, value in sorted(trained.items())
            if name not in HOUSEKEEPING and name != "random_state"
        ]
        seed = reaching.seed(cascade.random_state)
        point = [(name, moving.of(value)) for name, value in sorted(moved.items())]
    except _CannotTellError:
        return None
    return FitRequest(
        (type(cascade), tuple(content), sample_weight is None, seed, tuple(key)),
        tuple(point),
        not reaching.draws,
        tuple(reaching.keeps),
    )


class _Description:
    """Turns parameters into tuples that are equal where their content is.

    `draws` says whether something met on the way draws from numpy's global generator;
    `keeps` are objects met that are known by their identity.
    """

    def __init__(self) -> None:
        self.draws = False
        self.keeps: list[Any] = []

    def seed(self, random_state: Any) -> Any:
        """Describe a random state: a number, or none."""
        if random_state is None:
            self.draws = True
        elif not isinstance(random_state, int | np.integer):
            raise _CannotTellError
        return random_state

    def of(self, value: Any, *, seeded: bool = False, depth: int = 0) -> Any:
        """Describe a value; a `seeded` estimator gets its seed from the cascade."""
        if depth > 12:
            raise _CannotTellError  # a cycle, or nearly
        inner = functools.partial(self.of, depth=depth + 1)
        if isinstance(value, _PLAIN):
            # By repr, for NaN is not equal to itself, but 1 is to True.
            return type(value), repr(value)
        if isinstance(value, _NAMED):
            return str(value)
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            return "array", array_digest(value)
        if isinstance(value, Tensor):
            return (
                "tensor",
                str(value.dtype),
                inner(value.detach().cpu().double().numpy()),
            )
        if isinstance(value, list | tuple):
            parts = (self.of(v, seeded=seeded, depth=depth + 1) for v in value)
            return type(value), tuple(parts)
        if isinstance(value, dict):
            return "dict", tuple((inner(k), inner(v)) for k, v in value.items())
        if isinstance(value, FrozenBackbone):
            return self._backbone(value, depth)
        inside = value.estimator if isinstance(value, FrozenEstimator) else None
        if isinstance(inside, FrozenBackbone):
            return "frozen", self._backbone(inside, depth)
        if isinstance(value, _BY_IDENTITY):
            self.keeps.append(value)
            modules = list(value.modules()) if isinstance(value, nn.Module) else []
            return "object", id(value), tuple(state_of(modules))
        if isinstance(value, functools.partial):
            return "partial", inner([value.func, value.args, value.keywords])
        if isinstance(value, BaseEstimator):
            if type(value).__sklearn_clone__ is not BaseEstimator.__sklearn_clone__:
                raise _CannotTellError  # a frozen one is more than its parameters
            return self._parts(value, value.get_params(deep=False), seeded, depth)
        # Splitters and the like; of other classes it is not known what they hold.
        if type(value).__module__.startswith(("sklearn.", "sk_calex.")):
            own = {k: v for k, v in vars(value).items() if k != "_metadata_request"}
            shuffles = getattr(value, "shuffle", True) is not False
            return self._parts(value, own, not shuffles, depth)
        raise _CannotTellError

    def _parts(
        self, value: Any, parts: Mapping[str, Any], seeded: bool, depth: int
    ) -> Any:
        described = []
        for name, part in parts.items():
            if name == "random_state" and not (seeded and part is None):
                described.append((name, self.seed(part)))
            elif name not in HOUSEKEEPING:
                described.append((name, self.of(part, seeded=seeded, depth=depth + 1)))
        return type(value), tuple(described)

    def _backbone(self, backbone: FrozenBackbone, depth: int) -> Any:
        params = backbone.get_params(deep=False)
        module, cache = params.pop("module"), params.pop("cache")
        self.keeps += [module, cache]
        written = state_of(list(module.modules()))
        layout = getattr(backbone, "layout_", None)  # fitted, where X holds features
        return (
            self._parts(backbone, params, False, depth),
            id(module),
            tuple(written),
            cache if isinstance(cache, str) else id(cache),
            layout,
        )


def array_digest(array: NDArray[Any]) -> str:
    """Hash dtype, shape and values of an array, block by block; not of objects."""
    rows = np.asarray(array)
    if rows.ndim == 0:
        return _digest_rows(rows[None], rows.dtype, ())
    return _digest_rows(rows, rows.dtype, rows.shape)


def _digest_rows(rows: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    digest = sha256(f"{dtype.str}{shape}".encode())
    row_bytes = max(1, dtype.itemsize * math.prod(shape[1:]))
    step = max(1, _CHUNK_BYTES // row_bytes)
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step])
        digest.update(part.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_for(memory: Any, *arrays: Any) -> str:
    """Hash several arrays for a key in a cache; empty where it keeps nothing.

    joblib's own hash of an array copies it, and is taken anew for every call; it does
    for sparse matrices and data frames.
    """
    if isinstance(memory, Memory) and memory.store_backend is None:
        return ""

    def digest(part: Any) -> str:
        if part is None:
            return "none"
        if isinstance(part, np.ndarray):
            return array_digest(part)
        if isinstance(part, DecodedFeatures):
            return _features_digest(part)
        if isinstance(part, LogitRows | SoftTargets):  # as the array of all rows
            return _digest_rows(part, np.dtype(np.float64), part.shape)
        return input_digest(part) or content_hash(part)

    return " ".join(map(digest, arrays))


def input_digest(X: Any) -> str | None:
    """Digest of samples or features; None where that would take long.

    Image files count by their bytes, feature matrices and data frames also by what
    their columns are. Not digested are Datasets, lists and columns of objects.
    """
    kind = type(X).__name__
    if issparse(X):
        rows = X.tocsr()
        parts = (array_digest(p) for p in (rows.data, rows.indices, rows.indptr))
        return f"{kind} {rows.shape} {' '.join(parts)}"
    if hasattr(X, "columns") and hasattr(X, "to_numpy"):
        # With the types: categories may be the same numbers as integers are.
        kind = f"{kind} {list(X.columns)} {[str(dtype) for dtype in X.dtypes]}"
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
    elif isinstance(X, DecodedFeatures):
        return f"{X.layout} {_features_digest(X)}"
    if not isinstance(X, np.ndarray) or X.dtype.hasobject or X.ndim == 0:
        return None
    kind = f"{kind} {getattr(X, 'layout', None)}"
    return f"{kind} {array_digest(X)}"


def _features_digest(X: DecodedFeatures) -> str:
    """Hash the rows as they are held; stored rows are known by their keys."""
    kind = f"{type(X).__name__} {X.stages}"
    if isinstance(X.rows, StoredRows):
        return f"{kind} {X.rows.section.fingerprint} {array_digest(X.rows.keys)}"
    return f"{kind} {array_digest(X.rows)}"


def labels_digest(y: Any) -> str | None:
    """Digest of labels, weights or groups; None where they are neither."""
    values = np.asarray(y)
    if values.dtype.kind in "biufUS":
        return array_digest(values)
    if values.dtype.kind == "O" and all(isinstance(v, str) for v in values.flat):
        return array_digest(values.astype(str))
    return None
