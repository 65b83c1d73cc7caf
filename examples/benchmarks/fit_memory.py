"""Peak memory of extracting and fitting with 1,000 classes, over the number of rows.

Each size runs in a process of its own: images that are made as they are read, a small
network with 1,000 outputs, int8 features in a store, mapped from a copy or read on
demand, one branch on soft targets for one epoch. The matrix of rows by classes in
float64, which is not made, is shown beside it.

    python examples/benchmarks/fit_memory.py
"""

from __future__ import annotations

import argparse
import tempfile
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from _common import environment, write_json
from _measure import in_new_process
from _memory import MemoryWatch, Synthetic, read_memory, small_network

from sk_calex import BranchClassifier, CascadeClassifier, FrozenBackbone

SIZES = (25_000, 50_000, 100_000)
N_CLASSES, CHANNELS, SEED = 1000, 16, 0
IMAGE = (3, 16, 16)


def run(n, folder, dtype, on_demand):
    torch.set_num_threads(1)
    module = small_network(IMAGE, CHANNELS, N_CLASSES, SEED)
    data, y = Synthetic(n, IMAGE), np.arange(n) % N_CLASSES
    backbone = FrozenBackbone(
        module,
        ["1"],
        cache=folder,
        on_demand=on_demand,
        dtype=dtype,
        classes=np.arange(N_CLASSES),
    )
    branch = BranchClassifier("gap", solver="adam", max_iter=1)
    cascade = CascadeClassifier(backbone, branch=branch, margin=0.05, random_state=SEED)
    start = read_memory()
    with MemoryWatch() as extracting:
        features = backbone.fit(data).transform(data)
    files = [path.stat().st_size for path in Path(folder).rglob("*")]
    before = time.process_time()
    with MemoryWatch() as fitting:
        cascade.set_params(input="features").fit(features, y)
    return {
        "rows": n,
        "on_demand": on_demand,
        "fit_cpu_seconds": time.process_time() - before,
        "start_resident_mib": start[0],
        "extracting_resident_mib": extracting.peak[0],
        "extracting_anonymous_mib": extracting.peak[1],
        "fitting_resident_mib": fitting.peak[0],
        "fitting_anonymous_mib": fitting.peak[1],
        "features_mib": features.nbytes / 2**20,
        "float32_features_mib": 4 * np.prod(features.shape) / 2**20,
        "disk_mib": sum(files) / 2**20,
        "float64_matrix_mib": 8 * n * N_CLASSES / 2**20,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--dtype", default="int8")
    args = parser.parse_args()
    rows = []
    for n, on_demand in product(args.sizes, (False, True)):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(in_new_process(run, n, folder, args.dtype, on_demand))
        print(rows[-1], flush=True)
        record = {
            "what": __doc__.splitlines()[0],
            "environment": environment(),
            "settings": {
                "seed": SEED,
                "image": IMAGE,
                "tap_channels": CHANNELS,
                "classes": N_CLASSES,
                "dtype": args.dtype,
                "epochs": 1,
            },
            "rows": rows,
        }
        write_json("fit_memory", record)


if __name__ == "__main__":
    main()
