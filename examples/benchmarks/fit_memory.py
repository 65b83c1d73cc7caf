"""Peak memory of extracting and fitting with 1,000 classes, over the number of rows.

Each size runs in a process of its own: images that are made as they are read, a small
network with 1,000 outputs, int8 features in a store, one branch on soft targets for one
epoch. The matrix of rows by classes in float64, which is not made, is shown beside it.

    python examples/benchmarks/fit_memory.py
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
from _common import environment, write_json
from _measure import in_new_process
from torch import nn
from torch.utils.data import Dataset

from sk_calex import BranchClassifier, CascadeClassifier, FrozenBackbone

SIZES = (25_000, 50_000, 100_000)
N_CLASSES, CHANNELS, SEED = 1000, 16, 0
IMAGE = (3, 16, 16)


class Synthetic(Dataset):
    """Images from a counter: as many as asked for, none kept."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        return torch.randint(256, IMAGE, dtype=torch.uint8, generator=generator)


def status():
    """Resident memory of this process and the part that is no file, in MiB."""
    fields = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
    )
    return np.array([int(fields[k].split()[0]) / 1024 for k in ("VmRSS", "RssAnon")])


class Watch:
    """The largest of `status` inside the block, looked at every 5 milliseconds."""

    def __enter__(self):
        self.peak, self._running = status(), True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self):
        while self._running:
            self.peak = np.maximum(self.peak, status())
            time.sleep(0.005)

    def __exit__(self, *exception):
        self._running = False
        self._thread.join()


def run(n, folder, dtype):
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    module = nn.Sequential(
        nn.Conv2d(IMAGE[0], CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, N_CLASSES),
    ).eval()
    data, y = Synthetic(n), np.arange(n) % N_CLASSES
    backbone = FrozenBackbone(
        module, ["1"], cache=folder, dtype=dtype, classes=np.arange(N_CLASSES)
    )
    branch = BranchClassifier("gap", solver="adam", max_iter=1)
    cascade = CascadeClassifier(backbone, branch=branch, margin=0.05, random_state=SEED)
    start = status()
    with Watch() as extracting:
        features = backbone.fit(data).transform(data)
    with Watch() as fitting:
        cascade.set_params(input="features").fit(features, y)
    folder_bytes = sum(f.stat().st_size for f in Path(folder).rglob("*.safetensors"))
    return {
        "rows": n,
        "start_resident_mib": start[0],
        "extracting_resident_mib": extracting.peak[0],
        "extracting_anonymous_mib": extracting.peak[1],
        "fitting_resident_mib": fitting.peak[0],
        "fitting_anonymous_mib": fitting.peak[1],
        "features_mib": features.nbytes / 2**20,
        "float32_features_mib": 4 * np.prod(features.shape) / 2**20,
        "store_mib": folder_bytes / 2**20,
        "float64_matrix_mib": 8 * n * N_CLASSES / 2**20,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--dtype", default="int8")
    args = parser.parse_args()
    rows = []
    for n in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(in_new_process(run, n, folder, args.dtype))
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
