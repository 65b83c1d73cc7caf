"""Things timed in turn, ratios, the page cache, peak memory, a process for each run."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import spread


class Turns(NamedTuple):
    """Seconds of each arm, round by round."""

    wall: dict[str, np.ndarray]
    cpu: dict[str, np.ndarray]  # of this process, with the system's work for it


def in_turns(arms: Mapping[str, Callable[[], object]], repeats: int) -> Turns:
    """Time each arm, `repeats` times round after one round to warm up."""
    seconds: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    for _ in range(repeats + 1):
        for name, arm in arms.items():
            wall, cpu = time.perf_counter(), time.process_time()
            result = arm()
            seconds[name].append(
                (time.perf_counter() - wall, time.process_time() - cpu)
            )
            del result  # before the next arm's clocks run
    wall_and_cpu = {name: np.array(values[1:]).T for name, values in seconds.items()}
    return Turns(*({name: t[k] for name, t in wall_and_cpu.items()} for k in (0, 1)))


def ratio(a: Any, b: Any) -> dict[str, float]:
    """Spread of a / b, round by round."""
    return spread(np.asarray(a) / np.asarray(b))


def drop_from_page_cache(paths: Iterable[Path]) -> bool:
    """Ask the system to forget its copy of some files; False where it cannot."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages would stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


class PeakMemory:
    """How far the resident memory rises above that at the start of the block, in MiB.

    After the block, `peak` is the most and `kept` what is still there. Linux only.
    """

    def __enter__(self) -> PeakMemory:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        self._start = _memory("VmRSS")
        return self

    def __exit__(self, *exception: object) -> None:
        self.peak = _memory("VmHWM") - self._start
        self.kept = _memory("VmRSS") - self._start


def _memory(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) / 1024
    raise OSError(f"/proc/self/status has no {field}")


def in_new_process(function: Callable[..., Any], *args: object) -> Any:
    """Call a function in a fresh process and return its result."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *args).result()
