"""Part c of feature_store.py: joblib.Memory and zarr on the same rows and folds."""

from __future__ import annotations

import logging
import tempfile
import time
import warnings
from collections import Counter
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from _common import cifar_backbone, spread
from _measure import ratio
from joblib import Memory
from sklearn.model_selection import KFold

from sk_calex.datasets import load_cifar100_coarse
from sk_calex.store import FeatureStore, row_keys

CHUNK = 256  # rows of a zarr chunk: as many as the store's shards have here


def features_of(X, backbone):
    """What joblib.Memory keeps: it hashes X and the source of this function."""
    return np.asarray(backbone.transform(X))


def zarr_array(path, features, checksum):
    """Features as a zarr array; its own default codecs, or crc32c after them."""
    import zarr

    codecs = {}
    if checksum:
        codecs["compressors"] = [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()]
    chunks = (min(CHUNK, len(features)), features.shape[1])
    return zarr.create_array(str(path), data=features, chunks=chunks, **codecs)


def read_zarr(path, rows=slice(None)):
    import zarr

    return zarr.open_array(str(path), mode="r").oindex[rows]


class Peers:
    """The features of a fold's rows by each cache; what each one has is in `folder`."""

    def __init__(self, images, folder):
        self.images, self.folder = images, Path(folder)
        self.plain = cifar_backbone().fit(images)
        self.cached = cifar_backbone(str(self.folder / "store")).fit(images)
        layout, fingerprint = self.cached.layout_, self.cached.fingerprint_
        self.section = FeatureStore(self.cached.cache).section(
            fingerprint, layout.width, "float32"
        )
        by_slice = Memory(self.folder / "by_slice", verbose=0)
        self.by_slice = by_slice.cache(features_of, ignore=["backbone"])
        whole = Memory(self.folder / "whole", verbose=0)
        self.whole = whole.cache(features_of, ignore=["backbone"])

    def arms(self):
        """Each is called with the rows of one part of a fold; returns an array."""
        return {
            "store": lambda rows: self.cached.transform(self.images[rows]),
            "store, gathered in memory": lambda rows: self.section.gather(
                row_keys(self.images[rows]), memory_limit=2**40
            ),
            "joblib.Memory": lambda rows: self.by_slice(self.images[rows], self.plain),
            "joblib.Memory, all rows, then sliced": lambda rows: self.whole(
                self.images, self.plain
            )[rows],
            "zarr": lambda rows: self._zarr("zarr", False, rows),
            "zarr with crc32c": lambda rows: self._zarr("crc32c", True, rows),
        }

    def _zarr(self, name, checksum, rows):
        path = self.folder / f"{name}.zarr"
        if not path.exists():
            zarr_array(path, features_of(self.images, self.plain), checksum)
        return read_zarr(path, rows)

    def sizes(self):
        """Bytes on disk of each."""
        return {
            path.name: sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
            for path in sorted(self.folder.iterdir())
        }


def one_pass(arms, folds, expected):
    """Seconds of each arm for each fold, its train and its test part."""
    seconds = {name: [] for name in arms}
    for fold in folds:
        for name, arm in arms.items():
            start = time.perf_counter()
            parts = [arm(rows) for rows in fold]
            seconds[name].append(time.perf_counter() - start)
            for rows, part in zip(fold, parts, strict=True):
                np.testing.assert_array_equal(part[:100], expected[rows[:100]])
    return {name: np.array(values) for name, values in seconds.items()}


def summary(seconds, n, n_folds):
    """Microseconds a row of each arm over the folds, and the ratios to the store."""
    return {
        name: {
            "seconds_in_all": float(s.sum() * n_folds / len(s)),
            "microseconds_per_row": spread(1e6 * s / n),
            "time_over_store": ratio(s, seconds["store"]),
        }
        for name, s in seconds.items()
    }


