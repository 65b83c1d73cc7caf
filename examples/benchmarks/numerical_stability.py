"""How far the last bits of the features move what a cascade answers.

Small sets are fitted again with noise of 1e-7 in the features, on two threads, and with
the instructions of an older CPU, each in a process of its own. Recorded are the largest
change of a probability, and the changes of exit share and accuracy, on rows that no fit
saw; for every head by its default solver, by the default until 0.1 (30 iterations of
L-BFGS) for comparison, and for whole cascades.

    python examples/benchmarks/numerical_stability.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from _common import environment, write_json
from sklearn.datasets import load_digits, make_classification
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    PrototypePoolingClassifier,
)
from sk_calex.branches._heads import HEADS

NOISE, SEEDS = 1e-7, (0,)
FORMER = {"solver": "lbfgs", "max_iter": 30}
OLDER_CPU = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "MKL_CBWR": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
}
#: Data sets of the heads: rows of training, and the shape of a sample's features.
SETS = {
    "columns_150": (150, (20,)),
    "columns_600": (600, (20,)),
    "digits_300": (300, (64,)),
    "maps_150": (150, (12, 4, 4)),
}
CASCADES = {"images_180": 180, "columns_180": 180}


def digits_net() -> nn.Sequential:
    """A small convolutional network for digits."""
    widths = [1, 8, 12, 16, 32]
    blocks = [
        nn.Sequential(
            nn.Conv2d(a, b, 3, stride=1 + (i % 2), padding=1),
            nn.BatchNorm2d(b),
            nn.ReLU(),
        )
        for i, (a, b) in enumerate(pairwise(widths))
    ]
    late = [nn.Flatten(), nn.Linear(128, 256), nn.ReLU(), nn.Linear(256, 10)]
    return nn.Sequential(*blocks, nn.Sequential(*late))


def digits() -> tuple[np.ndarray, np.ndarray]:
    data = load_digits()
    order = np.random.RandomState(0).permutation(len(data.target))
    images = (data.images[order, None] / 16).astype(np.float32)
    return images, data.target[order]


def train_net(path: Path) -> None:
    """Train the network once: every process reads the same weights."""
    torch.manual_seed(0)
    net, (images, labels) = digits_net(), digits()
    x, y = torch.from_numpy(images[:600]), torch.from_numpy(labels[:600])
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(8):
        for rows in torch.arange(600).split(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    torch.save(net.state_dict(), path)


def load_net(path: Path) -> nn.Sequential:
    net = digits_net()
    net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def columns(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    X, y = make_classification(
        n + 600, 20, n_informative=6, n_classes=3, flip_y=0.05, random_state=seed
    )
    return X.astype(np.float32), y


def perturbed(X: np.ndarray, noise: float) -> np.ndarray:
    rng = np.random.default_rng(9)
    return X * (1 + noise * rng.standard_normal(X.shape)) if noise else X


def branch_rows(
    name: str, seed: int, net: nn.Sequential
) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels: those of training first, 400 or more to validate on."""
    n, shape = SETS[name]
    if name.startswith("columns"):
        return columns(n, seed)
    images, labels = digits()
    order = np.random.RandomState(seed).permutation(np.arange(600, len(labels)))
    rows = order[: n + 450]
    if name.startswith("digits"):
        return images[rows].reshape(len(rows), -1), labels[rows]
    with torch.inference_mode():
        maps = net[:2](torch.from_numpy(images[rows]))
    assert maps.shape[1:] == shape
    return maps.flatten(1).numpy(), labels[rows]


def fit_branches(
    net: nn.Sequential, noise: float, former: bool
) -> dict[str, np.ndarray]:
    """Probabilities and right answers of every head on every set."""
    found = {}
    for name, (n, shape) in SETS.items():
        for head in HEADS:
            for seed in SEEDS:
                X, y = branch_rows(name, seed, net)
                branch = BranchClassifier(
                    head,
                    feature_shape=shape,
                    random_state=seed,
                    device="cpu",
                    **FORMER if former else {},
                )
                start = time.process_time()
                branch.fit(perturbed(X[:n], noise), y[:n])
                key = f"{name}/{head}/{seed}"
                found[f"{key}/seconds"] = np.array(time.process_time() - start)
                found[f"{key}/proba"] = branch.predict_proba(X[n:])
                found[f"{key}/right"] = branch.predict(X[n:]) == y[n:]
                found[f"{key}/small"] = np.array(branch.solver_ != "adam")
    return found


