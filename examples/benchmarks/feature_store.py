"""The feature store against the bare torch loop and against other caches.

Parts, each written to the record as soon as it is done:

a. extraction into the store against bare loops, and where its time goes;
b. reading 60,000 CIFAR-100 rows back against extracting them;
c. the store against joblib.Memory and zarr over shuffled folds; damaged files;
d. memory and time a row from 10,000 to 1,000,000 rows;
e. what the digests cost: verify="first", "always", "never".

Part c wants zarr, which nothing else here does: ``python -m pip install "zarr>=3"``.
Part b keeps 4 GB in the cache folder and fills it first where it is empty.

    python examples/benchmarks/feature_store.py --cache ~/.cache/sk_calex/features
    python examples/benchmarks/feature_store.py --parts a,d
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _common import cifar_backbone, environment, read_json, spread, write_json
from _measure import in_turns, ratio
from _store_peers import compare_with_peers
from _store_reading import reading, verifying
from _store_scaling import scale
from torch.nn import functional as F

from sk_calex.datasets import load_cifar100_coarse
from sk_calex.store import FeatureStore, row_keys

BATCH = 256


def plain_loop(backbone, images):
    """What one writes by hand: the module as it is, hooks, pooling, an array."""
    module, layout, kept = backbone.module, backbone.layout_, {}
    out = np.empty((len(images), layout.width), dtype=np.float32)

    def keep(k):
        grid = layout.shapes[k][1:]
        return lambda module, args, output: kept.__setitem__(
            k, F.adaptive_avg_pool2d(output, grid)
        )

    hooks = [
        module.get_submodule(name).register_forward_hook(keep(k))
        for k, name in enumerate(layout.names)
    ]
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            logits = module(backbone.preprocess(torch.from_numpy(images[rows])))
            for k, features in kept.items():
                out[rows, layout.columns(k)] = features.flatten(1).numpy()
            out[rows, layout.columns(len(kept))] = logits.numpy()
    for hook in hooks:
        hook.remove()
    return out


def loop_over_stages(backbone, images):
    """The same with the module as the library runs it, and no check around it."""
    runner, layout = backbone.runner(), backbone.layout_
    out = np.empty((len(images), layout.width), dtype=np.float32)
    with runner.inference_mode():
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            state = runner.start(torch.from_numpy(images[rows]))
            for k in range(layout.n_taps + 1):
                output, state = runner.advance(k, state)
                out[rows, layout.columns(k)] = output.flatten(1).numpy()
    return out


def extraction(args):
    """Part a."""
    images = load_cifar100_coarse(split="test").data[: args.extract_rows]
    backbone = cifar_backbone().fit(images)
    width, keys = backbone.layout_.width, row_keys(images)
    features = np.asarray(backbone.transform(images))
    np.testing.assert_array_equal(loop_over_stages(backbone, images), features)
    difference = np.abs(plain_loop(backbone, images) - features).max()

    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        cached = cifar_backbone(f"{folder}/first").fit(images)
        number, sections = itertools.count(), []

        def with_empty_store():
            cached.set_params(cache=f"{folder}/{next(number)}")
            return cached.transform(images)

        def write():
            for start in range(0, len(images), BATCH):  # a shard for each, as above
                rows = slice(start, start + BATCH)
                sections[-1].write(keys[rows], features[rows])

        def open_():
            store = FeatureStore(f"{folder}/{next(number)}")
            sections.append(store.section("0123abcd", width, "float32"))

        seconds = in_turns(
            {
                "plain loop": lambda: plain_loop(backbone, images),
                "loop over stages": lambda: loop_over_stages(backbone, images),
                "transform": lambda: backbone.transform(images),
                "transform, empty store": with_empty_store,
                "keys": lambda: row_keys(images),
                "sha256": lambda: hashlib.sha256(features.data).digest(),
                "open": open_,
                "write": write,
                "gather": lambda: sections[-1].gather(keys),
                "fingerprint": lambda: cached.fingerprint_,
            },
            args.repeats,
        )
    result = {
        "settings": {
            "rows": len(images),
            "width": width,
            "batch": BATCH,
            "repeats": args.repeats,
        },
        "largest_difference_to_plain_loop": float(difference),
    }
    # Waiting for the disk is not processor time; waiting for other programs is no
    # part of the library. The truth lies between the two.
    for clock, times in seconds._asdict().items():
        stored = times["transform, empty store"]
        # Each byte is digested when it is written and when it is first read.
        hashing = times["keys"] + 2 * times["sha256"]
        result[clock] = {
            "microseconds_per_row": {
                name: spread(1e6 * t / len(images)) for name, t in times.items()
            },
            "time_over": {
                f"{name} over {base}": ratio(times[name], times[base])
                for name in ("transform", "transform, empty store")
                for base in ("plain loop", "loop over stages")
            },
            "share_of_transform_to_empty_store": {
                "hashing": ratio(hashing, stored),
                **{
                    name: ratio(times[name], stored)
                    for name in ("keys", "write", "gather", "fingerprint")
                },
            },
        }
    return result


PARTS = {
    "a": ("extraction", extraction),
    "b": ("reading", reading),
    "c": ("peers", compare_with_peers),
    "d": ("scaling", scale),
    "e": ("verify", verifying),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--parts", default=",".join(PARTS), help="such as a,d")
    parser.add_argument("--record", default="feature_store", help="name of the record")
    parser.add_argument("--scratch", help="folder for temporary files")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--extract-rows", type=int, default=2048)
    parser.add_argument("--peer-rows", type=int, default=3000)
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--scaling-repeats", type=int, default=3)
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=int,
        default=[10_000, 30_000, 100_000, 300_000, 1_000_000],
    )
    args = parser.parse_args()
    args.cache = str(Path(args.cache).expanduser())
    record = read_json(args.record)
    record["what"] = __doc__.splitlines()[0]
    for letter in args.parts.split(","):
        name, part = PARTS[letter]
        start = time.perf_counter()
        load = os.getloadavg()[0]
        result = part(args)
        # Parts may have been run at different times: each has its own environment.
        record[name] = {
            "environment": environment() | {"load_average_before": load},
            "seconds": time.perf_counter() - start,
            **result,
        }
        print(letter, "written to", write_json(args.record, record).name, flush=True)


if __name__ == "__main__":
    main()
