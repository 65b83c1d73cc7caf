"""Part d of feature_store.py: memory and time a row over the number of rows.

Rows of 64 floats, made as they are written: a process for each step and size.
"""

from __future__ import annotations

import resource
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from _common import spread
from _measure import PeakMemory, in_new_process

from sk_calex.store import FeatureStore, row_keys

WIDTH, PIECE = 64, 4096  # the piece is what FrozenBackbone writes of narrow rows


class PeakAnonymous(PeakMemory):
    """The same of anonymous memory too: what the system cannot drop and read again.

    The system keeps no peak of it, so a thread looks every two milliseconds. `peak`
    and `kept` remain those of all resident memory, mapped files among it.
    """

    def __enter__(self):
        super().__enter__()
        self._first = self._most = anonymous()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self):
        while not self._done.wait(0.002):
            self._most = max(self._most, anonymous())

    def __exit__(self, *exception):
        self._done.set()
        self._thread.join()
        super().__exit__(*exception)
        last = anonymous()
        self.peak_anonymous = max(self._most, last) - self._first
        self.kept_anonymous = last - self._first


def anonymous():
    """The anonymous resident memory of this process in MiB."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * resource.getpagesize() / 2**20


def section_of(folder):
    return FeatureStore(folder).section("0123abcd", WIDTH, "float32")


def rows_of(ids):
    """Rows that tell whose they are."""
    rows = np.full((len(ids), WIDTH), 0.5, dtype=np.float32)
    rows[:, 0] = ids
    return rows


def pieces(n, shuffled, piece=PIECE):
    """The ids 0 to n - 1 in a list of pieces."""
    ids = np.arange(n)
    if shuffled:
        np.random.default_rng(0).shuffle(ids)
    return [ids[start : start + piece] for start in range(0, n, piece)]


def write(folder, n):
    section, seconds, parts = section_of(folder), 0.0, pieces(n, shuffled=False)
    with PeakAnonymous() as memory:
        for ids in parts:
            keys, rows = row_keys(ids), rows_of(ids)
            start = time.perf_counter()
            section.write(keys, rows)
            seconds += time.perf_counter() - start
    return measured(memory, seconds, n)


def open_(folder, n):
    start = time.perf_counter()
    with PeakAnonymous() as memory:
        section = section_of(folder)
    seconds = time.perf_counter() - start
    assert section.n_rows == n
    return measured(memory, seconds, n)


def read(folder, n, shuffled, piece):
    section, seconds, parts = section_of(folder), 0.0, pieces(n, shuffled, piece)
    with PeakAnonymous() as memory:
        out = np.empty((min(piece, n), WIDTH), dtype=np.float32)
        for ids in parts:
            keys = row_keys(ids)
            start = time.perf_counter()
            found = section.read(keys, out[: len(ids)])
            seconds += time.perf_counter() - start
            assert found.all()
            assert (out[: len(ids), 0] == ids).all()
    return measured(memory, seconds, n)


def gather(folder, n):
    """All rows in shuffled order; one matrix, a memory map above 64 MiB."""
    (ids,) = pieces(n, shuffled=True, piece=n)
    keys, section = row_keys(ids), section_of(folder)
    with PeakAnonymous() as memory:
        start = time.perf_counter()
        rows = section.gather(keys)
        seconds = time.perf_counter() - start
    assert (rows[:, 0] == ids).all()
    return measured(memory, seconds, n)


def index_array(folder, n):
    """The same shuffled reads of an array in memory, which no store can beat."""
    rows, parts = rows_of(np.arange(n)), pieces(n, shuffled=True)
    with PeakAnonymous() as memory:
        out = np.empty((PIECE, WIDTH), dtype=np.float32)
        for _ in range(2):  # the second time nothing is new to numpy or the system
            start = time.perf_counter()
            for ids in parts:
                out[: len(ids)] = rows[ids]
            seconds = time.perf_counter() - start
    return measured(memory, seconds, n)


def measured(memory, seconds, n):
    return {
        "microseconds_per_row": 1e6 * seconds / n,
        "peak_mib": memory.peak_anonymous,
        "kept_mib": memory.kept_anonymous,
        "peak_resident_mib": memory.peak,
        "kept_resident_mib": memory.kept,
    }


STEPS = {
    "write": (write,),
    "open": (open_,),
    "read in order, 4,096 a call": (read, False, PIECE),
    "read shuffled, 4,096 a call": (read, True, PIECE),
    "read shuffled, 65,536 a call": (read, True, 65_536),
    "gather shuffled": (gather,),
    "an array in memory, shuffled, 4,096 a call": (index_array,),
}


def scale(args):
    """Part d."""
    by_size = []
    for n in args.sizes:
        runs = {name: [] for name in STEPS}
        for _ in range(args.scaling_repeats):
            with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
                for name, (step, *settings) in STEPS.items():
                    result = in_new_process(step, folder, n, *settings)
                    runs[name].append(result)
        steps = {
            name: {key: spread([r[key] for r in results]) for key in results[0]}
            for name, results in runs.items()
        }
        by_size.append({"rows": n, "steps": steps})
        medians = {k: v["microseconds_per_row"]["median"] for k, v in steps.items()}
        peaks = {k: v["peak_mib"]["median"] for k, v in steps.items()}
        told = {k: (round(v, 2), round(peaks[k], 1)) for k, v in medians.items()}
        print(n, told, flush=True)
    small, large = by_size[0]["steps"], by_size[-1]["steps"]
    return {
        "settings": {
            "width": WIDTH,
            "rows_a_write": PIECE,
            "repeats": args.scaling_repeats,
            "index_bytes_per_row": 24,  # in temporary files above 16,384 rows
        },
        "sizes": by_size,
        "largest_to_smallest_time_per_row": {
            name: large[name]["microseconds_per_row"]["median"]
            / small[name]["microseconds_per_row"]["median"]
            for name in STEPS
        },
        "peak_mib_beyond_smallest": {
            name: large[name]["peak_mib"]["median"] - small[name]["peak_mib"]["median"]
            for name in STEPS
        },
    }
