"""Peak memory of extracting to a store on disk, over the number of samples.

Each size runs in a process of its own, over images that are made as they are read, and
reports its largest anonymous and resident memory.

    python examples/benchmarks/transform_memory.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
import time

import torch
from _common import environment, write_json
from torch import nn
from torch.utils.data import Dataset

from sk_calex import FrozenBackbone

SIZES = (1_000, 4_000, 16_000, 64_000, 256_000)
SEED = 0
IMAGE = (3, 32, 32)
CHANNELS = 16


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
    """Resident and anonymous memory of this process, in MiB."""
    with open("/proc/self/status") as file:
        fields = dict(line.split(":", 1) for line in file)
    return tuple(int(fields[k].split()[0]) / 1024 for k in ("VmRSS", "RssAnon"))


def extract(n, folder, queue):
    torch.manual_seed(SEED)
    module = nn.Sequential(
        nn.Conv2d(IMAGE[0], CHANNELS, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(CHANNELS, 4),
    ).eval()
    data = Synthetic(n)
    backbone = FrozenBackbone(module, taps=["1"], cache=folder).fit(data)
    backbone.transform(Synthetic(512))  # libraries are loaded, buffers warm
    before = status()
    peak, running = list(before), True

    def watch():
        while running:
            peak[:] = [max(a, b) for a, b in zip(peak, status(), strict=True)]
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    features = backbone.transform(data)
    running = False
    watcher.join()
    queue.put(
        {
            "samples": n,
            "feature_mib": features.nbytes / 2**20,
            "peak_resident_mib_above_start": peak[0] - before[0],
            "peak_anonymous_mib_above_start": peak[1] - before[1],
        }
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    args = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    rows = []
    for n in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            queue = context.Queue()
            process = context.Process(target=extract, args=(n, folder, queue))
            process.start()
            rows.append(queue.get())
            process.join()
        print(rows[-1], flush=True)
    largest, smallest = rows[-1], rows[0]
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {"seed": SEED, "image": IMAGE, "tap_channels": CHANNELS},
        "rows": rows,
        "samples_ratio": largest["samples"] / smallest["samples"],
        "anonymous_ratio": largest["peak_anonymous_mib_above_start"]
        / smallest["peak_anonymous_mib_above_start"],
    }
    print("written to", write_json("transform_memory", record).name)


if __name__ == "__main__":
    main()
