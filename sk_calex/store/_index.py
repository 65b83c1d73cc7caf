"""Where each key is stored, as sorted arrays."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._keys import as_strings


class _Run(NamedTuple):
    """Entries sorted by key: 24 bytes each."""

    keys: NDArray[np.bytes_]  # (n,) fixed-width strings
    shard: NDArray[np.int32]
    row: NDArray[np.int32]

    def take(self, which: NDArray[np.intp] | NDArray[np.bool_]) -> _Run:
        return _Run(self.keys[which], self.shard[which], self.row[which])


class KeyIndex:
    """Maps keys to (shard number, row number), without a Python loop over keys.

    The entries lie in sorted runs, each more than twice as long as the next, so that
    adding many small shards costs O(n log n) in all and a look-up searches O(log n)
    runs. A key may be there several times: each entry is a copy that can be read.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []

    def add(self, keys: NDArray[np.uint8], shard: int) -> None:
        """Add the (n, 16) keys of a shard, in the order of its rows."""
        strings = as_strings(keys)
        order = np.argsort(strings, kind="stable")
        self._runs.append(
            _Run(
                strings[order],
                np.full(len(order), shard, dtype=np.int32),
                order.astype(np.int32),
            )
        )
        while len(self._runs) > 1 and (
            len(self._runs[-2].keys) <= 2 * len(self._runs[-1].keys)
        ):
            short, long = self._runs.pop(), self._runs.pop()
            both = _Run(
                *(np.concatenate(pair) for pair in zip(long, short, strict=True))
            )
            # Two sorted pieces: the stable sort merges them in linear time.
            self._runs.append(both.take(np.argsort(both.keys, kind="stable")))

    def discard(self, shard: int) -> None:
        """Forget every entry of a shard."""
        kept = (run.take(run.shard != shard) for run in self._runs)
        self._runs = [run for run in kept if len(run.keys)]

    def find(
        self, keys: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the shard (-1: absent) and the row of each of the (n, 16) keys."""
        strings = as_strings(keys)
        shard = np.full(len(strings), -1, dtype=np.int32)
        row = np.zeros(len(strings), dtype=np.int32)
        absent = np.arange(len(strings))
        for run in self._runs:
            if not len(absent):
                break
            wanted = strings[absent]
            at = np.minimum(np.searchsorted(run.keys, wanted), len(run.keys) - 1)
            hit = run.keys[at] == wanted
            shard[absent[hit]] = run.shard[at[hit]]
            row[absent[hit]] = run.row[at[hit]]
            absent = absent[~hit]
        return shard, row

    def n_distinct(self) -> int:
        """Count the distinct keys."""
        if len(self._runs) > 1:
            return len(np.unique(np.concatenate([run.keys for run in self._runs])))
        return sum(1 + int((r.keys[1:] != r.keys[:-1]).sum()) for r in self._runs)