def fit_cascades(
    net: nn.Sequential, noise: float, former: bool
) -> dict[str, np.ndarray]:
    """Probabilities, depths and right answers of cascades with default settings."""
    found = {}
    for name, n in CASCADES.items():
        for seed in SEEDS:
            backbone, branch = None, None
            if name.startswith("images"):
                images, labels = digits()
                order = np.random.RandomState(seed).permutation(np.arange(600, 1797))
                X, y = images[order], labels[order]
                backbone = FrozenBackbone(net, taps=["0", "1", "2"], device="cpu")
            else:
                X, y = columns(n, seed)
            if former:
                branch = PrototypePoolingClassifier(device="cpu", **FORMER)
            cascade = CascadeClassifier(backbone, branch=branch, random_state=seed)
            start = time.process_time()
            cascade.fit(perturbed(X[:n], noise).astype(X.dtype), y[:n])
            key = f"{name}/cascade/{seed}"
            found[f"{key}/seconds"] = np.array(time.process_time() - start)
            labels, depth = cascade.predict(X[n:], return_depth=True)
            found[f"{key}/proba"] = cascade.stage_probabilities(X[n:])
            found[f"{key}/right"] = labels == y[n:]
            found[f"{key}/exits"] = depth < len(cascade.branches_)
            found[f"{key}/small"] = np.array(True)
    return found


def work(weights: Path, out: Path, noise: float, former: bool) -> None:
    """What one process does."""
    warnings.simplefilter("ignore")  # of few calibration rows, and of costly branches
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    net = load_net(weights)
    found = fit_branches(net, noise, former) | fit_cascades(net, noise, former)
    np.savez(out, **found)


def run_arm(
    folder: Path, name: str, *, noise: float = 0.0, former: bool = False, **env: str
) -> dict[str, np.ndarray]:
    out = folder / f"{name}.npz"
    command = [sys.executable, __file__, "--work", str(folder / "net.pt"), str(out)]
    command += ["--noise", str(noise), *(["--former"] if former else [])]
    subprocess.run(command, check=True, env={**os.environ, **env})
    with np.load(out) as found:
        return dict(found)


def compare(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict[str, dict]:
    """Largest changes over the seeds, for each set and head."""
    changes: dict[str, dict[str, float]] = {}
    for key in a:
        *what, _, part = key.split("/")
        change = changes.setdefault("/".join(what), {})
        if part == "proba":
            moved = np.abs(a[key] - b[key]).max()
        elif part in ("right", "exits"):
            moved = abs(a[key].mean() - b[key].mean())
        else:
            continue
        change[part] = max(change.get(part, 0.0), float(moved))
    return changes


def mean_of(found: dict[str, np.ndarray], part: str) -> dict[str, float]:
    means: dict[str, list[float]] = {}
    for key, value in found.items():
        *what, _, name = key.split("/")
        if name == part:
            means.setdefault("/".join(what), []).append(float(value.mean()))
    return {what: round(float(np.mean(values)), 4) for what, values in means.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--noise", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--former", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*args.work, args.noise, args.former)
        return
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    two = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    with TemporaryDirectory() as name:
        folder = Path(name)
        train_net(folder / "net.pt")
        plain = run_arm(folder, "plain", **one)
        former = run_arm(folder, "former", former=True, **one)
        changed = {
            "noise": run_arm(folder, "noise", noise=NOISE, **one),
            "two_threads": run_arm(folder, "two", **two),
            "older_cpu": run_arm(folder, "older", **one, **OLDER_CPU),
        }
        noisy = run_arm(folder, "former_noise", noise=NOISE, former=True, **one)
    changes = {arm: compare(plain, found) for arm, found in changed.items()}
    changes["former_noise"] = compare(former, noisy)
    small = mean_of(plain, "small")
    record = {
        "what": "Largest changes on unseen rows under rounding, over the seeds.",
        "environment": environment(),
        "settings": {"noise": NOISE, "seeds": SEEDS, "older_cpu": OLDER_CPU},
        "changes": changes,
        "full_batch": {what: bool(value) for what, value in small.items()},
        "accuracy": {
            "now": mean_of(plain, "right"),
            "former": mean_of(former, "right"),
        },
        "fit_seconds": {
            "now": mean_of(plain, "seconds"),
            "former": mean_of(former, "seconds"),
        },
    }
    print(json.dumps(record["accuracy"], indent=1))
    for arm, each in changes.items():
        above = {what: c for what, c in each.items() if c["proba"] > 1e-4}
        worst = max(c["proba"] for c in each.values())
        print(f"{arm}: largest change {worst:.1e}; above 1e-4: {json.dumps(above)}")
    print(write_json("numerical_stability", record))


if __name__ == "__main__":
    main()
