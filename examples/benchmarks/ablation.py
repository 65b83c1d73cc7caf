"""What each component of CalexNet adds, on its own and last, on two backbones.

Components: weights of the training rows (none, soft, hard, either from out-of-fold
scores), rows that calibrate (survivors or all), targets (argmax, labels, soft with
labels, soft alone), head (convolutions, the same with prototypes, linear). Each is
switched on alone where none of the others is, and changed alone where all are. Accuracy
at given savings: points are chosen on the calibration rows and read off on test, mean
and deviation over seeds of the branches; differences are taken within a seed. The same
within the calibration rows, one half for the other: that is the validation by which
defaults are chosen. Beside it, how far the weighted training rows of each branch are
from the test samples that reach it.

A run that was cut goes on where it stopped. What the record says of more seeds than
there are sets for now stays as it was.

    python examples/benchmarks/ablation.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from _branch_sets import (
    BACKBONES,
    KEPT,
    N_FIRST,
    SEEDS,
    SETTINGS,
    BackboneData,
    BranchSet,
    Setting,
    load_data,
    path_of,
    read,
    settings_record,
    train,
)
from _common import environment, read_json, write_json
from _fronts import accuracy_at
from _rule_curves import Judged, mean_and_sd
from sklearn.model_selection import StratifiedKFold

from sk_calex import SurvivorThresholdCalibrator

REDUCTIONS = (0.2, 0.3, 0.4, 0.5, 0.6)
VALIDATION = "local, validation"
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
    "linear head": Case(Setting("none", "argmax", "linear"), "all"),
}
ALL_BUT_ONE = {
    "all, conv head": FULL,
    "no weights": Case(Setting("none", "soft", "conv"), "survivors"),
    "hard weights": Case(Setting("hard", "soft", "conv"), "survivors"),
    "soft weights, out of fold": Case(
        Setting("soft_out_of_fold", "soft", "conv"), "survivors"
    ),
    "hard weights, out of fold": Case(
        Setting("hard_out_of_fold", "soft", "conv"), "survivors"
    ),
    "calibrated on all": Case(FULL.setting, "all"),
    "argmax targets": Case(Setting("soft", "argmax", "conv"), "survivors"),
    "prototype head": Case(Setting("soft", "soft", "prototype"), "survivors"),
    "linear head": Case(Setting("soft", "soft", "linear"), "survivors"),
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


def halves(given: BranchSet) -> list[Judged]:
    """Calibration rows alone: one half in their place, the other in that of test."""
    y = given.calibration_y
    folds = StratifiedKFold(2, shuffle=True, random_state=0).split(y, y)
    return [
        Judged(
            given._replace(
                calibration=given.calibration[:, a],
                calibration_y=y[a],
                test=given.calibration[:, b],
                test_y=y[b],
            )
        )
        for a, b in folds
    ]


def ablation(cache: str, backbone: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Accuracy at the savings for each case and gate, and what each change makes."""
    found: dict[Case, dict[str, list[Any]]] = {}
    used, n_test = {}, {}
    for case in dict.fromkeys([*ON_ITS_OWN.values(), *ALL_BUT_ONE.values()]):
        used[case] = trained_seeds(cache, backbone, case.setting, seeds)
        found[case] = {key: [] for key in (*GATES, VALIDATION)}
        for seed in used[case]:
            given = read(cache, backbone, case.setting, seed)
            n_test[case] = len(given.test_y)
            for gate, margins in GATES.items():
                rule = SurvivorThresholdCalibrator(
                    margin_mode=gate, calibrate_on=case.calibrate_on
                )
                run = Judged(given).curve(rule, margins, seed)
                found[case][gate].append(accuracy_at([run], REDUCTIONS))
            rule.set_params(margin_mode="local")
            runs = [
                half.curve(rule, GATES["local"][::2], seed) for half in halves(given)
            ]
            each = [accuracy_at([run], REDUCTIONS) for run in runs]
            found[case][VALIDATION].append(np.mean(each, axis=0))
    record: dict[str, Any] = {}
    for name, cases in (("on_its_own", ON_ITS_OWN), ("all_but_one", ALL_BUT_ONE)):
        first = next(iter(cases.values()))
        record[name] = {}
        for change, case in cases.items():
            both = [seed for seed in used[case] if seed in used[first]]
            if not both:
                continue
            record[name][change] = {"seeds": both, "test_rows": n_test[case]}
            for key in (*GATES, VALIDATION):
                one, other = (
                    np.array([found[c][key][used[c].index(seed)] for seed in both])
                    for c in (case, first)
                )
                record[name][change][key] = {
                    "accuracy": mean_and_sd(one),
                    "difference": mean_and_sd(one - other),
                    "mean_difference": mean_and_sd(np.nanmean(one - other, axis=1)),
                }
    return record


