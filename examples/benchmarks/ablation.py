"""What each component of CalexNet adds, on its own and last, on two backbones.

Components: weights of the training rows (none, soft, hard, soft from out-of-fold
scores), rows that calibrate (survivors or all), targets (argmax, labels, soft with
labels, soft alone), head (conv or prototype). Each is switched on alone where none of
the others is, and changed alone where all are. Accuracy at given savings: points are
chosen on the calibration rows and read off on test, mean and deviation over seeds of
the branches; differences are taken within a seed. Beside it, how far the weighted
training rows of each branch are from the test samples that reach it.

    python examples/benchmarks/ablation.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from _branch_sets import (
    BACKBONES,
    KEPT,
    SEEDS,
    SETTINGS,
    Setting,
    load_data,
    path_of,
    read,
    settings_record,
    train,
)
from _common import environment, write_json
from _fronts import accuracy_at
from _rule_curves import Judged, mean_and_sd

from sk_calex import SurvivorThresholdCalibrator

REDUCTIONS = (0.2, 0.3, 0.4, 0.5, 0.6)
GATES = {
    "local": np.r_[-0.02, -0.01, np.linspace(0, 0.3, 31), 0.35, 0.4, 0.6],
    "relative": np.r_[np.linspace(-0.6, 0.3, 31), 0.4, 0.5],
}


class Case(NamedTuple):
    """A set of branches, and which rows calibrate it."""

    setting: Setting
    calibrate_on: str


BASE = Case(Setting("none", "argmax", "conv"), "all")
FULL = Case(Setting("soft", "soft", "conv"), "survivors")
# Name of the change, and the case that differs from the first by it alone.
ON_ITS_OWN = {
    "nothing": BASE,
    "soft weights": Case(Setting("soft", "argmax", "conv"), "all"),
    "hard weights": Case(Setting("hard", "argmax", "conv"), "all"),
    "calibrated on survivors": Case(BASE.setting, "survivors"),
    "soft targets and labels": Case(Setting("none", "soft", "conv"), "all"),
    "soft targets alone": Case(Setting("none", "soft_alone", "conv"), "all"),
    "labels": Case(Setting("none", "labels", "conv"), "all"),
    "prototype head": Case(Setting("none", "argmax", "prototype"), "all"),
}
ALL_BUT_ONE = {
    "all, conv head": FULL,
    "no weights": Case(Setting("none", "soft", "conv"), "survivors"),
    "hard weights": Case(Setting("hard", "soft", "conv"), "survivors"),
    "soft weights, out of fold": Case(
        Setting("soft_out_of_fold", "soft", "conv"), "survivors"
    ),
    "calibrated on all": Case(FULL.setting, "all"),
    "argmax targets": Case(Setting("soft", "argmax", "conv"), "survivors"),
    "prototype head": Case(Setting("soft", "soft", "prototype"), "survivors"),
}
BY_BRANCH = (
    "effective_sample_size",
    "n_survivors",
    "tv_class",
    "tv_class_unweighted",
    "tv_class_noise",
    "tv_confidence",
    "tv_confidence_unweighted",
    "tv_confidence_noise",
)


def trained_seeds(
    cache: str, backbone: str, setting: Setting, seeds: Sequence[int]
) -> list[int]:
    """Those of the seeds whose set is there."""
    return [s for s in seeds if path_of(cache, backbone, setting, s).exists()]


def ablation(cache: str, backbone: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Accuracy at the savings for each case and gate, and what each change makes."""
    found: dict[Case, dict[str, list[Any]]] = {}
    used = {}
    for case in dict.fromkeys([*ON_ITS_OWN.values(), *ALL_BUT_ONE.values()]):
        used[case] = trained_seeds(cache, backbone, case.setting, seeds)
        found[case] = {gate: [] for gate in GATES}
        for seed in used[case]:
            judged = Judged(read(cache, backbone, case.setting, seed))
            for gate, margins in GATES.items():
                rule = SurvivorThresholdCalibrator(
                    margin_mode=gate, calibrate_on=case.calibrate_on
                )
                run = judged.curve(rule, margins, seed)
                found[case][gate].append(accuracy_at([run], REDUCTIONS))
    record: dict[str, Any] = {}
    for name, cases in (("on_its_own", ON_ITS_OWN), ("all_but_one", ALL_BUT_ONE)):
        first = next(iter(cases.values()))
        record[name] = {}
        for change, case in cases.items():
            if not used[case]:
                continue
            same = [used[first].index(seed) for seed in used[case]]
            gain = {
                gate: np.subtract(found[case][gate], np.array(found[first][gate])[same])
                for gate in GATES
            }
            record[name][change] = {"seeds": used[case]} | {
                gate: {
                    "accuracy": mean_and_sd(found[case][gate]),
                    "difference": mean_and_sd(gain[gate]),
                    "mean_difference": mean_and_sd(np.nanmean(gain[gate], axis=1)),
                }
                for gate in GATES
            }
    return record


