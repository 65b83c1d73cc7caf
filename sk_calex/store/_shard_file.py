"""The format of a section: one small JSON file and immutable shards.

A shard is a safetensors file with two tensors, ``keys`` (n, 16) uint8 and ``rows``
(n, width) float16, float32 or uint8, and **its name is the SHA-256 digest of its
bytes**. A shard is used only if its bytes have that digest. The header is padded to a
fixed size and determined by the section and the size of the file. So it is compared and
never parsed, and no content of a file decides an offset or the size of an allocation.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ._files import DamagedFile, open_regular, publish, read_regular
from ._keys import KEY_BYTES
from ._warnings import signature

METADATA_NAME = "section.json"
SECTION_NAME = re.compile(r"[0-9a-f]{8,128}")  # its fingerprint
SHARD_NAME = re.compile(r"[0-9a-f]{64}\.safetensors")
MAX_SHARD_ROWS = 2**20

_HEADER_BYTES = 1024
_DIGEST_BYTES = 2**18  # read at a time
_BLOCK_BYTES = 2**20  # approximate size of one read, at most
# Measured with files in the page cache, where one more read costs as much as some KiB
# that are not needed. Disks prefer larger pieces.
_SPARSE_BYTES = 8 * 2**10  # rows that are further apart on average are read one by one
_GAP_BYTES = 16 * 2**10  # other rows are read in two pieces if the gap is wider

_FORMAT = "sk_calex.store"
_VERSION = 2  # version 1 used other digests for keys
_OLD_VERSIONS = (1,)
_MAX_METADATA_BYTES = 4096
_MAX_WIDTH = 2**28
_SAFETENSORS_DTYPE = {"float32": "F32", "float16": "F16", "uint8": "U8"}


class OutdatedFile(DamagedFile):
    """A file of an earlier version of the format."""

    def __init__(self, version: int) -> None:
        super().__init__(f"is of version {version} of the format, not {_VERSION}")


class RowPart(NamedTuple):
    """Some of the bytes of a row."""

    start: int
    size: int


@dataclass(frozen=True)
class Layout:
    """What all shards of a section have in common."""

    fingerprint: str
    width: int
    dtype_name: str

    def __post_init__(self) -> None:
        # The values may come from a file, so their types are checked too.
        fingerprint: object = self.fingerprint
        if not (isinstance(fingerprint, str) and SECTION_NAME.fullmatch(fingerprint)):
            raise ValueError(
                "fingerprint must be 8 to 128 lower-case hexadecimal digits, "
                f"got {self.fingerprint!r}."
            )
        if type(self.width) is not int or not 1 <= self.width <= _MAX_WIDTH:
            raise ValueError(
                f"width must be an int from 1 to {_MAX_WIDTH}, got {self.width!r}."
            )
        if self.dtype_name not in tuple(_SAFETENSORS_DTYPE):
            raise ValueError(
                "dtype must be 'float32', 'float16' or 'uint8', got "
                f"{self.dtype_name!r}."
            )

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(self.dtype_name).newbyteorder("<")

    @functools.cached_property
    def row_bytes(self) -> int:
        return self.width * self.dtype.itemsize

    def part(self, columns: slice | None) -> RowPart:
        """Return where some columns lie in a row; None: all."""
        first, stop, _ = (columns or slice(None)).indices(self.width)
        size = self.dtype.itemsize
        return RowPart(first * size, (stop - first) * size)

    def shard_bytes(self, n_rows: int) -> int:
        """Return the size of a shard of `n_rows`, in bytes."""
        return _HEADER_BYTES + n_rows * (KEY_BYTES + self.row_bytes)

    def n_rows(self, file_bytes: int) -> int:
        """Return the number of rows of a shard of a size, or raise DamagedFile."""
        n, rest = divmod(file_bytes - _HEADER_BYTES, KEY_BYTES + self.row_bytes)
        if rest or not 1 <= n <= MAX_SHARD_ROWS:
            raise DamagedFile(f"has a size ({file_bytes} bytes) that no shard has")
        return n

    def header(self, n_rows: int, version: int = _VERSION) -> bytes:
        """Return the first bytes of a shard of `n_rows`."""
        split, end = n_rows * KEY_BYTES, n_rows * (KEY_BYTES + self.row_bytes)
        content = {
            "__metadata__": {
                "format": _FORMAT,
                "version": str(version),
                "fingerprint": self.fingerprint,
            },
            "keys": {
                "dtype": "U8",
                "shape": [n_rows, KEY_BYTES],
                "data_offsets": [0, split],
            },
            "rows": {
                "dtype": _SAFETENSORS_DTYPE[self.dtype_name],
                "shape": [n_rows, self.width],
                "data_offsets": [split, end],
            },
        }
        size = _HEADER_BYTES - 8
        return size.to_bytes(8, "little") + json.dumps(content).encode().ljust(size)

    def metadata(self, version: int = _VERSION) -> bytes:
        """Return the content of the JSON file of the section."""
        content = {
            "format": _FORMAT,
            "version": version,
            "fingerprint": self.fingerprint,
            "width": self.width,
            "dtype": self.dtype_name,
        }
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return json.dumps({**content, "sha256": digest}, indent=1).encode()


def read_metadata(folder: Path, name: str = METADATA_NAME) -> Layout:
    """Read the JSON file in the folder of a section.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DamagedFile
        If it differs in any byte from what this version writes for that folder.
    """
    raw = read_regular(folder / name, _MAX_METADATA_BYTES + 1)
    try:
        if len(raw) > _MAX_METADATA_BYTES:
            raise ValueError("it is too long")
        content: Any = json.loads(raw)
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
        layout = Layout(folder.name, content["width"], content["dtype"])
        if layout.metadata() == raw:
            return layout
        for version in _OLD_VERSIONS:
            if layout.metadata(version) == raw:
                raise OutdatedFile(version)
        raise ValueError(
            f"it is not of format {_FORMAT!r}, version {_VERSION}, or its content does "
            f"not fit its digest or its folder"
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DamagedFile(f"is not valid section metadata: {error}") from error


def claimed_layout(path: Path, fingerprint: str | None = None) -> Layout:
    """Return the layout according to a shard's header, where there is no metadata.

    Parameters
    ----------
    path : Path
        Path of the shard.
    fingerprint : str, default=None
        Fingerprint of the section; by default, the one in the header.
    """
    raw = read_regular(path, _HEADER_BYTES)
    try:
        content = json.loads(raw[8:])
        rows = content["rows"]
        names = {code: name for name, code in _SAFETENSORS_DTYPE.items()}
        if fingerprint is None:
            fingerprint = content["__metadata__"]["fingerprint"]
        return Layout(fingerprint, rows["shape"][1], names[rows["dtype"]])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise DamagedFile("has a header that no shard has") from error


def write_shard(
    folder: Path, layout: Layout, keys: NDArray[np.uint8], rows: NDArray[Any]
) -> str:
    """Store rows (already of the layout's dtype) as one shard; return its name."""
    parts = [memoryview(layout.header(len(keys))), _as_bytes(keys), _as_bytes(rows)]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    name = f"{digest.hexdigest()}.safetensors"
    publish(folder, name, parts)
    return name


class ShardReader:
    """An open shard with the size and the header that its layout requires.

    It is read by plain reads. Unlike a memory map, they raise an error that can be
    caught if the file shrinks or the disk is bad, and keep no memory. Where the system
    has ``pread``, threads may share a reader.

    It is closed with the last reference to it, so that no thread reads from a
    descriptor that has been reused for another file.

    Raises
    ------
    DamagedFile
        On any difference, here and in each method.
    OSError
        If the file cannot be opened or read.
    """

    _descriptor = -1

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self._layout = layout
        self._descriptor = open_regular(path)
        status = os.fstat(self._descriptor)
        self.signature = signature(status)
        self._n_names = status.st_nlink
        self.n_bytes = status.st_size
        self.n_rows = layout.n_rows(self.n_bytes)
        self._origin = _HEADER_BYTES + self.n_rows * KEY_BYTES
        header = self._read([0], [_HEADER_BYTES])
        if header != _header(layout, self.n_rows, _VERSION):
            for version in _OLD_VERSIONS:
                if header == layout.header(self.n_rows, version):
                    raise OutdatedFile(version)
            raise DamagedFile("has a header that does not fit its size and section")

    def __del__(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    def is_as_opened(self) -> bool:
        """Return whether the file is unchanged since it was opened, and not removed."""
        try:
            status = os.fstat(self._descriptor)
        except OSError:  # such as a file that another host removed from a network disk
            return False
        is_same = signature(status) == self.signature
        return is_same and status.st_nlink == self._n_names

    def verify(self, name: str | None = None) -> None:
        """Compare the digest of the whole file with its name or another one."""
        digest, done = hashlib.sha256(), 0
        while part := _pread(self._descriptor, _DIGEST_BYTES, done):
            digest.update(part)
            done += len(part)
        if f"{digest.hexdigest()}.safetensors" != (name or self._path.name):
            raise DamagedFile("has bytes that do not give its digest")

    def keys(self) -> NDArray[np.uint8]:
        """Return the (n_rows, 16) keys."""
        raw = self._read([_HEADER_BYTES], [self.n_rows * KEY_BYTES])
        return np.frombuffer(raw, dtype=np.uint8).reshape(self.n_rows, KEY_BYTES)

    def rows(
        self, wanted: NDArray[np.integer[Any]], columns: slice | None = None
    ) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield slices of `wanted` (row numbers, ascending) and their rows."""
        row_bytes, part = self._layout.row_bytes, self._layout.part(columns)
        for block in blocks(wanted, row_bytes, part.size):
            offsets = self._origin + block.first * row_bytes
            if block.alone:
                offsets += part.start
                sizes = [part.size] * len(offsets)
            else:
                sizes = (block.length * row_bytes).tolist()
            raw = self._read(offsets.tolist(), sizes)
            rows = np.frombuffer(raw, self._layout.dtype)
            if block.alone:
                yield block.rows, rows.reshape(len(offsets), -1)
                continue
            rows = rows.reshape(-1, self._layout.width)[:, columns or slice(None)]
            yield block.rows, rows if block.inside is None else rows[block.inside]

    def _read(self, offsets: Sequence[int], sizes: Sequence[int]) -> bytes:
        """Read pieces of the file and join them."""
        pairs = zip(sizes, offsets, strict=True)
        parts = [_pread(self._descriptor, size, offset) for size, offset in pairs]
        raw = b"".join(parts)
        if len(raw) == sum(sizes):  # no read returns more than was asked for
            return raw
        # A read may return less than asked for; only at the end it returns nothing.
        for i, size in enumerate(sizes):
            while len(parts[i]) < size:
                done = len(parts[i])
                more = _pread(self._descriptor, size - done, offsets[i] + done)
                if not more:
                    raise DamagedFile("ends too early")
                parts[i] += more
        return b"".join(parts)


def read_each(
    shards: Sequence[ShardReader],
    n_of_each: Sequence[int],
    rows: NDArray[np.integer[Any]],
    layout: Layout,
    columns: slice | None = None,
) -> NDArray[Any]:
    """Return rows of several shards, read one by one.

    Parameters
    ----------
    shards : sequence of ShardReader
        Open shards.
    n_of_each : sequence of int
        Number of rows of each shard.
    rows : ndarray of int
        Row numbers, those of the first shard first.
    layout : Layout
        Layout of the shards.
    columns : slice, default=None
        Neighbouring columns to read; None: all.

    Raises
    ------
    DamagedFile
        If a file is too short.
    OSError
        If a file cannot be read.
    """
    start, size = layout.part(columns)
    descriptors = np.repeat([shard._descriptor for shard in shards], n_of_each)
    origins = np.repeat([shard._origin for shard in shards], n_of_each)
    offsets = origins + rows.astype(np.int64) * layout.row_bytes + start
    raw = b"".join(map(_pread, descriptors.tolist(), repeat(size), offsets.tolist()))
    if len(raw) < len(rows) * size:
        raise DamagedFile("ends too early")
    return np.frombuffer(raw, layout.dtype).reshape(len(rows), -1)


class Block(NamedTuple):
    """Some of the wanted rows, and the pieces of the file that hold them."""

    rows: slice  # which of the wanted rows
    first: NDArray[np.int64]  # first row of each piece
    length: NDArray[np.int64]  # number of rows of each piece
    # Positions of the rows in the joined pieces; None if these are just the rows.
    inside: NDArray[np.int64] | None
    alone: bool = False  # whether each piece is one row, of which a part is enough


def most_rows(row_bytes: int) -> int:
    """Return the approximate number of rows that are read at once, at most."""
    return max(1, _BLOCK_BYTES // row_bytes)


def are_far(first: Any, last: Any, n: Any, row_bytes: int, part_bytes: int) -> Any:
    """Return whether n rows between two are so far apart that each is read alone.

    Rows that lie side by side are, where only a small part of each is read.
    """
    between = (np.asarray(last, np.int64) - first) * row_bytes
    is_small_part = row_bytes - part_bytes > _GAP_BYTES
    return is_small_part | (between >= (n - 1) * _SPARSE_BYTES)


def blocks(
    wanted: NDArray[np.integer[Any]], row_bytes: int, part_bytes: int | None = None
) -> Iterator[Block]:
    """Split wanted rows (ascending, may repeat) into blocks of bounded size."""
    if len(wanted) == 0:
        return
    part_bytes = row_bytes if part_bytes is None else part_bytes
    numbers: NDArray[np.int64] = wanted.astype(np.int64)
    n = len(numbers)
    if are_far(numbers[0], numbers[-1], n, row_bytes, part_bytes):
        n_most = most_rows(part_bytes)
        for start in range(0, n, n_most):
            first = numbers[start : start + n_most]
            rows = slice(start, start + len(first))
            yield Block(rows, first, np.ones_like(first), None, alone=True)
    else:
        n_most = most_rows(row_bytes)
        yield from _dense_blocks(numbers, n_most, 1 + _GAP_BYTES // row_bytes)


def _dense_blocks(
    wanted: NDArray[np.int64], n_most: int, longest_step: int
) -> Iterator[Block]:
    steps = np.diff(wanted)
    far = steps > longest_step
    # Position of each row if the rows in all narrow gaps are read too.
    place = np.zeros(len(wanted), dtype=np.int64)
    np.cumsum(np.where(far, 1, steps), out=place[1:])
    start = 0
    while start < len(wanted):
        # Bounds both what is read and what is returned, as rows may repeat.
        stop = min(start + n_most, int(np.searchsorted(place, place[start] + n_most)))
        begin = start + np.flatnonzero(far[start : stop - 1]) + 1
        first = wanted[np.append(start, begin)]
        length = wanted[np.append(begin, stop) - 1] - first + 1
        inside = place[start:stop] - place[start]
        rows = slice(start, stop)
        # What is read is just what is wanted.
        if inside[-1] == stop - start - 1 and steps[start : stop - 1].all():
            yield Block(rows, first, length, None)
        else:
            yield Block(rows, first, length, inside)
        start = stop


def _seek_and_read(descriptor: int, size: int, offset: int) -> bytes:
    os.lseek(descriptor, offset, os.SEEK_SET)
    return os.read(descriptor, size)


_pread = getattr(os, "pread", _seek_and_read)  # Windows has no pread
CAN_SHARE_READERS = hasattr(os, "pread")

# The header depends on the layout and the size only; few of them are used at a time.
_header = functools.lru_cache(maxsize=64)(Layout.header)


def _as_bytes(array: NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
