"""Extract the features of many samples: in one process or many, stored or not.

A piece is a range of rows: some whole batches, of bounded size in memory. Nothing here
knows the module: a `Featurizer` makes features of raw samples. Several calls may fill
the same store without knowing of each other: a call that finds rows stored by another
one takes its other pieces in random order, so that the two seldom do the same work.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import get_active_backend
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sk_calex.backbone._image_files import EncodedImages
from sk_calex.backbone._prepare import NamedBatch
from sk_calex.backbone._samples import Samples
from sk_calex.backbone._shipment import Shipment, fits_into
from sk_calex.store import Section, StoredRows, row_keys
from sk_calex.utils._parallel import for_workers, received
from sk_calex.utils._space import free_memory
from sk_calex.utils._warn import warn_caller

__all__ = [
    "Featurizer",
    "extract",
    "extract_cached",
    "rows_in_piece",
    "warn_without_memory",
]

# Raw samples or features of a piece. An interruption loses one piece, a shard holds
# one, and a cached result that is larger is returned as a memory map.
PIECE_BYTES = 32 * 2**20
PIECE_ROWS = 4096

# Network file systems may show a folder as it was up to a minute ago.
PATIENCE_SECONDS = 70.0

Piece = tuple[slice, Any]
"""Some rows and their raw samples."""

Job = Callable[[Iterable[Piece]], Iterator[Any]]
"""What is done with successive pieces."""


class KeyedFeaturizer(Protocol):
    """Makes features of raw samples whose keys are known."""

    def stages(self) -> object:
        """Prepare to run; not called by several threads at once."""

    def features(self, keys: NDArray[np.uint8], raw: Any) -> NDArray[Any]:
        """Compute features, (n, width), of n raw samples."""


class Featurizer(Protocol):
    """Makes features of raw samples."""

    def stages(self) -> object:
        """Prepare to run; not called by several threads at once."""

    def features(self, raw: Any) -> NDArray[Any]:
        """Compute features, (n, width), of n raw samples."""


def rows_in_piece(batch_size: int, row_bytes: int) -> int:
    """Count the rows of a piece: the whole batches that fit, at least one."""
    fitting = min(PIECE_ROWS, PIECE_BYTES // row_bytes)
    return batch_size * max(1, fitting // batch_size)


def extract(
    featurizer: Featurizer,
    samples: Samples,
    out: NDArray[Any],
    *,
    piece: int,
    n_jobs: int | None,
    bar: tqdm[Any],
) -> None:
    """Fill `out`, of shape (n_samples, width), with the features of all samples."""
    job = partial(_compute, featurizer)
    queue = _Queue(_cut(len(samples), piece))
    with closing(_run(job, featurizer, samples, queue, n_jobs)) as parts:
        for rows, features in parts:
            out[rows] = features
            bar.update(len(features))


def extract_cached(
    featurizer: KeyedFeaturizer,
    samples: Samples,
    section: Section,
    *,
    piece: int,
    n_jobs: int | None,
    bar: tqdm[Any],
    on_demand: bool = False,
) -> NDArray[Any] | StoredRows:
    """Store the features that are not stored yet, and read all.

    Returns
    -------
    features : ndarray, memmap or StoredRows of shape (n_samples, width)
        Where they are more than `PIECE_BYTES`, a read-only memory map, or with
        `on_demand` rows that are read when they are asked for.

    Raises
    ------
    OSError
        If rows that were stored just now cannot be read back.
    """
    n = len(samples)
    section.check_space(n, memory_limit=PIECE_BYTES, on_demand=on_demand)
    on_demand = on_demand and n * section.width * section.dtype.itemsize > PIECE_BYTES
    keys = np.empty((n, 16), dtype=np.uint8)
    stored = np.zeros(n, dtype=bool)
    job = partial(_store, featurizer, section, piece)
    pieces = _cut(n, piece)
    queue, workers = _Queue(pieces), effective_n_jobs(n_jobs) > 1
    while True:
        bar.reset()
        bar.update(n - queue.n_rows)
        with closing(_run(job, featurizer, samples, queue, n_jobs)) as parts:
            for part in parts:
                if workers and part.stored.any() and not stored.any():
                    # The first ones: a folder that is not shared shows at once.
                    _await(section, part.keys[part.stored])
                keys[part.rows] = part.keys
                stored[part.rows] |= part.stored
                if part.overtaken:
                    queue.shuffle()
                bar.update(part.n_done)
        if workers:
            _await(section, keys[stored])
            _warn_if_unseen(section, keys)
        try:
            if on_demand:
                return section.on_demand(keys)
            return section.gather(keys, memory_limit=PIECE_BYTES)
        except KeyError:
            # Shards that cannot be read: their rows are not in the index any more.
            lost = ~section.find(keys)
        if (lost & stored).any():
            raise _not_there(section, int((lost & stored).sum()))
        # By this process, whose index knows which rows are lost.
        queue = _Queue([rows for rows in pieces if lost[rows].any()])
        n_jobs, workers = 1, False


def warn_without_memory(n_bytes: int) -> None:
    """Warn where features that no store keeps are larger than the free memory."""
    free = free_memory()
    if free is not None and n_bytes > free:
        warn_caller(
            f"The features take {n_bytes:,} bytes, but only {free:,} bytes of memory "
            f"are free. Set cache= to a folder to get a memory map, a smaller pool=, "
            f"fewer taps, or dtype='int8' for a quarter of float32.",
            UserWarning,
        )


class _Stored(NamedTuple):
    """Result of storing a piece."""

    rows: slice
    keys: NDArray[np.uint8]
    stored: NDArray[np.bool_]  # which of them this call has computed, or holds to do so
    n_done: int  # rows found or stored since the last report
    overtaken: bool  # whether another process has stored some of the same rows


def _compute(
    featurizer: Featurizer, pieces: Iterable[Piece]
) -> Iterator[tuple[slice, NDArray[Any]]]:
    for rows, raw in pieces:
        yield rows, featurizer.features(raw)


def _store(
    featurizer: KeyedFeaturizer, section: Section, piece: int, pieces: Iterable[Piece]
) -> Iterator[_Stored]:
    """Compute and store missing rows, collected over several reads to whole pieces."""
    held = np.empty((0, 16), dtype=np.uint8)
    held_raw: Any = None

    def overtaken(n: int) -> bool:
        keys = held[:n]
        return section.write(keys, featurizer.features(keys, held_raw[:n])) < n

    for rows, raw in pieces:
        keys = _keys(raw)
        _, first = np.unique(np.concatenate([held, keys]), axis=0, return_index=True)
        # The held ones are distinct and come first.
        new = np.sort(first)[len(held) :] - len(held)
        new = new[~section.find(keys[new])]
        report = _Stored(rows, keys, np.zeros(len(keys), bool), len(keys), False)
        report.stored[new] = True
        held = np.concatenate([held, keys[new]])
        held_raw = raw[new] if held_raw is None else _join(held_raw, raw[new])
        n_done = len(keys) - len(new)
        if len(held) < piece:
            yield report._replace(n_done=n_done)
            continue
        late = overtaken(piece)
        held, held_raw = held[piece:], held_raw[piece:]
        yield report._replace(n_done=n_done + piece, overtaken=late)
    if len(held):
        late = overtaken(len(held))
        nothing = np.zeros(0, bool)
        yield _Stored(slice(0, 0), held[:0], nothing, len(held), late)


def _keys(raw: Any) -> NDArray[np.uint8]:
    if isinstance(raw, EncodedImages):
        # The bytes as a vector: no image has that shape, so their keys never meet.
        files = [np.frombuffer(content, dtype=np.uint8) for content in raw.contents]
        return np.concatenate([row_keys(file[None]) for file in files])
    if isinstance(raw, NamedBatch):
        return _keys_of_named(raw)
    return row_keys(raw.cpu().numpy())


def _keys_of_named(raw: NamedBatch) -> NDArray[np.uint8]:
    """Digest for each sample the names of its tensors and the keys of their rows."""
    parts = [row_keys(tensor.cpu().numpy()) for _, tensor in sorted(raw.items())]
    names = np.frombuffer(repr(sorted(raw.tensors)).encode(), dtype=np.uint8)
    parts.append(np.broadcast_to(names, (len(raw), len(names))))
    return row_keys(np.concatenate(parts, axis=1))


def _join(a: Any, b: Any) -> Any:
    return torch.cat([a, b]) if isinstance(a, Tensor) else a + b


def _await(section: Section, keys: NDArray[np.uint8]) -> None:
    """Wait until this process sees the rows that workers have stored."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := section.find(keys)).all():
        if time.monotonic() >= until:
            raise _not_there(section, int((~found).sum()))
        time.sleep(0.5)


