"""The index from keys to rows: sorted runs, the long ones in temporary files."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

# A run is an array of three rows, sorted by its first two: the first and the second
# half of each key, as numbers, and its place, `shard << 32 | row`. 24 bytes an entry.
_Run = NDArray[np.uint64]

_MEMORY_ENTRIES = 2**14  # longer runs are kept in temporary files
_PIECE_ENTRIES = 2**13  # entries in memory while a run is copied
_FIND_KEYS = 2**16  # keys looked up at a time

_ROW_BITS = np.uint64(32)
_ROW_MASK = np.uint64(2**32 - 1)


class KeyIndex:
    """Maps keys to (shard number, row number) without a Python loop over keys.

    The entries lie in sorted runs, each more than twice as long as the next. So adding
    many small shards costs O(n log n) in all, and a look-up searches O(log n) runs. A
    key may occur several times, once for each copy of its row; the copy that was added
    first is found.

    Long runs are memory maps of nameless files in the system's temporary folder, as
    long as it has room, and are merged piece by piece. If that folder is on a disk,
    the index needs a few MiB of unreclaimable memory, whatever the number of entries.
    (More if very many keys share their first half, which digests do not.)
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []  # from old to young

    def add(self, keys: NDArray[np.uint8], shard: int) -> None:
        """Add the (n, 16) keys of a shard, in the order of its rows."""
        high, low = _halves(keys)
        order = _order(high, low)
        place = (np.uint64(shard) << _ROW_BITS) | order.astype(np.uint64)
        run = np.stack([high[order], low[order], place])
        self._runs.append(run)
        if _size(run) > _MEMORY_ENTRIES:
            self._runs[-1] = _make_run(_size(run), partial(_pieces, run))
        while len(self._runs) > 1 and _size(self._runs[-2]) <= 2 * _size(
            self._runs[-1]
        ):
            self._merge_youngest()

    def discard(self, *shards: int) -> None:
        """Remove all entries of some shards."""
        gone = np.array(shards, dtype=np.uint64)
        kept = []
        for run in self._runs:
            sizes = [_size(piece) for piece in _filter_pieces(run, gone)]
            if sum(sizes) == _size(run):
                kept.append(run)
            elif sum(sizes):
                kept.append(_make_run(sum(sizes), partial(_filter_pieces, run, gone)))
        self._runs = kept

    def find(
        self, keys: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the shard (-1: absent) and the row of each of the (n, 16) keys."""
        shard = np.full(len(keys), -1, dtype=np.int32)
        row = np.zeros(len(keys), dtype=np.int32)
        for start in range(0, len(keys), _FIND_KEYS):
            part = slice(start, start + _FIND_KEYS)
            for which, place in self._places(keys[part]):
                shard[part][which] = place >> _ROW_BITS
                row[part][which] = place & _ROW_MASK
        return shard, row

    def _places(
        self, keys: NDArray[np.uint8]
    ) -> Iterator[tuple[NDArray[np.intp], _Run]]:
        """Yield, for each run, the numbers of the keys found in it and their places."""
        high, low = _halves(keys)
        # Ascending order keeps neighbouring searches in the same memory pages.
        order = np.argsort(high)
        high, low = high[order], low[order]
        for run in self._runs:
            at, hit = _search(run, high, low)
            yield order[hit], run[2, at[hit]]
            absent = ~hit
            order, high, low = order[absent], high[absent], low[absent]
            if not len(order):
                break

    def n_distinct(self) -> int:
        """Count the distinct keys."""
        while len(self._runs) > 1:
            self._merge_youngest()
        return sum(map(_n_distinct, self._runs))

    def _merge_youngest(self) -> None:
        older, younger = self._runs[-2:]
        size = _size(older) + _size(younger)
        # One assignment: after an interruption, both runs are still there.
        self._runs[-2:] = [_make_run(size, partial(_merge_pieces, older, younger))]


def _size(run: _Run) -> int:
    return run.shape[1]


def _halves(keys: NDArray[np.uint8]) -> tuple[_Run, _Run]:
    """Return each of the (n, 16) keys as two numbers that sort as the keys do."""
    halves = keys.view(">u8").astype(np.uint64)
    return halves[:, 0], halves[:, 1]


def _order(high: _Run, low: _Run) -> NDArray[np.intp]:
    """Return the stable order that sorts keys given as two halves."""
    order = np.argsort(high, kind="stable")  # linear time for two sorted pieces
    in_order = high[order]
    if (in_order[1:] == in_order[:-1]).any():
        return np.lexsort((low, high))
    return order


def _search(run: _Run, high: _Run, low: _Run) -> tuple[NDArray[np.intp], _Run]:
    """Return the first position of each key in a run, and whether it is there."""
    last = _size(run) - 1
    at = np.searchsorted(run[0], high)
    np.minimum(at, last, out=at)
    hit = run[0, at] == high
    same = run[1, at] == low
    (others,) = np.nonzero(hit & ~same)
    if len(others):  # equal first halves: bisect the second ones
        low = low[others]
        left, right = at[others], np.searchsorted(run[0], high[others], side="right")
        end = right.copy()
        while (left < right).any():
            middle = (left + right) // 2
            less = (run[1, np.minimum(middle, last)] < low) & (left < right)
            left, right = (
                np.where(less, middle + 1, left),
                np.where(less, right, middle),
            )
        at[others] = np.minimum(left, last)
        same[others] = (left < end) & (run[1, at[others]] == low)
    return at, hit & same


def _pieces(run: _Run, start: int = 0) -> Iterator[_Run]:
    for at in range(start, _size(run), _PIECE_ENTRIES):
        yield run[:, at : at + _PIECE_ENTRIES]


def _filter_pieces(run: _Run, shards: _Run) -> Iterator[_Run]:
    for piece in _pieces(run):
        yield piece[:, ~np.isin(piece[2] >> _ROW_BITS, shards)]


def _merge_pieces(older: _Run, younger: _Run) -> Iterator[_Run]:
    """Yield the sorted entries of both runs in pieces; equal keys: the older first.

    A piece ends only where the first half of the key changes in both runs, so that
    equal keys are sorted within one piece.
    """
    i = j = 0
    while i < _size(older) and j < _size(younger):
        bound = min(_bound(older, i), _bound(younger, j))
        end_i = i + int(np.searchsorted(older[0, i:], bound, side="right"))
        end_j = j + int(np.searchsorted(younger[0, j:], bound, side="right"))
        both = np.concatenate([older[:, i:end_i], younger[:, j:end_j]], axis=1)
        yield both[:, _order(both[0], both[1])]
        i, j = end_i, end_j
    yield from _pieces(older, i)
    yield from _pieces(younger, j)


def _bound(run: _Run, start: int) -> np.uint64:
    value: np.uint64 = run[0, min(start + _PIECE_ENTRIES, _size(run)) - 1]
    return value


def _n_distinct(run: _Run) -> int:
    n, before = 0, None
    for piece in _pieces(run):
        keys = piece[:2]
        n += int((keys[:, 1:] != keys[:, :-1]).any(axis=0).sum())
        n += before is None or bool((keys[:, 0] != before).any())
        before = keys[:, -1]
    return n


def _make_run(size: int, pieces: Callable[[], Iterable[_Run]]) -> _Run:
    """Make one run of its pieces, in a file if it is long and there is room."""
    if size > _MEMORY_ENTRIES:
        # On a full disk or without a temporary folder, use memory.
        with contextlib.suppress(OSError):
            return _in_file(size, pieces())
    return np.concatenate(list(pieces()), axis=1)


def _in_file(size: int, pieces: Iterable[_Run]) -> _Run:
    """Write a run to a file that is removed with the array.

    On a full disk a plain write raises an error, whereas writing through a memory map
    would end the process.
    """
    with tempfile.TemporaryFile() as file:
        start = 0
        for piece in pieces:
            for i, values in enumerate(piece):
                file.seek(8 * (i * size + start))
                file.write(np.ascontiguousarray(values).data)
            start += _size(piece)
        file.flush()
        mapped = np.memmap(file, np.uint64, mode="r", shape=(3, size))
    return mapped.view(np.ndarray)  # slicing an ndarray is faster than a memmap
