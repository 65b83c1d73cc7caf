"""Parts b and e of feature_store.py: reading CIFAR-100 rows back, and their digests."""

from __future__ import annotations

import tempfile
import time

import numpy as np
from _common import cifar_backbone, cifar_splits, spread
from _measure import drop_from_page_cache, in_new_process, ratio

from sk_calex.datasets import load_cifar100_coarse
from sk_calex.store import FeatureStore, row_keys

CHUNK = 4096  # rows of a call
FEW = 250
PAUSE = 5  # seconds


def open_section(cache, backbone, verify="first"):
    store = FeatureStore(cache, verify=verify)
    fingerprint, width = backbone.fingerprint_, backbone.layout_.width
    return store.section(fingerprint, width, "float32")


def shards_of(cache, backbone):
    return sorted((FeatureStore(cache).folder / backbone.fingerprint_).glob("*.safe*"))


def fill(backbone, cache, X):
    """See that all rows are stored."""
    if not open_section(cache, backbone).find(row_keys(X)).all():
        backbone.transform(X)


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def new_array(buffer, n):
    out = np.empty((n, buffer.shape[1]), dtype=buffer.dtype)
    for start in range(0, n, CHUNK):
        out[start : start + CHUNK] = buffer[: n - start]


def new_file(folder, buffer, n):
    with tempfile.TemporaryFile(dir=folder) as file:
        for start in range(0, n, CHUNK):
            file.write(buffer[: n - start].data)
        file.flush()


def read_once(cache):
    """One process of part b: seconds a row to read 60,000 rows back in several ways."""
    train, test, _ = cifar_splits()
    parts = (train.data, test.data)
    backbone = cifar_backbone(cache).fit(train.data)
    plain = cifar_backbone().fit(train.data)
    section, shards = open_section(cache, backbone), shards_of(cache, backbone)
    buffer = np.empty((CHUNK, backbone.layout_.width), dtype=np.float32)

    def extract():
        plain.transform(test.data[:512])

    def transform():
        for X in parts:
            backbone.transform(X)

    def read():
        for X in parts:
            for start in range(0, len(X), CHUNK):
                keys = row_keys(X[start : start + CHUNK])
                assert section.read(keys, buffer[: len(keys)]).all()

    def gather(limit):
        section.gather(row_keys(test.data), memory_limit=limit)

    extract()
    extracted, seconds = [timed(extract)], {}
    # Nothing is verified in a new process: the first arm pays for the digests.
    dropped = drop_from_page_cache(shards)
    seconds["transform, cold, with digests"] = timed(transform)
    seconds["transform, warm"] = timed(transform)
    extracted.append(timed(extract))
    seconds["read in chunks, warm"] = timed(read)
    drop_from_page_cache(shards)
    seconds["transform, cold"] = timed(transform)
    drop_from_page_cache(shards)
    seconds["read in chunks, cold"] = timed(read)
    extracted.append(timed(extract))
    rows = sum(map(len, parts))
    seconds["keys"] = timed(lambda: [row_keys(X) for X in parts])
    seconds = {name: value / rows for name, value in seconds.items()}
    # What the machine asks for as much new memory, as an array and as a file; at
    # once after the same and after a pause, for a virtual machine may have given the
    # memory back meanwhile.
    gather(2**40)  # into the page cache
    arms = {
        "gather in memory": lambda: gather(2**40),
        "gather to a map": lambda: gather(2**25),
        "new array": lambda: new_array(buffer, len(test.data)),
        "new file": lambda: new_file(cache, buffer, len(test.data)),
    }
    for name, arm in arms.items():
        time.sleep(PAUSE)
        seconds[f"{name}, after a pause"] = timed(arm) / len(test.data)
        seconds[f"{name}, at once"] = timed(arm) / len(test.data)
    seconds["extract"] = float(np.median(extracted)) / 512
    return seconds, dropped


def reading(args):
    """Part b."""
    train, test, _ = cifar_splits()
    backbone = cifar_backbone(args.cache, verbose=1).fit(train.data)
    for X in (train.data, test.data):
        fill(backbone, args.cache, X)
    shards = shards_of(args.cache, backbone)
    runs, dropped = zip(
        *(in_new_process(read_once, args.cache) for _ in range(args.repeats)),
        strict=True,
    )
    seconds = {name: np.array([run[name] for run in runs]) for name in runs[0]}
    return {
        "settings": {
            "rows": len(train.data) + len(test.data),
            "distinct_rows": open_section(args.cache, backbone).n_rows,
            "width": backbone.layout_.width,
            "bytes": sum(path.stat().st_size for path in shards),
            "shards": len(shards),
            "rows_a_call_in_chunks": CHUNK,
            "processes": args.repeats,
            "page_cache_dropped_for_cold": all(dropped),
        },
        "microseconds_per_row": {k: spread(1e6 * v) for k, v in seconds.items()},
        "times_faster_than_extraction": {
            name: ratio(seconds["extract"], value)
            for name, value in seconds.items()
            if not name.startswith(("extract", "keys", "new"))
        },
    }


def verify_once(cache):
    """One process of part e: seconds a row under each setting, the page cache warm."""
    images = load_cifar100_coarse(split="test").data
    backbone = cifar_backbone(cache).fit(images)
    keys = row_keys(images)[np.random.default_rng(0).permutation(len(images))]
    out = np.empty((len(keys), backbone.layout_.width), dtype=np.float32)
    sections = {
        verify: open_section(cache, backbone, verify)
        for verify in ("never", "first", "always")
    }

    def read(verify, n_rows, a_call):
        start = time.perf_counter()
        for i in range(0, n_rows, a_call):
            part = keys[i : i + a_call]
            assert sections[verify].read(part, out[: len(part)]).all()
        return (time.perf_counter() - start) / n_rows

    n = len(keys)
    read("never", n, n)  # into the page cache
    seconds = {
        "never": read("never", n, n),
        "first, at first": read("first", n, n),
        "first, afterwards": read("first", n, n),
        "always": read("always", n, n),
    }
    for verify in sections:
        seconds[f"{verify}, few rows a call"] = read(verify, 10 * FEW, FEW)
    return seconds


def verifying(args):
    """Part e."""
    images = load_cifar100_coarse(split="test").data
    fill(cifar_backbone(args.cache, verbose=1).fit(images), args.cache, images)
    runs = [in_new_process(verify_once, args.cache) for _ in range(args.repeats)]
    seconds = {name: np.array([run[name] for run in runs]) for name in runs[0]}

    def never(name):
        few = ", few rows a call"
        return seconds["never" + few * name.endswith(few)]

    return {
        "settings": {
            "rows": 10_000,
            "few_rows_a_call": FEW,
            "order": "shuffled",
            "processes": args.repeats,
        },
        "microseconds_per_row": {k: spread(1e6 * v) for k, v in seconds.items()},
        "time_over_never": {
            name: ratio(value, never(name))
            for name, value in seconds.items()
            if not name.startswith("never")
        },
    }
