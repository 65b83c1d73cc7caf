"""CalexNet and what it is made of, on CIFAR-100 with 20 coarse classes.

A trained ResNet18 is frozen; three branches are trained on its cached features, with
three seeds, and the margin is swept. Needs SK_CALEX_DATA with CIFAR-100, the weights
and the split. Finished runs are kept in the JSON, so an interrupted run goes on.
Branches are kept beside the cache: where those of two methods are the same, as with an
ensemble, they are trained once, and the second one's time to fit says nothing.

    python examples/benchmarks/cifar100_coarse.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from _common import cifar_backbone, cifar_splits, environment, read_json, write_json

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    PrototypePoolingClassifier,
    SurvivorAlignment,
    SurvivorThresholdCalibrator,
    margin_curve,
)
from sk_calex.cascade._costs import depth_prices

LOCAL_MARGINS = [-0.02, 0.0, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4]
MEAN_MARGINS = [-0.4, -0.35, -0.3, -0.25, -0.2, -0.15, -0.1, -0.05, 0, 0.05, 0.1, 0.2]
REDUCTIONS = [0.2, 0.3, 0.4, 0.5, 0.6]
# One setting other than the default; the reference is the paper's comparison.
METHODS = {
    "calexnet": {},
    "reference": {
        "alignment": "none",
        "targets": "argmax",
        "calibrator": SurvivorThresholdCalibrator(
            margin_mode="relative", calibrate_on="all"
        ),
    },
    "ensemble": {"ensemble": True},
    "paper_gate": {
        "calibrator": SurvivorThresholdCalibrator(margin_mode="relative"),
        "alignment": SurvivorAlignment(margin=-0.1),
    },
    "no_weights": {"alignment": "none"},
    "pure_weights": {"alignment": SurvivorAlignment(mixture=1.0)},
    "calibrated_on_all": {
        "calibrator": SurvivorThresholdCalibrator(
            margin_mode="local", calibrate_on="all"
        )
    },
    "labels": {"targets": "labels"},
    "argmax": {"targets": "argmax"},
    "soft_alone": {"branch": PrototypePoolingClassifier(alpha=1.0)},
    "temperature_4": {"branch": PrototypePoolingClassifier(temperature=4.0)},
    "conv_head": {"branch": BranchClassifier("conv")},
}


EPOCHS = 12


def margins_of(method):
    calibrator = METHODS[method].get("calibrator")
    local = calibrator is None or calibrator.margin_mode == "local"
    return LOCAL_MARGINS if local else MEAN_MARGINS


def run(method, seed, features, train, split, test_features, test, memory):
    cascade = CascadeClassifier(
        branch=PrototypePoolingClassifier(),
        input="features",
        cv=split,
        memory=memory,
        random_state=seed,
    )
    cascade.set_params(**METHODS[method]).set_params(branch__max_iter=EPOCHS)
    start = time.perf_counter()
    cascade.fit(features, train.target)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for margin in np.linspace(0, 0.4, 20):
        cascade.thresholds_at(margin)
    sweep = time.perf_counter() - start
    margins = margins_of(method)
    curve = margin_curve(cascade, test_features, test.target, margins=margins)
    # Order by what was saved; the margin was not chosen on these samples.
    order = np.argsort(curve.flops_reduction)
    at = np.interp(
        REDUCTIONS, curve.flops_reduction[order], curve.accuracy[order], left=np.nan
    )
    answers = cascade.stage_probabilities(test_features).argmax(axis=2)
    stages = (cascade.classes_[answers] == test.target).mean(axis=1)
    return {
        "method": method,
        "seed": seed,
        "fit_seconds": seconds,
        "sweep_20_margins_seconds": sweep,
        "accuracy": curve.accuracy.tolist(),
        "flops_reduction": curve.flops_reduction.tolist(),
        "depth_share": curve.depth_share.tolist(),
        "accuracy_at_reduction": [None if np.isnan(a) else float(a) for a in at],
        "stage_accuracy": stages.tolist(),
        "effective_sample_size": cascade.effective_sample_size_.tolist(),
        "depth_mmacs": (depth_prices(cascade, None)[0] / 1e6).tolist(),
    }


def summary(runs):
    """Mean and standard deviation over seeds, by method."""
    out = {}
    for method in dict.fromkeys(r["method"] for r in runs):
        mine = [r for r in runs if r["method"] == method]
        out[method] = {"seeds": [r["seed"] for r in mine]}
        for key in ("accuracy", "flops_reduction", "stage_accuracy"):
            values = np.array([r[key] for r in mine])
            out[method][key] = {
                "mean": values.mean(axis=0).round(5).tolist(),
                "sd": values.std(axis=0, ddof=1).round(5).tolist()
                if len(mine) > 1
                else None,
            }
        at = np.array([r["accuracy_at_reduction"] for r in mine], dtype=float)
        out[method]["accuracy_at_reduction"] = {
            f"{r:.0%}": {
                "mean": float(at[:, i].mean().round(5)),
                "sd": float(at[:, i].std(ddof=1).round(5)) if len(mine) > 1 else None,
            }
            for i, r in enumerate(REDUCTIONS)
        }
    return out


def show(record):
    backbone = record["runs"][0]["stage_accuracy"][-1]
    print(f"backbone {backbone:.2%}")
    for method, result in record["summary"].items():
        print(f"\n{method} (seeds {result['seeds']})")
        for i, margin in enumerate(margins_of(method)):
            accuracy, saved = result["accuracy"], result["flops_reduction"]
            sd = accuracy["sd"][i] if accuracy["sd"] else float("nan")
            print(
                f"  margin {margin:6.2f}  accuracy {accuracy['mean'][i]:.2%} "
                f"+- {sd:.2%}  drop {100 * (backbone - accuracy['mean'][i]):5.2f}  "
                f"FLOPs reduction {saved['mean'][i]:.1%}"
            )
        for reduction, value in result["accuracy_at_reduction"].items():
            sd = value["sd"] if value["sd"] is not None else float("nan")
            print(f"  at {reduction} saved: {value['mean']:.2%} +- {sd:.2%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--methods", nargs="+", default=["calexnet", "reference"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--name", default="cifar100_coarse")
    args = parser.parse_args()

    train, test, split = cifar_splits()
    backbone = cifar_backbone(str(Path(args.cache).expanduser()), verbose=1)
    backbone.fit(train.data)
    features, test_features = (backbone.transform(part.data) for part in (train, test))

    memory = str(Path(args.cache).expanduser().parent / "fits")
    record = read_json(args.name)
    runs = record.get("runs", [])
    done = {(r["method"], r["seed"]) for r in runs}
    for seed in args.seeds:
        for method in args.methods:
            if (method, seed) in done:
                continue
            data = (features, train, split, test_features, test)
            runs.append(run(method, seed, *data, memory))
            record = {
                "what": __doc__.splitlines()[0],
                "environment": environment(),
                "settings": {"epochs": EPOCHS, "branch": "PrototypePoolingClassifier"},
                "methods": {name: str(value) for name, value in METHODS.items()},
                "margins": {name: margins_of(name) for name in METHODS},
                "reductions": REDUCTIONS,
                "summary": summary(runs),
                "runs": runs,
            }
            write_json(args.name, record)
            print(f"{method} seed {seed}: {runs[-1]['fit_seconds']:.0f} s", flush=True)
    show(record)


if __name__ == "__main__":
    main()
