"""Updates of branch heads in bfloat16 and channels last against float32, in turn.

One update of the branches on the taps of the CIFAR-100 ResNet18, from the same rows,
the ways in turn. Processor time, on one thread. The record depends on whether the
processor computes in bfloat16: there is one of each kind.

    python examples/benchmarks/training_precision.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from _common import (
    cifar_backbone,
    cifar_splits,
    environment,
    spread,
    write_json,
)

from sk_calex.branches._heads import BranchHead, build_head
from sk_calex.branches._training import branch_loss

WAYS = {
    "float32": (False, False),
    "float32, channels last": (False, True),
    "bfloat16": (True, False),
    "bfloat16, channels last": (True, True),
}
BATCH, SEED = 256, 0
HEADS = {"default": ("prototype_augmented", {}), "conv": ("conv", {"widths": (24, 32)})}
PLAIN = BranchHead.forward


def forward_as(way):
    """The forward pass of a head that trains in a precision and a memory format."""
    low, last = WAYS[way]

    def forward(head, x):
        if not head.training:
            return PLAIN(head, x)
        if last and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16) if low else nullcontext():
            logits = PLAIN(head, x)
        return logits.float()

    return forward


def time_updates(layout, features, y, repeats):
    """Processor seconds of one update, by head and way: (repeats, taps)."""
    soft = torch.full((BATCH, layout.n_outputs), 1 / layout.n_outputs)
    weight = torch.ones(BATCH)
    seconds = {head: {way: [] for way in WAYS} for head in HEADS}
    for head_name, (kind, params) in HEADS.items():
        trained = []
        for k, shape in enumerate(layout.shapes):
            head = build_head(kind, shape, layout.n_outputs, **params).train()
            rate = torch.optim.AdamW(head.parameters(), lr=1e-4, fused=True)
            x = np.array(layout.block(features, k)[:BATCH]).reshape(-1, *shape)
            trained.append((head, rate, torch.from_numpy(x)))
        labels = torch.from_numpy(y[:BATCH].astype(np.int64))
        for repeat in range(repeats + 1):
            for way in WAYS:
                took = []
                for head, rate, x in trained:
                    start = time.process_time()
                    rate.zero_grad(set_to_none=True)
                    logits = forward_as(way)(head, x)
                    loss = branch_loss(
                        logits, labels, weight, soft, temperature=2.0, alpha=0.5
                    )
                    loss.backward()
                    rate.step()
                    took.append(time.process_time() - start)
                if repeat:  # the first is a warm-up
                    seconds[head_name][way].append(took)
    return {
        head: {
            way: {
                "seconds": spread(np.array(took).sum(1)),
                "over_float32": spread(
                    np.array(took).sum(1) / np.array(ways["float32"]).sum(1)
                ),
            }
            for way, took in ways.items()
        }
        for head, ways in seconds.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--name", default="training_precision")
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, _, _ = cifar_splits()
    backbone = cifar_backbone(str(Path(args.cache).expanduser()), verbose=1)
    rng = np.random.default_rng(SEED)
    chosen = rng.permutation(train.train)[: args.rows]
    backbone.fit(train.data[:2])
    features = backbone.transform(train.data[chosen])
    layout, y = backbone.layout_, train.target[chosen]
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {
            "rows": args.rows,
            "batch": BATCH,
            "seed": SEED,
            "timed_updates": args.repeats,
        },
        "updates": time_updates(layout, features, y, args.repeats),
    }
    write_json(args.name, record)
    print(record["updates"], flush=True)


if __name__ == "__main__":
    main()
