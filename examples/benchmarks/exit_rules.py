"""Exit rules side by side on the same branches, judged on rows that fitted none.

The branches of ablation.py (all rows alike, soft targets) on two backbones, three
seeds; each stage answering alone, and as an ensemble with those before it. Rules, and
ensembles, are fitted on four fifths of the calibration rows and judged on the fifth, in
turn: that is the validation by which a default is chosen. On test they are fitted on
all calibration rows; the points of the front, and the operating point for an aim, are
those that validation chose.

    python examples/benchmarks/exit_rules.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import numpy as np
from _branch_sets import BACKBONES, KEPT, SEEDS, BranchSet, read, settings_record
from _common import environment, write_json
from _fronts import accuracy_at
from _rule_curves import mean_and_sd
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from sk_calex import SurvivorThresholdCalibrator
from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._ensembles import Ensembles
from sk_calex.policies import (
    LearnedGate,
    OptimalStopping,
    Quota,
)

REDUCTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
AIMS = (0.005, 0.01)
AUTOMATIC = ("local margins", "optimal stopping")  # whose knob "auto" is tried
FOLDS = 5
THRESHOLDS = np.r_[np.linspace(0.3, 0.9, 16), 1 - np.geomspace(0.09, 1e-4, 16)]
PRICES = np.r_[0, np.geomspace(0.01, 1.2, 29)]
RULES = {
    "local margins": (
        SurvivorThresholdCalibrator(margin_mode="local"),
        np.r_[-0.02, -0.01, np.linspace(0, 0.1, 21), 0.12, 0.14, 0.17, 0.2, 0.3, 0.6],
    ),
    "quota": (Quota(), np.geomspace(0.15, 10, 30)),
    "learned gate": (LearnedGate(), THRESHOLDS),
    "optimal stopping": (OptimalStopping(), PRICES),
}


class Outcomes(NamedTuple):
    """What became of rows at each value of a knob, of shape (n_values, n_rows)."""

    right: NDArray[np.bool_]
    cost: NDArray[np.float64]
    last: NDArray[np.bool_]  # (n_rows,) of the last stage
    plain: float  # accuracy of the backbone, without an ensemble

    def curve(self) -> dict[str, Any]:
        """One part of a run, as `_fronts` takes it."""
        return {
            "flops_reduction": (1 - self.cost.mean(axis=1)).tolist(),
            "accuracy": self.right.mean(axis=1).tolist(),
        }

    def drop(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Accuracy lost against the last stage at each value, and standard errors."""
        lost = self.last.astype(float) - self.right
        return lost.mean(axis=1), lost.std(axis=1, ddof=1) / np.sqrt(lost.shape[1])


def follow(
    rule: Any,
    values: NDArray[np.float64],
    given: tuple[NDArray[np.float64], NDArray[np.int64]],
    judged: tuple[NDArray[np.float64], NDArray[np.int64]],
    costs: NDArray[np.float64],
    ensemble: bool,
) -> Outcomes:
    """Fit a rule at each value on some rows, and follow it on others."""
    (chosen, y), (proba, truth) = given, judged
    plain = float((proba[-1].argmax(axis=1) == truth).mean())
    if ensemble:
        means = Ensembles.fit(chosen, y.astype(np.intp), np.ones(len(y)))
        chosen, proba = means.combine(chosen), means.combine(proba)
    known, table = (StageTable.from_probabilities(p) for p in (chosen, proba))
    everyone = np.arange(len(truth))
    right, cost = [], []
    for value in values:
        fitted = clone(rule).set_params(**{rule.knob: value})
        depth = fitted.fit(known, y, costs=costs).depth(table)
        right.append(table.predicted[depth, everyone] == truth)
        cost.append(costs[depth])
    last = table.predicted[-1] == truth
    return Outcomes(np.array(right), np.array(cost), last, plain)


def cross_fitted(
    rule: Any,
    values: NDArray[np.float64],
    branches: BranchSet,
    ensemble: bool,
    seed: int,
) -> Outcomes:
    """Outcomes of the calibration rows, each by a rule that was fitted without it."""
    proba, y = branches.calibration, branches.calibration_y
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(y, y)
    parts = [
        follow(
            rule,
            values,
            (proba[:, a], y[a]),
            (proba[:, b], y[b]),
            branches.costs,
            ensemble,
        )
        for a, b in folds
    ]
    plain = float((proba[-1].argmax(axis=1) == y).mean())
    joined = (
        np.concatenate(each, axis=-1)
        for each in zip(*(p[:3] for p in parts), strict=True)
    )
    return Outcomes(*joined, plain)


def operating_point(
    validation: Outcomes, test: Outcomes, aim: float
) -> dict[str, float]:
    """The point that saves most while its validated drop stays within the aim.

    "Within" is with one standard error. Beside it what the best value of the knob
    saves on test: at the aim, and at the loss that was made.
    """
    drop, error = validation.drop()
    saved = 1 - validation.cost.mean(axis=1)
    allowed = np.flatnonzero((drop + error <= aim) & (saved > 0))
    test_drop, test_error = test.drop()
    test_saved = 1 - test.cost.mean(axis=1)

    def best(most: float) -> float:
        within = test_drop <= most + 1e-12
        return float(max(test_saved[within].max(initial=0.0), 0.0))

    if not len(allowed):
        none = {"drop": 0.0, "drop_from_backbone": 0.0, "saved": 0.0, "test_error": 0.0}
        return none | {"best_at_aim": best(aim), "best_at_drop": best(0.0)}
    i = allowed[saved[allowed].argmax()]
    return {
        "drop": float(test_drop[i]),
        "drop_from_backbone": float(test.plain - test.right[i].mean()),
        "saved": float(test_saved[i]),
        "test_error": float(test_error[i]),
        "best_at_aim": best(aim),
        "best_at_drop": best(max(float(test_drop[i]), 0.0)),
    }


