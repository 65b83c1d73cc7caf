"""Features of many samples: piece by piece, on one process or several, cached or not.

A piece is some whole batches, of bounded size in memory. Nothing here knows the module:
`compute` makes features of raw samples.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sk_calex._inputs import Samples
from sk_calex.store import Section, row_keys

__all__ = ["extract", "extract_cached", "rows_in_piece"]

# Raw samples or features of a piece. An interruption loses one piece, a shard holds
# one, and a cached result that is larger is returned as a memory map.
PIECE_BYTES = 32 * 2**20
PIECE_ROWS = 4096

Compute = Callable[[Tensor], NDArray[Any]]
"""Raw samples to their features, (n, width)."""


def rows_in_piece(batch_size: int, row_bytes: int) -> int:
    """Rows of a piece: as many whole batches as fit, but at least one."""
    fitting = min(PIECE_ROWS, PIECE_BYTES // row_bytes)
    return batch_size * max(1, fitting // batch_size)


def extract(
    compute: Compute,
    samples: Samples,
    out: NDArray[Any],
    *,
    piece: int,
    n_jobs: int | None,
    bar: tqdm[Any],
) -> None:
    """Fill `out`, of shape (n_samples, width), with the features of all samples."""
    job = partial(_keep, compute)
    for rows, features in _run(job, samples.batches(piece), n_jobs):
        out[rows] = features
        bar.update(len(features))


def extract_cached(
    compute: Compute,
    samples: Samples,
    section: Section,
    *,
    piece: int,
    n_jobs: int | None,
    bar: tqdm[Any],
) -> NDArray[Any]:
    """Store the features that are not stored yet, and read all.

    Returns
    -------
    features : ndarray or memmap of shape (n_samples, width)
        A read-only memory map where they are more than `PIECE_BYTES`.

    Raises
    ------
    OSError
        If rows that were stored just now cannot be read back.
    """
    keys = np.empty((len(samples), 16), dtype=np.uint8)
    computed = np.zeros(len(samples), dtype=bool)

    def missing() -> Iterator[tuple[NDArray[np.uint8], Tensor]]:
        """Whole pieces of samples that are not stored, however few of each read."""
        held = np.empty(0, dtype=np.intp)
        held_raw: Tensor | None = None
        for rows, raw in samples.batches(piece):
            keys[rows] = row_keys(raw.cpu().numpy())
            candidates = np.append(held, np.arange(rows.start, rows.stop))
            _, first = np.unique(keys[candidates], axis=0, return_index=True)
            # The held ones are distinct and come first.
            new = candidates[np.sort(first)[len(held) :]]
            new = new[~section.find(keys[new])]
            if computed[new].any():
                raise OSError(
                    f"rows stored in {section!r} cannot be read back. Check the disk, "
                    "or set cache=None."
                )
            computed[new] = True
            bar.update(len(raw) - len(new))
            held, raw = np.append(held, new), raw[new - rows.start]
            held_raw = raw if held_raw is None else torch.cat([held_raw, raw])
            if len(held) >= piece:
                yield keys[held[:piece]], held_raw[:piece]
                held, held_raw = held[piece:], held_raw[piece:]
        if held_raw is not None and len(held):
            yield keys[held], held_raw

    while True:
        bar.reset()
        for n_rows in _run(partial(_store, compute, section), missing(), n_jobs):
            bar.update(n_rows)
        try:
            return section.gather(keys, memory_limit=PIECE_BYTES)
        except KeyError:
            # A shard turned out to be damaged: its rows are missing now.
            continue


def _keep(compute: Compute, rows: slice, raw: Tensor) -> tuple[slice, NDArray[Any]]:
    return rows, compute(raw)


def _store(
    compute: Compute, section: Section, keys: NDArray[np.uint8], raw: Tensor
) -> int:
    # In the worker: neither do features travel between processes, nor do they pile up.
    section.write(keys, compute(raw))
    return len(raw)


def _run(
    job: Callable[..., Any], pieces: Iterable[tuple[Any, ...]], n_jobs: int | None
) -> Iterator[Any]:
    """Results of a job for each piece, in order."""
    if effective_n_jobs(n_jobs) == 1:
        for piece in pieces:
            yield job(*piece)
    else:
        call = uuid.uuid4().hex
        yield from Parallel(n_jobs=n_jobs, return_as="generator")(
            delayed(_in_worker)(call, job, *piece) for piece in pieces
        )


_last_job: tuple[str, Callable[..., Any]] = ("", len)


def _in_worker(call: str, job: Callable[..., Any], *piece: Any) -> Any:
    """Run the first copy of the job that came with a call: it has its stages cut."""
    global _last_job
    if _last_job[0] != call:
        _last_job = (call, job)
    return _last_job[1](*piece)
