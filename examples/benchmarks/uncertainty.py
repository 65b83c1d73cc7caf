"""Do soft targets give branches whose confidence can be trusted more?

Outside of cascades a confidence is used to abstain, to rank, or as a probability. The
branches of ablation.py that were trained on all rows alike, with three kinds of
targets, are asked for the expected calibration error, the log loss, how well confidence
tells right from wrong answers (AUROC) and the area under the risk-coverage curve
(AURC): as they are, and after one temperature, found on the calibration rows. Judged on
test rows.

    python examples/benchmarks/uncertainty.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from typing import Any

import numpy as np
from _branch_sets import BACKBONES, SEEDS, Setting, read, settings_record
from _common import environment, write_json
from _rule_curves import mean_and_sd
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import log_loss, roc_auc_score

TARGETS = ("soft", "argmax", "labels")
BINS = 15
MEASURES = ("ece", "nll", "auroc", "aurc", "accuracy")


def expected_calibration_error(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], n_bins: int = BINS
) -> float:
    """Mean distance of confidence and accuracy over equal bins, by their shares.

    Naeini et al. (2015). A bin holds its upper edge.
    """
    total = 0.0
    edges = np.linspace(0, 1, n_bins + 1)
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            distance = abs(confidence[inside].mean() - right[inside].mean())
            total += inside.mean() * distance
    return float(total)


def area_under_risk_coverage(
    confidence: NDArray[np.float64], right: NDArray[np.bool_]
) -> float:
    """Mean error of the k most confident samples, over all k.

    Geifman & El-Yaniv (2017). Samples of equal confidence come in the order given.
    """
    order = np.argsort(-confidence, kind="stable")
    errors = np.cumsum(~right[order])
    return float((errors / np.arange(1, len(right) + 1)).mean())


def find_temperature(proba: NDArray[np.float64], y: NDArray[np.int64]) -> float:
    """The temperature of the smallest log loss (Guo et al. 2017)."""
    logs = np.log(np.maximum(proba, 1e-30))

    def loss(log_temperature: float) -> float:
        scaled = softmax(logs / np.exp(log_temperature), axis=1)
        return float(-np.log(np.maximum(scaled[np.arange(len(y)), y], 1e-30)).mean())

    found = minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    return float(np.exp(found.x))


def measures(proba: NDArray[np.float64], y: NDArray[np.int64]) -> dict[str, float]:
    """All measures of one branch."""
    confidence, right = proba.max(axis=1), proba.argmax(axis=1) == y
    return {
        "ece": expected_calibration_error(confidence, right),
        "nll": float(log_loss(y, proba, labels=np.arange(proba.shape[1]))),
        "auroc": float(roc_auc_score(right, confidence)),
        "aurc": area_under_risk_coverage(confidence, right),
        "accuracy": float(right.mean()),
    }


def judge(cache: str, backbone: str, targets: str, seed: int) -> dict[str, Any]:
    """Measures of each branch before and after a temperature, (n_branches,) each."""
    given = read(cache, backbone, Setting("none", targets, "conv"), seed)
    found: dict[str, Any] = {"temperature": []}
    for k in range(len(given.test) - 1):
        temperature = find_temperature(given.calibration[k], given.calibration_y)
        found["temperature"].append(temperature)
        logs = np.log(np.maximum(given.test[k], 1e-30))
        scaled = softmax(logs / temperature, axis=1)
        for when, proba in (("before", given.test[k]), ("after", scaled)):
            for name, value in measures(proba, given.test_y).items():
                found.setdefault(f"{name}_{when}", []).append(value)
    return found


def show(record: dict[str, Any]) -> None:
    """Print the means over branches, for each kind of target."""
    for backbone, found in record["backbones"].items():
        for name in MEASURES:
            for when in ("before", "after"):
                means = [np.mean(found[t][f"{name}_{when}"]["mean"]) for t in TARGETS]
                print(f"{backbone} {name} {when:6}", *np.round(means, 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    backbones = {}
    for backbone in BACKBONES:
        backbones[backbone] = {}
        for targets in TARGETS:
            each = [judge(args.cache, backbone, targets, seed) for seed in args.seeds]
            backbones[backbone][targets] = {
                name: mean_and_sd([one[name] for one in each]) for name in each[0]
            }
    record = {"what": __doc__.splitlines()[0], "environment": environment()}
    record |= {"settings": settings_record() | {"bins": BINS}, "backbones": backbones}
    write_json("uncertainty", record)
    show(record)


if __name__ == "__main__":
    main()
