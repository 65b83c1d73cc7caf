"""Trained branches shared by the clones of one cascade, in memory.

A search fits a clone for every candidate and fold. Clones that differ only in what
moves a trained cascade, such as the margin, would train the same branches again. They
carry one `SharedFits`, which `clone` passes on. It lives as long as they do, is
bounded, is never pickled or copied, and changes no result.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._placed import state_of
from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._fit_key import FitRequest, fit_request, input_digest
from sk_calex.utils._fitted_state import drop_fitted_state, fitted_state

__all__ = ["SharedFits", "recall_or_keep", "recall_table", "size_of"]

#: The most fits, and the most memory they take; the least recently used go first.
MAX_FITS = 128
MAX_BYTES = 256 * 2**20
#: Sets of samples for which a fit keeps what its stages said: a search scores on few.
MAX_TABLES = 4


@dataclass
class Fit:
    """One training: the attributes it set, and what its stages said of samples.

    `stamp` changes if the trained objects are replaced or written to.
    """

    state: dict[str, Any]
    stamp: Any
    keeps: tuple[Any, ...] = ()
    points: set[Any] = field(default_factory=set)
    tables: dict[str, StageTable] = field(default_factory=dict)
    nbytes: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.nbytes = size_of(self.state)

    def table(self, digest: str, make: Callable[[], StageTable]) -> StageTable | None:
        """Return what the stages answer to samples; None where too many sets came."""
        with self._lock:
            if digest not in self.tables:
                if len(self.tables) >= MAX_TABLES or self.nbytes > MAX_BYTES:
                    return None
                table = make()
                self.tables[digest] = table
                self.nbytes += size_of(table)
            return self.tables[digest]


class SharedFits:
    """Fits by what was fitted, for the clones of one estimator; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._fits: OrderedDict[Any, Fit] = OrderedDict()
        self._turns: dict[Any, tuple[threading.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._fits)

    @contextmanager
    def turn(self, request: FitRequest) -> Iterator[None]:
        """Let one thread at a time look for a fit and train it, if need be."""
        with self._lock:
            lock, users = self._turns.get(request.key, (threading.Lock(), 0))
            self._turns[request.key] = lock, users + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, users = self._turns.pop(request.key)
                if users > 1:
                    self._turns[request.key] = lock, users - 1

    def find(self, request: FitRequest) -> Fit | None:
        """Return the fit that a request describes, if it may stand for another one."""
        with self._lock:
            fit = self._fits.get(request.key)
            if fit is None:
                return None
            if not request.repeatable and request.point in fit.points:
                return None
            self._fits.move_to_end(request.key)
            fit.points.add(request.point)
            return fit

    def keep(self, request: FitRequest, state: dict[str, Any], stamp: Any) -> None:
        """Remember a fit, in place of an earlier one of the same."""
        fit = Fit(state, stamp, request.keeps, {request.point})
        with self._lock:
            self._fits[request.key] = fit
            self._fits.move_to_end(request.key)
            total = sum(each.nbytes for each in self._fits.values())
            while self._fits and (len(self._fits) > MAX_FITS or total > MAX_BYTES):
                _, dropped = self._fits.popitem(last=False)
                total -= dropped.nbytes

    def __reduce__(self) -> tuple[Any, ...]:
        return SharedFits, ()


@contextmanager
def recall_or_keep(
    cascade: Any, X: Any, y: Any, sample_weight: Any, split_args: Mapping[str, Any]
) -> Iterator[bool]:
    """Give a cascade the attributes of a clone that was trained alike, if there is one.

    The context's value is whether there is one. If not, what is trained inside the
    ``with`` is stored for other clones. Without clones, nothing is stored.
    """
    fits: SharedFits | None = cascade.__dict__.get("_shared_fits")
    request = None
    if fits is not None:
        trained, moved = cascade._split_params()
        request = fit_request(
            cascade, X, y, sample_weight, split_args, trained=trained, moved=moved
        )
    if fits is None or request is None:
        yield False
        return
    with fits.turn(request):
        fit = fits.find(request)
        if fit is not None:
            cascade.__dict__.update(_copy_lists(fit.state))
            if stamp_of(cascade) == fit.stamp:
                cascade._shared_fit = fit
                yield True
                return
            drop_fitted_state(cascade)
        yield False
        fits.keep(request, _copy_lists(fitted_state(cascade)), stamp_of(cascade))


def recall_table(
    cascade: Any, X: Any, make: Callable[[Any, Any], StageTable]
) -> StageTable | None:
    """Return what the stages answered when these samples came before; None: unknown.

    Only a cascade whose fit was recalled remembers: it is part of a search. The first
    time, the answers are made by `make`, given the cascade and X.
    """
    fit = cascade.__dict__.get("_shared_fit")
    if fit is None or stamp_of(cascade) != fit.stamp:
        return None
    digest = input_digest(X)
    if digest is None:
        return None
    return fit.table(digest, lambda: make(cascade, X))


def stamp_of(cascade: Any) -> tuple[Any, ...]:
    """Identify what a fitted cascade answers with, and how often it was written to."""
    parts = [*cascade.branches_, cascade.final_estimator_, cascade.backbone_]
    parts.append(getattr(cascade, "net_", None))
    modules: list[nn.Module] = []
    for part in parts:
        for held in (part, getattr(part, "head_", None), getattr(part, "module", None)):
            if isinstance(held, nn.Module):
                modules += held.modules()
    return tuple(map(id, parts)), tuple(state_of(modules))


def _copy_lists(state: dict[str, Any]) -> dict[str, Any]:
    """Copy the dict and its lists, not the objects in them."""
    return {
        name: list(value) if isinstance(value, list) else value
        for name, value in state.items()
    }


def size_of(value: Any, _seen: set[int] | None = None) -> int:
    """Count the bytes of the arrays and tensors that an object holds."""
    seen = set() if _seen is None else _seen
    if id(value) in seen or isinstance(value, FrozenBackbone | type | str | bytes):
        return 0  # a backbone is the user's, and shared anyway
    seen.add(id(value))
    if isinstance(value, np.ndarray | Tensor):
        return int(value.nbytes)
    if isinstance(value, nn.Module):
        return sum(
            size_of(part, seen) for part in (*value.parameters(), *value.buffers())
        )
    if isinstance(value, dict):
        return sum(size_of(part, seen) for part in value.values())
    if isinstance(value, list | tuple | set):
        return sum(size_of(part, seen) for part in value)
    return size_of(vars(value), seen) if hasattr(value, "__dict__") else 0
