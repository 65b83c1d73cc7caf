"""Every method on the same frozen features: accuracy against FLOPs saved.

A trained ResNet18 on CIFAR-100 with 20 coarse classes, three taps, three seeds; each
method moves over its own knob. Which values of the knob are worth having is decided on
the validation rows, those that calibrate, and their accuracy and cost are then read off
the test set: the front is never chosen on it. Finished fits are kept in the JSON, so an
interrupted run goes on.

    python examples/benchmarks/compare_methods.py --cache ~/.cache/sk_calex/features

`docs/draw_methods.py` draws what was recorded.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from _common import (
    cifar_features,
    environment,
    read_json,
    write_json,
)
from _fronts import summary, table

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    PrototypePoolingClassifier,
)
from sk_calex.baselines import (
    BoostNetClassifier,
    BranchyNetClassifier,
    BTSEEClassifier,
    NoAlignmentClassifier,
    PABEEClassifier,
    PTEENetClassifier,
    SDNClassifier,
    ZTWClassifier,
)
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.cascade._costs import depth_prices
from sk_calex.model_selection import operating_curve
from sk_calex.policies import LearnedGate, Oracle, Quota, RegretPriced, SharedThreshold

MARGINS = np.r_[-0.02, -0.01, np.linspace(0, 0.3, 61), 0.35, 0.4, 0.5, 0.6, 0.8]
PRECISION_MARGINS = np.r_[np.linspace(-0.6, 0.3, 37), 0.4, 0.5]
THRESHOLDS = np.r_[np.linspace(0.2, 0.9, 29), 1 - np.geomspace(0.09, 1e-4, 30)]
ENTROPIES = np.geomspace(1e-3, 2.9, 50)
DECAYS = np.geomspace(0.1, 10, 41)
PRICES = np.r_[0, np.geomspace(1e-3, 1, 49)]
COST_WEIGHTS = (1.0, 3.0)


def methods(epochs, memory):
    """Name, estimator without a seed, and values of its knob."""
    budget = {"max_iter": epochs, "solver": "adam", "input": "features"}

    def branch():
        return PrototypePoolingClassifier(max_iter=epochs)

    for name, ensemble in (("CalexNet", False), ("CalexNet, ensemble", True)):
        # The memory gives the second one the branches of the first.
        settings = {"ensemble": ensemble, "memory": memory, "input": "features"}
        yield name, CascadeClassifier(branch=branch(), **settings), MARGINS
    reference = NoAlignmentClassifier(branch=branch(), input="features")
    yield "reference", reference, PRECISION_MARGINS
    conv1d = BranchClassifier("conv1d", max_iter=epochs)
    btsee = BTSEEClassifier(branch=conv1d, input="features")
    yield "BTS-EE", btsee, PRECISION_MARGINS
    for weight in COST_WEIGHTS:
        pteenet = PTEENetClassifier(cost_weight=weight, **budget)
        yield f"PTEENet {weight:g}", pteenet, THRESHOLDS
    yield "ZTW", ZTWClassifier(**budget), THRESHOLDS
    yield "BoostNet", BoostNetClassifier(**budget), DECAYS
    yield "SDN", SDNClassifier(**budget), THRESHOLDS
    yield "BranchyNet", BranchyNetClassifier(**budget), ENTROPIES
    yield "PABEE", PABEEClassifier(**budget), np.arange(4)


# Other rules on CalexNet's branches: nothing is trained for them.
RULES = {
    "precision margins": (SurvivorThresholdCalibrator(-0.15), PRECISION_MARGINS),
    "shared threshold": (SharedThreshold(), THRESHOLDS),
    "regret-priced": (RegretPriced(), PRICES),
    "learned gate": (LearnedGate(), THRESHOLDS),
    "quota": (Quota(), DECAYS),
}


def curves(cascade, values, data):
    """Accuracy and FLOPs saved over the knob, on validation and on test."""
    out = {"values": np.asarray(values, dtype=float).tolist()}
    for part, (X, y) in data.items():
        curve = operating_curve(cascade, X, y, values)
        out[part] = {
            "accuracy": curve.accuracy.tolist(),
            "flops_reduction": curve.flops_reduction.tolist(),
        }
    # Of the plain backbone: with an ensemble the cascade's last stage is more than it.
    X, y = data["test"]
    right = X[:, -len(cascade.classes_) :].argmax(axis=1) == y
    out["backbone_accuracy"] = float(np.mean(right))
    return out


def oracle(cascade, X, y):
    """The upper limit with these branches, one point."""
    proba = cascade.stage_probabilities(X)
    codes = np.searchsorted(cascade.classes_, y)
    depth = Oracle().depth(proba, codes)
    right = proba.argmax(axis=2) == codes
    costs, plain = depth_prices(cascade, None)
    return {
        "accuracy": float(right[depth, np.arange(len(y))].mean()),
        "flops_reduction": float(1 - costs[depth].mean() / plain),
    }


def run(name, estimator, values, seed, data):
    """Fit one method with one seed, and go over its knob."""
    estimator.set_params(random_state=seed)
    start, busy = time.perf_counter(), time.process_time()
    estimator.fit(*data["train"])
    record = {
        "method": name,
        "seed": seed,
        "fit_seconds": time.perf_counter() - start,
        "fit_cpu_seconds": time.process_time() - busy,
        "depth_mmacs": (depth_prices(estimator, None)[0] / 1e6).tolist(),
        **curves(estimator, values, {k: data[k] for k in ("validation", "test")}),
    }
    records = [record]
    if name == "CalexNet":
        record["oracle"] = oracle(estimator, *data["test"])
        for rule, (policy, knob) in RULES.items():
            estimator.set_calibrator(policy)
            parts = {k: data[k] for k in ("validation", "test")}
            other = {"method": f"CalexNet, {rule}", "seed": seed, "fit_seconds": 0.0}
            records.append(other | curves(estimator, knob, parts))
    return records


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", help="only those that begin so")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--name", default="compare_methods")
    parser.add_argument(
        "--network", type=Path, help="JSON of train_backbone.py, for another network"
    )
    args = parser.parse_args()
    data, split = cifar_features(args.cache, args.network)
    settings = {"epochs": args.epochs, "cost_weights": COST_WEIGHTS}
    if args.network is not None:
        settings["network"] = args.network.stem
    record = read_json(args.name)
    if record and record["settings"] != {**settings, "cost_weights": [*COST_WEIGHTS]}:
        raise SystemExit(f"{args.name}.json has other settings: give another --name.")
    runs = record.get("runs", [])
    done = {(r["method"], r["seed"]) for r in runs}
    memory = str(Path(args.cache).expanduser().parent / "fits")
    for seed in args.seeds:
        for name, estimator, values in methods(args.epochs, memory):
            wanted = not args.methods or name.startswith(tuple(args.methods))
            if not wanted or (name, seed) in done:
                continue
            runs += run(name, estimator.set_params(cv=split), values, seed, data)
            record = {
                "what": __doc__.splitlines()[0],
                "environment": environment(),
                "settings": settings,
                "summary": summary(runs),
                "runs": runs,
            }
            write_json(args.name, record)
            fit = next(r for r in runs if (r["method"], r["seed"]) == (name, seed))
            print(f"{name} seed {seed}: {fit['fit_seconds']:.0f} s", flush=True)
    print(table(record["summary"]))


if __name__ == "__main__":
    main()