def _not_there(section: Section, n: int) -> OSError:
    return OSError(
        f"{n} rows that were stored just now in {section!r} cannot be read back. Check "
        "the disk. Workers on other machines must share that folder, under the same "
        "path; or set cache=None, and they send their rows."
    )


def _warn_if_unseen(section: Section, keys: NDArray[np.uint8]) -> None:
    unseen = int((~section.find(keys)).sum())
    if unseen:
        warn_caller(
            f"{unseen} rows that workers found in {section!r} are not there for this "
            "process, which now computes them itself. Workers on other machines must "
            "share that folder, under the same path.",
            UserWarning,
        )


def _cut(n_rows: int, piece: int) -> list[slice]:
    return [slice(i, min(i + piece, n_rows)) for i in range(0, n_rows, piece)]


class _Queue:
    """Hands out the pieces that are left, in order until they are shuffled."""

    def __init__(self, pieces: list[slice]) -> None:
        self.n_rows = sum(rows.stop - rows.start for rows in pieces)
        self._left = pieces[::-1]
        self._lock = threading.Lock()  # joblib draws from a thread of its own

    def __iter__(self) -> Iterator[slice]:
        return self

    def __next__(self) -> slice:
        with self._lock:
            if not self._left:
                raise StopIteration
            return self._left.pop()

    def shuffle(self) -> None:
        with self._lock:
            np.random.default_rng().shuffle(self._left)


