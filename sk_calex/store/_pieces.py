"""Which pieces of a file to read for some of its rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 2**20  # what is read at once has at most about this size
# Measured with files in memory: to read once more costs as much as some KiB that are
# not wanted. A disk prefers larger pieces.
_SPARSE_BYTES = 8 * 2**10  # rows further apart, on average, are read one by one
_GAP_BYTES = 16 * 2**10  # of the others, those with a wider gap between them


class Block(NamedTuple):
    """Some of the wanted rows, and the pieces of the file that hold them."""

    rows: slice  # of those wanted
    first: NDArray[np.int64]  # each piece begins with this row...
    length: NDArray[np.int64]  # ...and has so many
    # Where the rows lie in what is read, piece after piece; None if that is the rows.
    inside: NDArray[np.int64] | None


def most_rows(row_bytes: int) -> int:
    """Return how many rows are read at once at most, about."""
    return max(1, _BLOCK_BYTES // row_bytes)


def are_far(first: Any, last: Any, n: Any, row_bytes: int) -> Any:
    """Say whether n rows from the first to the last are better read one by one."""
    return (np.asarray(last, np.int64) - first) * row_bytes >= (n - 1) * _SPARSE_BYTES


def blocks(wanted: NDArray[np.integer[Any]], row_bytes: int) -> Iterator[Block]:
    """Split wanted rows (ascending, repeated or not) into blocks of bounded size."""
    if len(wanted) == 0:
        return
    n_most = most_rows(row_bytes)
    numbers: NDArray[np.int64] = wanted.astype(np.int64)
    n = len(numbers)
    if are_far(numbers[0], numbers[-1], n, row_bytes):
        for start in range(0, n, n_most):
            first = numbers[start : start + n_most]
            rows = slice(start, start + len(first))
            yield Block(rows, first, np.ones_like(first), None)
    else:
        yield from _dense_blocks(numbers, n_most, 1 + _GAP_BYTES // row_bytes)


def _dense_blocks(
    wanted: NDArray[np.int64], n_most: int, longest_step: int
) -> Iterator[Block]:
    steps = np.diff(wanted)
    far = steps > longest_step
    # Where each row lies if the rows in all gaps that are not far are read, too.
    place = np.zeros(len(wanted), dtype=np.int64)
    np.cumsum(np.where(far, 1, steps), out=place[1:])
    start = 0
    while start < len(wanted):
        # Neither more than that is read, nor more returned: a row may be repeated.
        stop = min(start + n_most, int(np.searchsorted(place, place[start] + n_most)))
        begin = start + np.flatnonzero(far[start : stop - 1]) + 1
        first = wanted[np.append(start, begin)]
        length = wanted[np.append(begin, stop) - 1] - first + 1
        inside = place[start:stop] - place[start]
        rows = slice(start, stop)
        # As many are read as are wanted, and none of these is repeated.
        if inside[-1] == stop - start - 1 and steps[start : stop - 1].all():
            yield Block(rows, first, length, None)
        else:
            yield Block(rows, first, length, inside)
        start = stop
