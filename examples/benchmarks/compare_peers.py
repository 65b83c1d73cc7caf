"""Peers as they are, on the same rows: earlyon, scikit-fallback, LightGBM, small nets.

The ResNet18 of `compare_methods.py`, frozen, on CIFAR-100 with 20 coarse classes. Each
peer does what its own interface does, with its defaults and with the best setting that
validation rows choose; accuracy and cost are read on the test set, and every head is
counted by torch, beside what the peer itself counts. The honest rivals are smaller
static networks, trained as the backbone was:

    python examples/train_backbone.py --arch resnet10 --epochs 12 --lr 0.2 --bf16 \\
        --out static/resnet10
    python examples/benchmarks/compare_peers.py --cache ~/.cache/sk_calex/features \\
        --static static --install

`--stack resnet10` also puts a cascade on that network, since the two add up. sk_calex
needs none of the peers; `--install` fetches what is missing into this environment.
Finished steps are kept in the JSON, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from _common import cifar_backbone, cifar_splits, environment, read_json, write_json
from _fronts import summary, table
from _peer_earlyon import CANDIDATES, DEFAULT
from _peer_earlyon import run as earlyon
from _peer_static import stacked, static
from _peer_tabular import FALLBACK, fallback_defaults, fallback_on, lightgbm
from _peers import (
    Clock,
    Data,
    Part,
    lightgbm_table,
    points_table,
    pooled,
    pooled_columns,
    stacked_table,
    static_table,
)
from compare_methods import MARGINS, RULES, curves

from sk_calex import (
    CascadeClassifier,
    PrototypePoolingClassifier,
    operating_curve,
)
from sk_calex.cascade._costs import depth_prices
from sk_calex.datasets import load_cifar100_coarse

# Module, and what pip installs it from. No list of dependencies has them: nothing else
# needs them.
PEERS = {
    "earlyon": "earlyon>=0.3",
    "skfb": "scikit-fallback>=0.2",
    "lightgbm": "lightgbm>=4",
}
OURS = "sk_calex"
OUR_RULES = (
    "precision margins",
    "shared threshold",
    "regret-priced",
)  # of compare_methods.py


def need(install: bool) -> None:
    """Install the peers that are missing, or say how."""
    missing = [pip for name, pip in PEERS.items() if not importlib.util.find_spec(name)]
    command = [sys.executable, "-m", "pip", "install", *missing]
    if missing and install:
        subprocess.run(command, check=True)
        importlib.invalidate_caches()
    elif missing:
        raise SystemExit(f"not installed. Run, or pass --install:\n{' '.join(command)}")


def load(cache: str) -> Data:
    """The rows, with their cached features, and those pooled."""
    train, test, split = cifar_splits()
    backbone = cifar_backbone(str(Path(cache).expanduser()), verbose=1)
    backbone.fit(train.data)
    layout = backbone.layout_
    features, test_features = (backbone.transform(part.data) for part in (train, test))
    averages = pooled(features, layout)

    def part(rows):
        # Rows of the large matrix only where somebody reads them.
        held = features[rows] if len(rows) < len(features) / 2 else None
        return Part(train.data[rows], held, averages[rows], train.target[rows])

    return Data(
        part(train.train),
        part(train.val),
        Part(test.data, test_features, pooled(test_features, layout), test.target),
        (features, train.target),
        train.val,
        split,
        pooled_columns(layout),
        np.array(layout.stage_macs, dtype=float),
    )


def ours(data: Data, seed: int, epochs: int | None = None) -> list[dict[str, Any]]:
    """The richest head at each tap over the margin; other rules on the same branches.

    With `epochs`, the first alone.
    """
    branch = PrototypePoolingClassifier(max_iter=epochs)
    cascade = CascadeClassifier(
        branch=branch, input="features", cv=data.split, random_state=seed
    )
    with Clock() as clock:
        cascade.fit(*data.everything)
    parts = {"validation": data.validation, "test": data.test}
    rows = {name: (part.features, part.target) for name, part in parts.items()}
    default = operating_curve(cascade, *rows["test"], [cascade.margin])
    saved = float(default.flops_reduction[0])
    point = {"asked": f"nothing (margin {cascade.margin:g})", "own_count": saved}
    point |= {"accuracy": float(default.accuracy[0]), "flops_reduction": saved}
    costs, _ = depth_prices(cascade, None)
    record = {
        "method": OURS if epochs is None else f"{OURS}, {epochs} epochs",
        "seed": seed,
        "setting": {"epochs": epochs},
        **clock.seconds,
        "depth_mmacs": (costs / 1e6).tolist(),
        "points": [point],
        **curves(cascade, MARGINS, rows),
    }
    if epochs is not None:
        return [record]
    records = [record]
    said = {
        name: np.hstack(list(cascade.stage_probabilities(X)))
        for name, (X, _) in rows.items()
    }
    method = f"{FALLBACK} on {OURS}'s branches"
    records.append(fallback_on(said, costs, data, seed, method))
    for rule in OUR_RULES:
        policy, values = RULES[rule]
        cascade.set_calibrator(policy)
        other = {"method": f"{OURS}, {rule}", "seed": seed, "fit_seconds": 0.0}
        records.append(other | curves(cascade, values, rows))
    return records


def steps(seeds: list[int], longer: bool) -> Iterator[tuple[Any, ...]]:
    """Method, seed, setting, and the function that makes their records of the data."""
    for seed in seeds:
        work = partial(earlyon, seed=seed, method="earlyon", setting=DEFAULT)
        yield "earlyon", seed, DEFAULT, work
    # Nothing in it is drawn: one seed says all.
    yield FALLBACK, seeds[0], None, partial(fallback_defaults, seed=seeds[0])
    for seed in seeds:
        yield OURS, seed, {"epochs": None}, partial(ours, seed=seed)
        epochs = {"epochs": DEFAULT["epochs"]}
        if longer:
            name = f"{OURS}, {DEFAULT['epochs']} epochs"
            yield name, seed, epochs, partial(ours, seed=seed, **epochs)
    for setting in CANDIDATES:
        for seed in seeds:
            name = "earlyon, best setting"
            work = partial(earlyon, seed=seed, method=name, setting=setting)
            yield name, seed, setting, work


def show(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    texts = [table(record["summary"]), points_table(record["runs"])]
    if "static" in record:
        texts.append(static_table(record["static"], record["runs"]))
    texts += [stacked_table(stack) for stack in record.get("stacked", [])]
    texts.append(lightgbm_table(record["lightgbm"]))
    return "\n\n".join(texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--static", type=Path, help="folder of train_backbone's files")
    parser.add_argument("--stack", help="of these the one to build a cascade on, too")
    parser.add_argument("--install", action="store_true", help="pip install the peers")
    parser.add_argument(
        "--longer", action="store_true", help="ours for as many epochs as earlyon, too"
    )
    parser.add_argument("--name", default="compare_peers")
    args = parser.parse_args()

    need(args.install)
    data = load(args.cache)
    record = read_json(args.name)
    record |= {"what": __doc__.splitlines()[0], "environment": environment()}
    runs = record.setdefault("runs", [])
    if args.static is not None and "static" not in record:
        record["static"] = static(args.static, data)
        write_json(args.name, record)
    for *key, work in steps(args.seeds, args.longer):
        if key in [[r["method"], r["seed"], r.get("setting")] for r in runs]:
            continue
        runs += work(data)
        record["summary"] = summary(runs)
        write_json(args.name, record)
        print(f"{key[0]} seed {key[1]}: {runs[-1]['fit_seconds']:.0f} s", flush=True)
    if "lightgbm" not in record:
        record["lightgbm"] = lightgbm(data, args.seeds[0])
        write_json(args.name, record)
    if args.stack and not record.get("stacked"):
        path = (args.static / args.stack).with_suffix(".json")
        images = load_cifar100_coarse(split="train").data
        record["stacked"] = [stacked(path, data, images, args.seeds[0])]
        write_json(args.name, record)
    print(show(record))


if __name__ == "__main__":
    main()