def alignment(cache: str, backbone: str, seeds: Sequence[int]) -> dict[str, Any]:
    """Distances of training rows from survivors, and how survivors are served.

    The accuracy on survivors is that of each branch on the test samples that reach it
    in the set without weights, so that all settings are asked about the same samples.
    """
    record = {}
    reach = {
        seed: _reaching(Judged(read(cache, backbone, KEPT, seed)))
        for seed in trained_seeds(cache, backbone, KEPT, seeds)
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
        right = {s: each.test.argmax(axis=2) == each.test_y for s, each in sets.items()}
        if set(used) <= set(reach):
            served = [
                [right[seed][k, rows].mean() for k, rows in enumerate(reach[seed])]
                for seed in used
            ]
            record[setting.name]["accuracy_on_survivors"] = mean_and_sd(served)
        record[setting.name] |= {
            "test_rows": len(sets[used[0]].test_y),
            "stage_accuracy": mean_and_sd([r.mean(axis=1) for r in right.values()]),
            "fit_cpu_seconds": mean_and_sd([each["seconds"] for each in training], 1),
            "heads_flops": mean_and_sd([each.costs[-1] - 1 for each in sets.values()]),
        }
        if setting.weights != "none":
            record[setting.name] |= at_automatic_margin(list(sets.values()))
    return record


def at_automatic_margin(sets: Sequence[BranchSet]) -> dict[str, Any]:
    """Distances over the classes where the margin is the default, not the weights'."""
    margins, distances, plain, counts = [], [], [], []
    for each in sets:
        judged = Judged(each)
        rule = judged.fit(SurvivorThresholdCalibrator(margin_mode="local"), "auto")
        depth = rule.depth(judged.tables["test"])
        reaching = [each.test_y[depth >= k] for k in range(len(each.costs) - 1)]
        n_classes = each.test.shape[2]
        shares = np.array(
            [np.bincount(y, minlength=n_classes) / max(len(y), 1) for y in reaching]
        )
        margins.append(rule.margin_)
        counts.append([len(y) for y in reaching])
        for found, key in ((distances, "class_training"), (plain, "class_unweighted")):
            found.append(np.abs(each.training[key] - shares).sum(axis=1) / 2)
    return {
        "automatic_margin": mean_and_sd(margins),
        "n_survivors_automatic": mean_and_sd(counts),
        "tv_class_automatic": mean_and_sd(distances),
        "tv_class_automatic_unweighted": mean_and_sd(plain),
    }


def _reaching(judged: Judged) -> list[Any]:
    """Test rows that reach each branch at the default margin of the weights."""
    rule = judged.fit(SurvivorThresholdCalibrator(margin_mode="local"), 0.05)
    depth = rule.depth(judged.tables["test"])
    return [depth >= k for k in range(judged.tables["test"].n_stages - 1)]


def keep_longer(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What was found now, or before where that has more seeds.

    Of as many seeds, what was found before and not now stays.
    """
    kept: dict[str, Any] = {}
    for part, found in now.items():
        old = before.get(part, {})
        kept[part] = dict(old)
        for name, new in found.items():
            seeds = old[name]["seeds"] if name in old else []
            if len(seeds) <= len(new["seeds"]):
                kept[part][name] = (old[name] if seeds == new["seeds"] else {}) | new
    return kept


def show(record: dict[str, Any]) -> None:
    """Print means: accuracy and gain at the savings, then what each branch has."""
    for backbone, found in record["backbones"].items():
        for name in ("on_its_own", "all_but_one"):
            for gate in (*GATES, VALIDATION):
                print(f"\n{backbone}, {name}, {gate} margins")
                for change, result in found[name].items():
                    if gate not in result:  # of an earlier record
                        continue
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
                if measure in each:
                    print(f"  {setting:28}", *each[measure]["mean"])


def train_sets(cache: str, backbones: Sequence[str], seeds: Sequence[int]) -> None:
    """Train what is missing; a run that is cut leaves whole seeds."""
    data: dict[str, BackboneData] = {}
    for settings in (SETTINGS[:N_FIRST], SETTINGS[N_FIRST:]):
        for seed, backbone in itertools.product(seeds, backbones):
            for setting in settings:
                if path_of(cache, backbone, setting, seed).exists():
                    continue
                if backbone not in data:
                    data[backbone] = load_data(backbone, cache)
                path = train(cache, backbone, setting, seed, data[backbone])
                print(path.stem, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument(
        "--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES)
    )
    parser.add_argument(
        "--judge-only", action="store_true", help="only the sets that are there"
    )
    args = parser.parse_args()
    if not args.judge_only:
        train_sets(args.cache, args.backbones, args.seeds)
    record = {"what": __doc__.splitlines()[0], "environment": environment()}
    record |= {"settings": settings_record(), "reductions": REDUCTIONS}
    record |= {"margins": {gate: m.round(3).tolist() for gate, m in GATES.items()}}
    before = read_json("ablation").get("backbones", {})
    record["backbones"] = before | {
        backbone: keep_longer(
            before.get(backbone, {}),
            ablation(args.cache, backbone, args.seeds)
            | {"alignment": alignment(args.cache, backbone, args.seeds)},
        )
        for backbone in args.backbones
    }
    write_json("ablation", record)
    show(record)


if __name__ == "__main__":
    main()
