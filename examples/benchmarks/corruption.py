"""Thresholds from clean survivors or from all clean rows, when images are corrupted.

Local margins and the paper's mean margins are calibrated on the clean validation rows
of CIFAR-100 with 20 coarse classes, on the survivors of each branch or on all rows;
then the test images are corrupted. What is lost against the last stage, and what is
saved? From the probabilities that guarantees.py makes and keeps.

    python examples/benchmarks/corruption.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from _common import environment, write_json
from guarantees import SEED, make_probabilities, read_probabilities

from sk_calex import SurvivorThresholdCalibrator, accuracy_drop_bound

MARGINS = (("local", 0.0), ("local", 0.05), ("relative", -0.2), ("relative", -0.1))


def measure(tables, labels, costs):
    """Loss against the last stage and savings, for each rule, rows and images."""
    truth = labels["test"]
    for mode, margin in MARGINS:
        for rows in ("survivors", "all"):
            rule = SurvivorThresholdCalibrator(
                margin, margin_mode=mode, calibrate_on=rows
            ).fit(tables["validation"], labels["validation"])
            for name, table in tables.items():
                if name == "validation":
                    continue
                depth, last = rule.depth(table), table.predicted[-1]
                answer = table.predicted[depth, np.arange(len(depth))]
                yield {
                    "margin_mode": mode,
                    "margin": margin,
                    "calibrate_on": rows,
                    "images": "clean" if name == "test" else name,
                    "last_stage_accuracy": float((last == truth).mean()),
                    "drop": float((last == truth).mean() - (answer == truth).mean()),
                    "drop_bound_95": accuracy_drop_bound(truth, last, answer),
                    "flops_saved": float(1 - costs[depth].mean()),
                }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument(
        "--probabilities", default=None, help="default: beside the cache"
    )
    args = parser.parse_args()
    cache = Path(args.cache).expanduser()
    path = Path(args.probabilities or cache.parent / f"guarantees_seed{SEED}.npz")
    if not path.exists():
        make_probabilities(str(cache), path)
    cells = list(measure(*read_probabilities(path)))
    for cell in cells:
        print(cell)
    record = {"what": __doc__.splitlines()[0], "environment": environment()}
    settings = {"seed": SEED, "thresholds_from": "clean images"}
    write_json("corruption", record | {"settings": settings, "cells": cells})


if __name__ == "__main__":
    main()
