"""Features that a store has of the same network with fewer taps."""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sk_calex.backbone._runner import KnownStages, Runner
from sk_calex.store import FeatureStore, Section

__all__ = ["StoredTaps"]

_MOST_TAPS = 8  # all choices of more are too many to look for


class _Part(NamedTuple):
    """Rows of a backbone with some of the taps."""

    section: Section
    taps: tuple[int, ...]


class StoredTaps:
    """Computes features, except what is stored of the same network with fewer taps.

    A tap that is added to a list costs the stages up to it, and none after: the other
    taps and the outputs are read. They were computed by stages that were cut
    elsewhere, so they are those of one run up to rounding.

    Parameters
    ----------
    store : FeatureStore
        Where to look.
    runner : Runner
        Of all taps that are wanted.
    """

    def __init__(self, store: FeatureStore, runner: Runner) -> None:
        self._store, self._runner = store, runner

    @cached_property
    def _parts(self) -> list[_Part]:
        """Those that are there, that which spares most stages first."""
        n_taps = self._runner.layout.n_taps
        # What is read cannot be evicted: a store with a limit needs that space.
        if not 1 < n_taps <= _MOST_TAPS or self._store.max_bytes is not None:
            return []
        parts = []
        for taps, fingerprint in self._runner.fingerprints_of_fewer_taps().items():
            if (self._store.folder / fingerprint).is_dir():
                width, dtype = self._runner.row_of_taps(taps)
                section = self._store.section(fingerprint, width, dtype)
                parts.append(_Part(section, taps))
        every = set(range(n_taps))
        return sorted(parts, key=lambda part: max(every - set(part.taps)))

    def stages(self) -> object:
        """Cut the module, where that is to be done."""
        return self._runner.stages()

    def features(self, keys: NDArray[np.uint8], raw: Any) -> NDArray[Any]:
        """Compute the features of raw samples, or read some of their columns.

        Parameters
        ----------
        keys : ndarray of uint8, shape (n_samples, 16)
            Keys of the samples.
        raw : Tensor, NamedBatch or EncodedImages
            The samples.

        Returns
        -------
        features : ndarray of shape (n_samples, width)
            As of `Runner.features`.
        """
        for section, taps in self._parts:
            if not section.has_all(keys):
                continue
            rows = np.empty((len(keys), section.width), section.dtype)
            if section.read(keys, rows).all():  # else a shard is damaged
                return self._runner.features(raw, KnownStages(taps, rows))
        return self._runner.features(raw)