def _run(
    job: Job,
    featurizer: Featurizer | KeyedFeaturizer,
    samples: Samples,
    queue: _Queue,
    n_jobs: int | None,
) -> Generator[Any, None, None]:
    """Run a job on every piece and give the results in the order of the queue."""
    featurizer.stages()
    n_workers = effective_n_jobs(n_jobs)
    if n_workers == 1:
        yield from job((rows, samples.raw(rows)) for rows in queue)
        return
    sent = _readers_are_workers(samples, n_workers)
    shipment = Shipment((job, featurizer, samples if sent else None))
    if not _workers_are_threads():
        _check_can_be_sent(shipment, n_jobs)
    call = for_workers(_in_worker)
    every = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(call)(shipment, rows, None if sent else _sendable(samples, rows))
        for rows in queue
    )
    try:
        for results in every:
            yield from received(results)
    finally:
        with warnings.catch_warnings():
            # Where one piece fails the others are no more wanted.
            warnings.filterwarnings("ignore", "[0-9]+ tasks (have been|which were)")
            every.close()


def _workers_are_threads() -> bool:
    return bool(getattr(get_active_backend()[0], "supports_sharedmem", False))


def _check_can_be_sent(shipment: Shipment, n_jobs: int | None) -> None:
    """Pickle what workers need, or raise an error that says what to do instead."""
    try:
        shipment.pickle()
    except Exception as error:  # whatever a part of it raises
        reason = " ".join(str(error).split())
        raise TypeError(
            f"n_jobs={n_jobs} sends the module, its `preprocess` and the samples to "
            "other processes, but they cannot be pickled "
            f"({type(error).__name__}: {reason}). Set n_jobs=None, or make them "
            "picklable: no locks, open files or scripted parts, and parametrisations "
            "removed."
        ) from error


def _readers_are_workers(samples: Samples, n_workers: int) -> bool:
    """Decide whether workers get all samples, to read pieces of them themselves.

    They do where that moves less than the pieces: not a Dataset that has its samples in
    memory, nor one that cannot be pickled. Threads do not, for a Dataset may not be
    made for several.
    """
    if _workers_are_threads() or not samples.on_demand:
        return False
    if samples.sample_bytes is None:
        return True
    return fits_into(samples, len(samples) * samples.sample_bytes / n_workers)


def _sendable(samples: Samples, rows: slice) -> Any:
    raw = samples.raw(rows)
    # Arrays, as joblib keeps tensors neither in shared memory nor out of the message.
    if isinstance(raw, NamedBatch):
        return {name: tensor.cpu().numpy() for name, tensor in raw.items()}
    return raw.cpu().numpy() if isinstance(raw, Tensor) else raw


def _in_worker(shipment: Shipment, rows: slice, raw: Any) -> list[Any]:
    with shipment.opened() as (job, featurizer, samples):
        with shipment.lock:
            # Neither is made for several threads, which a worker may have.
            featurizer.stages()
            if samples is not None:
                raw = samples.raw(rows)
        if isinstance(raw, dict):
            raw = NamedBatch({name: _writeable(array) for name, array in raw.items()})
        elif isinstance(raw, np.ndarray):
            raw = _writeable(raw)
        return list(job([(rows, raw)]))


def _writeable(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else np.array(array))