def alignment(cache: str, backbone: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Distances of training rows from survivors, and how survivors are served.

    The accuracy on survivors is that of each branch on the test samples that reach it
    in the set without weights, so that all settings are asked about the same samples.
    """
    record = {}
    seeds = trained_seeds(cache, backbone, KEPT, seeds)
    reach = {
        seed: _reaching(Judged(read(cache, backbone, KEPT, seed))) for seed in seeds
    }
    for setting in SETTINGS:
        used = trained_seeds(cache, backbone, setting, seeds)
        if not used:
            continue
        sets = {seed: read(cache, backbone, setting, seed) for seed in used}
        training = [each.training for each in sets.values()]
        record[setting.name] = {"seeds": used} | {
            name: mean_and_sd([each[name] for each in training]) for name in BY_BRANCH
        }
        shares = ("class_training", "class_survivors", "class_unweighted")
        if setting in (FULL.setting, Setting("hard", "soft", "conv")):
            record[setting.name] |= {
                name: mean_and_sd([each[name] for each in training]) for name in shares
            }
        served, stages = [], []
        for seed, each in sets.items():
            right = each.test.argmax(axis=2) == each.test_y
            stages.append(right.mean(axis=1))
            served.append([right[k, rows].mean() for k, rows in enumerate(reach[seed])])
        record[setting.name] |= {
            "stage_accuracy": mean_and_sd(stages),
            "accuracy_on_survivors": mean_and_sd(served),
            "fit_cpu_seconds": mean_and_sd([each["seconds"] for each in training], 1),
        }
    return record


def _reaching(judged: Judged) -> list[Any]:
    """Test rows that reach each branch at the default margin of the weights."""
    rule = judged.fit(SurvivorThresholdCalibrator(margin_mode="local"), 0.05)
    depth = rule.depth(judged.tables["test"])
    return [depth >= k for k in range(judged.tables["test"].n_stages - 1)]


def show(record: dict[str, Any]) -> None:
    """Print means: accuracy and gain at the savings, then what each branch has."""
    for backbone, found in record["backbones"].items():
        for name in ("on_its_own", "all_but_one"):
            for gate in GATES:
                print(f"\n{backbone}, {name}, {gate} margins")
                for change, result in found[name].items():
                    accuracy, gain = (
                        " ".join("  -  " if v is None else f"{100 * v:5.2f}" for v in m)
                        for m in (
                            result[gate]["accuracy"]["mean"],
                            result[gate]["difference"]["mean"],
                        )
                    )
                    print(f"  {change:26} {accuracy} | {gain}")
        for measure in (*BY_BRANCH, "stage_accuracy", "accuracy_on_survivors"):
            print(f"\n{backbone}, {measure}")
            for setting, each in found["alignment"].items():
                print(f"  {setting:28}", *each[measure]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--judge-only", action="store_true", help="only the sets that are there"
    )
    args = parser.parse_args()
    record = {"what": __doc__.splitlines()[0], "environment": environment()}
    record |= {"settings": settings_record(), "reductions": REDUCTIONS}
    record |= {"margins": {gate: m.round(3).tolist() for gate, m in GATES.items()}}
    # Seed by seed, so that an interrupted run has whole seeds.
    for seed in args.seeds:
        for backbone in BACKBONES:
            missing = [
                setting
                for setting in SETTINGS
                if not path_of(args.cache, backbone, setting, seed).exists()
            ]
            if not missing or args.judge_only:
                continue
            data = load_data(backbone, args.cache)
            for setting in missing:
                path = train(args.cache, backbone, setting, seed, data)
                print(path.stem, flush=True)
    record["backbones"] = {
        backbone: ablation(args.cache, backbone, args.seeds)
        | {"alignment": alignment(args.cache, backbone, args.seeds)}
        for backbone in BACKBONES
    }
    write_json("ablation", record)
    show(record)


if __name__ == "__main__":
    main()