def automatic_point(
    rule: Any, test: Outcomes, branches: BranchSet, ensemble: bool
) -> dict[str, float]:
    """What the knob "auto", the default, loses and saves on test.

    It is found by the rule itself on the calibration rows, at its default of half a
    point. Beside it the most that a value of the knob saves on test within that loss,
    and within what it lost.
    """
    chosen, y = branches.calibration, branches.calibration_y
    proba, truth = branches.test, branches.test_y
    if ensemble:
        means = Ensembles.fit(chosen, y.astype(np.intp), np.ones(len(y)))
        chosen, proba = means.combine(chosen), means.combine(proba)
    table = StageTable.from_probabilities(proba)
    fitted = clone(rule).set_params(**{rule.knob: "auto"})
    known = StageTable.from_probabilities(chosen)
    depth = fitted.fit(known, y, costs=branches.costs).depth(table)
    right = table.predicted[depth, np.arange(len(truth))] == truth
    lost = test.last.astype(float) - right
    found = {
        "knob": float(getattr(fitted, f"{rule.knob}_")),
        "drop": float(lost.mean()),
        "test_error": float(lost.std(ddof=1) / np.sqrt(len(lost))),
        "saved": float(1 - branches.costs[depth].mean()),
    }
    saved = 1 - test.cost.mean(axis=1)
    aim = float(fitted.max_accuracy_drop)
    for name, most in (("best_at_aim", aim), ("best_at_drop", max(found["drop"], 0.0))):
        best = saved[test.drop()[0] <= most + 1e-12].max(initial=0.0)
        if found["drop"] <= most:  # the value that was found is one of them
            best = max(best, found["saved"])
        found[name] = float(best)
    return found


def judge(branches: BranchSet, seed: int) -> dict[str, Any]:
    """Every rule on one set of branches, alone and with the ensemble."""
    found: dict[str, Any] = {}
    rows = (branches.calibration, branches.calibration_y)
    tests = (branches.test, branches.test_y)
    for ensemble in (False, True):
        for name, (rule, values) in RULES.items():
            validation = cross_fitted(rule, values, branches, ensemble, seed)
            test = follow(rule, values, rows, tests, branches.costs, ensemble)
            runs = {}
            for part, judged in (("validation", validation), ("test", test)):
                run = {"seed": seed, "backbone_accuracy": judged.plain}
                run |= {"validation": validation.curve(), "test": judged.curve()}
                runs[part] = accuracy_at([run], REDUCTIONS)
            label = f"{name}, ensemble" if ensemble else name
            found[label] = {
                **{f"{part}_accuracy": value for part, value in runs.items()},
                "points": {
                    str(aim): operating_point(validation, test, aim) for aim in AIMS
                },
            }
            if name in AUTOMATIC:
                point = automatic_point(rule, test, branches, ensemble)
                found[label]["points"]["auto"] = point
    return found


def summary(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and deviations over seeds, for each rule."""
    out: dict[str, Any] = {}
    for name in seeds[0]:
        each = [found[name] for found in seeds]
        out[name] = {
            key: mean_and_sd([one[key] for one in each])
            for key in ("validation_accuracy", "test_accuracy")
        }
        out[name]["points"] = {
            aim: {
                key: mean_and_sd([one["points"][aim][key] for one in each])
                for key in each[0]["points"][aim]
            }
            for aim in each[0]["points"]
        }
    return out


def show(record: dict[str, Any]) -> None:
    """Print accuracy at the savings on validation and test, and the chosen points."""
    for backbone, found in record["backbones"].items():
        for part in ("validation", "test"):
            print(f"\n{backbone}, {part}, at {REDUCTIONS}")
            for rule, result in found.items():
                means = result[f"{part}_accuracy"]["mean"]
                cells = ("  -  " if v is None else f"{100 * v:5.2f}" for v in means)
                print(f"  {rule:28}", *cells)
        for aim in (*map(str, AIMS), "auto"):
            print(f"\n{backbone}, aim {aim}")
            for rule, result in found.items():
                each = result["points"].get(aim, {}).items()
                cells = (f"{key} {100 * v['mean']:5.2f}" for key, v in each)
                print(f"  {rule:28}", *cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    args = parser.parse_args()
    record = {"what": __doc__.splitlines()[0], "environment": environment()}
    record |= {"settings": settings_record() | {"branches": KEPT.name}}
    record |= {"reductions": REDUCTIONS, "aims": AIMS, "folds": FOLDS}
    record["knobs"] = {n: v.round(5).tolist() for n, (_, v) in RULES.items()}
    record["backbones"] = {
        backbone: summary(
            [judge(read(args.cache, backbone, KEPT, seed), seed) for seed in args.seeds]
        )
        for backbone in BACKBONES
    }
    write_json("exit_rules", record)
    show(record)


if __name__ == "__main__":
    main()
