"""Peak memory of extracting to a store on disk, over the number of samples.

Each size runs in a process of its own, over images that are made as they are read, and
reports its largest anonymous and resident memory.

    python examples/benchmarks/transform_memory.py
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile

from _common import environment, write_json
from _memory import MemoryWatch, Synthetic, read_memory, small_network

from sk_calex import FrozenBackbone

SIZES = (1_000, 4_000, 16_000, 64_000, 256_000)
SEED = 0
IMAGE = (3, 32, 32)
CHANNELS = 16


def extract(n, folder, queue):
    module, data = small_network(IMAGE, CHANNELS, 4, SEED), Synthetic(n, IMAGE)
    backbone = FrozenBackbone(module, taps=["1"], cache=folder).fit(data)
    backbone.transform(Synthetic(512, IMAGE))  # libraries are loaded, buffers warm
    before = read_memory()
    with MemoryWatch() as extracting:
        features = backbone.transform(data)
    resident, anonymous = extracting.peak - before
    queue.put(
        {
            "samples": n,
            "feature_mib": features.nbytes / 2**20,
            "peak_resident_mib_above_start": resident,
            "peak_anonymous_mib_above_start": anonymous,
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
