"""Training branches on cached features against running the backbone in every epoch.

Both train the same three heads on the same 45,000 CIFAR-100 rows, with the same batch
size, precision and loss, one branch after the other as a cascade needs them. A few
updates of each are timed in turn and scaled to the epochs of a fit, which is the same
factor for both. Also says where the time of the training loop goes.

    python examples/benchmarks/training_speed.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _common import (
    TAPS,
    cifar_backbone,
    cifar_splits,
    environment,
    spread,
    write_json,
)
from torch.nn import functional as F

from sk_calex.branches._heads import build_head
from sk_calex.branches._training import Batch, RowGatherer, branch_loss, soften

BATCH, TEMPERATURE, ALPHA = 256, 2.0, 0.5


def new_heads(layout):
    heads = []
    for k, shape in enumerate(layout.shapes):
        generator = torch.Generator().manual_seed(k)
        head = build_head(
            "prototype_augmented", shape, layout.n_outputs, generator=generator
        )
        rate = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
        heads.append((head.train(), rate))
    return heads


def update(head, optimizer, x, labels, soft):
    optimizer.zero_grad(set_to_none=True)
    weight = torch.ones(len(labels))
    loss = branch_loss(
        head(x), labels, weight, soft, temperature=TEMPERATURE, alpha=ALPHA
    )
    loss.backward()
    return optimizer


def cached_updates(heads, gathers, rows):
    """One update of each branch from cached features: gather, arithmetic, step."""
    parts = np.zeros(3)
    for (head, optimizer), gather in zip(heads, gathers, strict=True):
        start = time.perf_counter()
        x, labels, _, soft = gather(rows)
        gathered = time.perf_counter()
        update(head, optimizer, x, labels, soft)
        arithmetic = time.perf_counter()
        optimizer.step()
        end = time.perf_counter()
        parts += (gathered - start, arithmetic - gathered, end - arithmetic)
    return parts


def uncached_updates(heads, backbone, images, targets, rows, whole):
    """The same updates with the backbone run for each branch.

    `whole` runs all of it, as its soft targets ask; otherwise only the stages up to the
    branch, as if the logits had been kept.
    """
    seconds = 0.0
    runner = backbone.runner()
    labels = torch.from_numpy(targets[rows.numpy()])
    raw = torch.from_numpy(images[rows.numpy()])
    for k, (head, optimizer) in enumerate(heads):
        start = time.perf_counter()
        with runner.inference_mode():
            state = runner.start(raw)
            for stage in range(runner.layout.n_taps + 1 if whole else k + 1):
                output, state = runner.advance(stage, state)
                if stage == k:
                    x = output
            soft = F.softmax(output / TEMPERATURE, 1) if whole else None
        # Inference tensors cannot be saved for backward.
        x = x.clone()
        soft = soft.clone() if whole else torch.full((len(rows), 20), 0.05)
        update(head, optimizer, x, labels, soft).step()
        seconds += time.perf_counter() - start
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()

    train, _, _ = cifar_splits()
    images, targets = train.data[train.train], train.target[train.train]
    backbone = cifar_backbone(str(Path(args.cache).expanduser()), verbose=1)
    features = np.asarray(backbone.fit(images).transform(images))
    layout = backbone.layout_
    soft = soften(np.full((len(targets), 20), 0.05), TEMPERATURE)
    n = len(targets)
    gathers = [
        RowGatherer(
            Batch(layout.block(features, k), np.arange(n), targets, np.ones(n), soft),
            layout.shapes[k],
            torch.device("cpu"),
        )
        for k in range(len(TAPS))
    ]
    heads = new_heads(layout)
    generator = torch.Generator().manual_seed(0)
    cached, whole, prefix, parts = [], [], [], []
    for repeat in range(args.repeats + 2):
        rows = torch.randint(n, (BATCH,), generator=generator)
        shares = cached_updates(heads, gathers, rows)
        a = uncached_updates(heads, backbone, images, targets, rows, whole=True)
        b = uncached_updates(heads, backbone, images, targets, rows, whole=False)
        if repeat >= 2:  # the first are warm-up
            parts.append(shares / shares.sum())
            cached.append(shares.sum())
            whole.append(a)
            prefix.append(b)
    cached, whole, prefix = map(np.array, (cached, whole, prefix))
    updates = 12 * (n // BATCH)
    parts = np.array(parts)
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {
            "rows": n,
            "batch": BATCH,
            "epochs": 12,
            "head": "prototype_augmented",
            "timed_updates": args.repeats,
            "precision": "float32",
            "seed": 0,
        },
        "ratio_whole_backbone": spread(whole / cached),
        "ratio_stages_up_to_the_branch": spread(prefix / cached),
        "scaled_fit_seconds": {
            "cached": float(np.median(cached) * updates),
            "whole_backbone": float(np.median(whole) * updates),
            "stages_up_to_the_branch": float(np.median(prefix) * updates),
        },
        "share_of_cached_update": {
            "gather": spread(parts[:, 0]),
            "forward_and_backward": spread(parts[:, 1]),
            "optimizer": spread(parts[:, 2]),
        },
    }
    path = write_json("training_speed", record)
    for name in ("ratio_whole_backbone", "ratio_stages_up_to_the_branch"):
        print(name, record[name])
    print("share of an update", record["share_of_cached_update"])
    print("scaled to a fit", record["scaled_fit_seconds"])
    print("written to", path.name)


if __name__ == "__main__":
    main()
