"""Thresholds from clean survivors or from all clean rows, when images are corrupted.

Local margins and the paper's mean margins are calibrated on clean rows, on the
survivors of each branch or on all; then the test images are corrupted. What is lost
against the last stage, and what is saved? Two parts:

- "one": one seed of the full branches on CIFAR-100 with 20 coarse classes, all 10,000
  test images, from the probabilities that guarantees.py makes and keeps;
- "seeds": three seeds of the small branches of ablation.py (all components) on its two
  networks, for the first test images.

    python examples/benchmarks/corruption.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from _branch_sets import (
    BACKBONES,
    SEEDS,
    Setting,
    fit,
    load_data,
    path_of,
    read,
    settings_record,
)
from _common import environment, read_json, write_json
from _rule_curves import mean_and_sd
from guarantees import SEED, corruptions, make_probabilities, read_probabilities
from sklearn.base import clone

from sk_calex import SurvivorThresholdCalibrator, accuracy_drop_bound
from sk_calex.calibration._answers import StageTable

MARGINS = (("local", 0.0), ("local", 0.05), ("relative", -0.2), ("relative", -0.1))
BRANCHES = Setting("soft", "soft", "conv")
N_IMAGES = 2_000  # of test, for each network and kind of corruption
MEASURES = ("drop", "flops_saved")


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


# -- three seeds on two networks -------------------------------------------------------


def corrupted_path(cache: str, backbone: str, seed: int) -> Path:
    """File of what the stages of one set say of the corrupted images."""
    path = path_of(cache, backbone, BRANCHES, seed)
    return path.with_name(f"{path.stem}-corrupted.npz")


def ask_corrupted(cache: str, backbone: str) -> None:
    """Ask the sets about the corrupted images, once, and keep their answers."""
    missing = [s for s in SEEDS if not corrupted_path(cache, backbone, s).exists()]
    if not missing:
        return
    data = load_data(backbone, cache)
    cascades = {s: fit(cache, backbone, BRANCHES, s, data) for s in missing}
    images = data.test_images[:N_IMAGES]
    # Seen once: not worth keeping.
    bare = clone(data.backbone).set_params(cache=None, verbose=0).fit(images[:64])
    said: dict[int, dict[str, Any]] = {seed: {} for seed in missing}
    for name, changed in corruptions(images, np.random.default_rng(0)):
        X = bare.transform(changed)
        for seed, cascade in cascades.items():
            said[seed][name] = cascade.stage_probabilities(X).astype(np.float32)
        print(backbone, name, flush=True)
    for seed, answers in said.items():
        np.savez(corrupted_path(cache, backbone, seed), **answers)


def over_seeds(cache: str, backbone: str) -> list[dict[str, Any]]:
    """Cells as of `measure`, with the mean and deviation over seeds.

    Those of survivors also hold by how much they differ from those of all rows.
    """
    cells = []
    for seed in SEEDS:
        given = read(cache, backbone, BRANCHES, seed)
        answers = {"validation": given.calibration, "test": given.test[:, :N_IMAGES]}
        with np.load(corrupted_path(cache, backbone, seed)) as file:
            answers |= {name: file[name].astype(np.float64) for name in file.files}
        tables = {
            name: StageTable.from_probabilities(p / p.sum(axis=2, keepdims=True))
            for name, p in answers.items()
        }
        labels = {"validation": given.calibration_y, "test": given.test_y[:N_IMAGES]}
        cells.append(list(measure(tables, labels, given.costs)))
    by_rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    found = []
    for same in zip(*cells, strict=True):
        cell = {
            key: same[0][key]
            for key in (
                "margin_mode",
                "margin",
                "calibrate_on",
                "images",
                "last_stage_accuracy",
            )
        }
        values = {key: np.array([each[key] for each in same]) for key in MEASURES}
        cell |= {key: mean_and_sd(value) for key, value in values.items()}
        which = (cell["margin_mode"], cell["margin"], cell["images"])
        if cell["calibrate_on"] == "survivors":
            by_rows[which] = {"cell": cell, "values": values}
        else:
            # "survivors" comes first in `measure`.
            other = by_rows[which]
            other["cell"]["more_than_all_rows"] = {
                key: mean_and_sd(other["values"][key] - values[key]) for key in MEASURES
            }
        found.append(cell)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument(
        "--probabilities", default=None, help="default: beside the cache"
    )
    parser.add_argument(
        "--parts", nargs="+", default=["one", "seeds"], choices=["one", "seeds"]
    )
    args = parser.parse_args()
    cache = Path(args.cache).expanduser()
    record = read_json("corruption") | {"what": __doc__.splitlines()[0]}
    if "one" in args.parts:
        path = Path(args.probabilities or cache.parent / f"guarantees_seed{SEED}.npz")
        if not path.exists():
            make_probabilities(str(cache), path)
        record |= {"environment": environment()}
        record |= {"settings": {"seed": SEED, "thresholds_from": "clean images"}}
        record |= {"cells": list(measure(*read_probabilities(path)))}
        write_json("corruption", record)
    if "seeds" in args.parts:
        for backbone in BACKBONES:
            ask_corrupted(str(cache), backbone)
        record["seeds"] = {
            "environment": environment(),
            "settings": settings_record()
            | {"branches": BRANCHES.name, "images": N_IMAGES},
            "backbones": {name: over_seeds(str(cache), name) for name in BACKBONES},
        }
        write_json("corruption", record)
    by_backbone = record.get("seeds", {}).get("backbones", {})
    for cells in (record.get("cells", []), *by_backbone.values()):
        print(*cells, sep="\n")


if __name__ == "__main__":
    main()
