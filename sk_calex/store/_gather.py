"""Copies of rows from the shards that hold them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._files import DamagedFile
from ._shard_file import Layout, ShardReader, are_far, most_rows, read_each
from ._shards import UsableShards, most_at_once

_TOGETHER = 32  # most shards that are read in one call, all open at the same time


class _Part(NamedTuple):
    """Wanted rows of one shard."""

    number: int
    start: int
    stop: int


def copy_rows(
    shards: UsableShards,
    layout: Layout,
    shard: NDArray[np.int32],
    row: NDArray[np.int32],
    out: NDArray[Any],
    to: NDArray[np.intp],
    columns: slice | None = None,
) -> NDArray[np.bool_]:
    """Copy rows to ``out[to]``.

    Parameters
    ----------
    shards : UsableShards
        Shards to read; those that cannot be read are taken out of it.
    layout : Layout
        Layout of the shards.
    shard, row : ndarray of shape (n,), dtype int32
        Places of the rows, in ascending order by shard and then by row.
    out : ndarray of shape (n_out, n_columns)
        Array that receives the rows.
    to : ndarray of shape (n,), dtype intp
        Row of `out` for each of them.
    columns : slice, default=None
        Neighbouring columns to read; None: all.

    Returns
    -------
    copied : ndarray of shape (n,), dtype bool
        Whether each row was copied.
    """
    copied = np.zeros(len(shard), dtype=bool)
    for parts in _runs(shard, row, layout.row_bytes, layout.part(columns).size):
        rows = slice(parts[0].start, parts[-1].stop)
        if _copy_together(shards, layout, parts, row[rows], out, to[rows], columns):
            copied[rows] = True
            continue
        for part in parts:
            rows = slice(part.start, part.stop)
            copied[rows] = _copy_alone(shards, part, row[rows], out, to[rows], columns)
    return copied


def _copy_together(
    shards: UsableShards,
    layout: Layout,
    parts: list[_Part],
    row: NDArray[np.int32],
    out: NDArray[Any],
    to: NDArray[np.intp],
    columns: slice | None,
) -> bool:
    """Copy the rows of several shards in one call; return whether all were sound."""
    if len(parts) == 1:
        return False
    readers: list[ShardReader] = []
    try:
        for part in parts:
            reader = shards.reader(part.number)
            if reader is None:
                return False
            readers.append(reader)
        counts = [part.stop - part.start for part in parts]
        values = read_each(readers, counts, row, layout, columns)
    except (DamagedFile, OSError):
        return False  # the caller then reads each shard alone to find which
    if not all(
        shards.is_unchanged(part.number, reader)
        for part, reader in zip(parts, readers, strict=True)
    ):
        return False
    out[to] = values
    return True


def _copy_alone(
    shards: UsableShards,
    part: _Part,
    row: NDArray[np.int32],
    out: NDArray[Any],
    to: NDArray[np.intp],
    columns: slice | None,
) -> bool:
    """Copy the rows of one shard; return whether it was sound."""
    reader = shards.reader(part.number)
    if reader is None:
        return False
    try:
        for block, values in reader.rows(row, columns):
            out[to[block]] = values
    except (DamagedFile, OSError) as error:
        if shards.is_unchanged(part.number, reader):
            shards.give_up(part.number, error, reader.signature)
        return False
    return shards.is_unchanged(part.number, reader)


def _runs(
    shard: NDArray[np.int32], row: NDArray[np.int32], row_bytes: int, part_bytes: int
) -> Iterator[list[_Part]]:
    """Yield what to read in one call: a few rows of several shards, or one shard.

    Reading a few rows from each of many shards together saves NumPy's overhead per
    call, which would otherwise be paid for each shard.
    """
    (borders,) = np.nonzero(np.diff(shard, prepend=-1, append=-1))
    first, last, counts = row[borders[:-1]], row[borders[1:] - 1], np.diff(borders)
    most = most_rows(part_bytes)
    most_shards = min(_TOGETHER, most_at_once())
    few = are_far(first, last, counts, row_bytes, part_bytes) & (counts < most)
    run: list[_Part] = []
    n_rows = 0
    stops = borders.tolist()
    numbers = shard[borders[:-1]].tolist()
    for number, start, stop, is_few in zip(
        numbers, stops, stops[1:], few.tolist(), strict=False
    ):
        part = _Part(number, start, stop)
        fits = is_few and len(run) < most_shards and n_rows + stop - start <= most
        if run and not fits:
            yield run
            run, n_rows = [], 0
        if not is_few:
            yield [part]
            continue
        run.append(part)
        n_rows += stop - start
    if run:
        yield run