@contextmanager
def quiet():
    """Without the warnings that are counted here."""
    logging.disable(logging.WARNING)  # joblib.Memory's way to warn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def flip_bytes(data_file, read, expected, flips, seed=0):
    """Change one byte at a time of a file, read, and count what comes of it.

    Half of the changes are in the first KiB, where headers are. `read` returns rows,
    or None where they count as missing.
    """
    original = data_file.read_bytes()
    rng = np.random.default_rng(seed)
    places = np.append(
        rng.integers(min(1024, len(original)), size=flips // 2),
        rng.integers(len(original), size=flips - flips // 2),
    )
    outcomes = {"first KiB": Counter(), "anywhere": Counter()}
    for i, place in enumerate(places):
        damaged = bytearray(original)
        damaged[place] ^= rng.integers(1, 256)
        data_file.write_bytes(damaged)
        with quiet():
            try:
                rows = read()
            except Exception:
                outcome = "refused with an error"
            else:
                if rows is None:
                    outcome = "noticed, rows missing or computed again"
                elif np.array_equal(rows, expected):
                    outcome = "not noticed, values right"
                else:
                    outcome = "not noticed, WRONG VALUES"
        outcomes["first KiB" if i < flips // 2 else "anywhere"][outcome] += 1
        data_file.write_bytes(original)
    return outcomes


_calls = []


def counted(number):
    """A function that tells when joblib.Memory calls it again."""
    _calls.append(number)
    return counted.features


def damage(features, flips):
    """What each cache makes of a file of its own with one byte changed."""
    n, width = features.shape
    keys = row_keys(np.arange(n))
    outcomes = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        FeatureStore(folder / "s").section("0123abcd", width, "float32").write(
            keys, features
        )
        (shard,) = (folder / "s").rglob("*.safetensors")

        def read_store(verify):
            store = FeatureStore(folder / "s", verify=verify)
            out = np.empty_like(features)
            found = store.section("0123abcd", width, "float32").read(keys, out)
            return out if found.all() else None

        for name, verify in (("store", "first"), ("store, verify='never'", "never")):
            read = partial(read_store, verify)
            outcomes[name] = flip_bytes(shard, read, features, flips)

        counted.features = features
        memory = Memory(folder / "j", verbose=0).cache(counted)
        memory(0)
        (pickle,) = (folder / "j").rglob("output.pkl")

        def read_joblib():
            _calls.clear()
            rows = memory(0)
            return None if _calls else rows

        outcomes["joblib.Memory"] = flip_bytes(pickle, read_joblib, features, flips)

        for name, checksum in (("zarr", False), ("zarr with crc32c", True)):
            path = folder / name
            zarr_array(path, features, checksum)
            (chunk,) = (f for f in (path / "c").rglob("*") if f.is_file())
            read = partial(read_zarr, path)
            outcomes[name] = flip_bytes(chunk, read, features, flips)
    return outcomes


def compare_with_peers(args):
    """Part c."""
    images = load_cifar100_coarse(split="test").data[: args.peer_rows]

    def folds(seed):
        return list(KFold(5, shuffle=True, random_state=seed).split(images))

    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        peers = Peers(images, folder)
        expected = features_of(images, peers.plain)
        arms = peers.arms()
        # The first to come computes; this one could only be second.
        firsts = {k: arm for k, arm in arms.items() if "gathered" not in k}
        n, k = len(images), 5
        new = one_pass(firsts, folds(0), expected)
        passes = {"nothing stored yet": summary(new, n, k)}
        again = [one_pass(arms, folds(0), expected) for _ in range(args.repeats)]
        again = {name: np.concatenate([a[name] for a in again]) for name in arms}
        passes["same folds again"] = summary(again, n, k)
        passes["other folds"] = summary(one_pass(arms, folds(1), expected), n, k)
        sizes = peers.sizes()
    return {
        "settings": {
            "rows": len(images),
            "width": expected.shape[1],
            "folds": 5,
            "fold_seeds": [0, 1],
            "repeats_of_the_same_folds": args.repeats,
            "zarr_chunk_rows": CHUNK,
            "zarr": version("zarr"),
            "joblib": version("joblib"),
            "flips": args.flips,
        },
        "passes": passes,
        "bytes_on_disk": sizes,
        "one_byte_changed": damage(expected[:64], args.flips),
    }
