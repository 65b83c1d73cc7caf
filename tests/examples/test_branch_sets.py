"""Branches shared by benchmarks: trained once, kept, and judged by rules."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.model_selection import PredefinedSplit
from torch import nn

from sk_calex import FrozenBackbone, SurvivorThresholdCalibrator

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("_branch_sets")
    monkeypatch.setattr(module, "EPOCHS", 1)
    monkeypatch.setattr(module, "BACKBONES", {"small": (4, 4)})
    return module


def module_of(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module(name)


def small_data(sets: ModuleType):
    """Forty-eight images of two classes that differ in brightness."""
    rng = np.random.default_rng(0)
    y = np.tile([0, 1], 24)
    images = rng.integers(120, size=(48, 3, 8, 8)) + 100 * y[:, None, None, None]
    images = images.astype(np.uint8)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(4 * 64, 2),
    )
    backbone = FrozenBackbone(module, ["1", "3"]).fit(images)
    X = backbone.transform(images)
    fold = np.r_[np.full(24, -1), np.zeros(12, int)]
    return sets.BackboneData(
        sets.Part(X[:36], y[:36]),
        PredefinedSplit(fold),
        sets.Part(X[36:], y[36:]),
        images[36:],
        backbone,
    )


def test_settings_have_names_of_their_own(sets: ModuleType) -> None:
    names = [setting.name for setting in sets.SETTINGS]
    assert len(set(names)) == len(names)
    assert sets.KEPT in sets.SETTINGS


@pytest.mark.filterwarnings("ignore::sk_calex.branches._defaults.BranchCostWarning")
@pytest.mark.filterwarnings("ignore::sk_calex.calibration.CalibrationWarning")
def test_a_set_is_read_as_it_was_trained(sets: ModuleType, tmp_path: Path) -> None:
    data, cache = small_data(sets), str(tmp_path / "features")
    path = sets.train(cache, "small", sets.KEPT, 0, data)
    branches = sets.read(cache, "small", sets.KEPT, 0)
    assert branches.calibration.shape == (3, 12, 2)
    assert branches.test.shape == (3, 12, 2)
    assert branches.test_y.tolist() == data.test.y.tolist()
    logits = np.asarray(data.test.X)[:, -2:]
    assert (branches.test[-1].argmax(axis=1) == logits.argmax(axis=1)).all()
    assert branches.training["effective_sample_size"].tolist() == [24, 24]
    written = path.stat().st_mtime_ns
    assert sets.train(cache, "small", sets.KEPT, 0, data) == path
    assert path.stat().st_mtime_ns == written  # trained once


def random_set(sets: ModuleType, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=(2, 200))
    proba = rng.dirichlet([1, 1, 1], size=(2, 3, 200))
    # Later stages lean more towards the truth.
    lean = np.array([0.3, 0.5, 0.7])[:, None, None]
    parts = [
        (1 - lean) * p + lean * np.eye(3)[t] for p, t in zip(proba, y, strict=True)
    ]
    costs = np.array([0.3, 0.6, 1.1])
    return sets.BranchSet(parts[0], y[0], parts[1], y[1], costs, {})


def test_a_rule_is_judged_as_a_loop_does(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = random_set(sets)
    judged = module_of("_rule_curves", monkeypatch).Judged(branches)
    rule = judged.fit(SurvivorThresholdCalibrator(margin_mode="local"), 0.1)
    right, cost = [], []
    for i, truth in enumerate(branches.test_y):
        depth = 2
        for k in range(2):
            said = branches.test[k, i]
            if said.max() >= rule.thresholds_[k, said.argmax()]:
                depth = k
                break
        right.append(branches.test[depth, i].argmax() == truth)
        cost.append(branches.costs[depth])
    saved, accuracy = judged.point(rule, "test")
    assert saved == pytest.approx(1 - np.mean(cost))
    assert accuracy == pytest.approx(np.mean(right))


def test_cross_fitted_rows_never_fit_their_own_rule(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the labels of one fold changes no decision about its rows."""
    rules = module_of("exit_rules", monkeypatch)
    branches = random_set(sets)
    rule, values = SurvivorThresholdCalibrator(margin_mode="local"), np.array([0.1])
    first = rules.cross_fitted(rule, values, branches, ensemble=True, seed=0)
    folds = rules.StratifiedKFold(rules.FOLDS, shuffle=True, random_state=0)
    y = branches.calibration_y
    held = [b for _, b in folds.split(y, y)]
    changed = y.copy()
    changed[held[0]] = changed[held[0]][::-1]
    # The same folds, whatever the labels now say.
    monkeypatch.setattr(rules.StratifiedKFold, "split", lambda *_: folds_of(y, held))
    again = rules.cross_fitted(
        rule, values, branches._replace(calibration_y=changed), ensemble=True, seed=0
    )
    n = len(held[0])
    assert np.array_equal(first.cost[:, :n], again.cost[:, :n])
    assert not np.array_equal(first.cost[:, n:], again.cost[:, n:])


def folds_of(y: np.ndarray, held: list[np.ndarray]):
    for rows in held:
        yield np.setdiff1d(np.arange(len(y)), rows), rows


def test_operating_point_stays_within_the_aim_by_one_standard_error(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = module_of("exit_rules", monkeypatch)
    last = np.ones(1000, bool)
    right = np.ones((3, 1000), bool)
    right[1, :4] = False  # loses 0.4 points, +- 0.2
    right[2, :30] = False
    cost = np.repeat([[0.9], [0.7], [0.5]], 1000, axis=1)
    same = rules.Outcomes(right, cost, last, 1.0)
    point = rules.operating_point(same, same, 0.005)
    assert point["saved"] == pytest.approx(0.1)
    assert point["best_at_aim"] == pytest.approx(0.3)
    assert rules.operating_point(same, same, 0.007)["saved"] == pytest.approx(0.3)
    assert rules.operating_point(same, same, 0.04)["saved"] == pytest.approx(0.5)
    costly = same._replace(cost=cost + 0.6)
    assert rules.operating_point(costly, costly, 0.04)["saved"] == 0


@pytest.mark.filterwarnings("ignore::sk_calex.calibration.CalibrationWarning")
def test_automatic_point_is_that_of_the_rule_itself(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = module_of("exit_rules", monkeypatch)
    branches = random_set(sets)
    rule = SurvivorThresholdCalibrator(margin_mode="local")
    rows = (branches.calibration, branches.calibration_y)
    tests = (branches.test, branches.test_y)
    swept = rules.follow(rule, np.array([0.0, 0.6]), rows, tests, branches.costs, False)
    point = rules.automatic_point(rule, swept, branches, False)
    fitted = SurvivorThresholdCalibrator("auto", margin_mode="local")
    fitted.fit(branches.calibration, branches.calibration_y, costs=branches.costs)
    depth = fitted.depth(branches.test)
    answers = branches.test.argmax(axis=2)
    right = answers[depth, np.arange(200)] == branches.test_y
    assert point["saved"] == pytest.approx(1 - branches.costs[depth].mean())
    lost = (answers[-1] == branches.test_y).mean() - right.mean()
    assert point["drop"] == pytest.approx(lost)
    assert point["best_at_drop"] >= point["saved"]


def test_halves_choose_on_one_half_and_judge_the_other(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = module_of("ablation", monkeypatch)
    branches = random_set(sets)
    # Each row is known by its number.
    numbered = branches._replace(calibration_y=np.arange(200) % 3)
    first, second = ablation.halves(numbered)
    n = [len(first.labels[part]) for part in ("calibration", "test")]
    assert sum(n) == 200
    assert first.labels["test"].tolist() == second.labels["calibration"].tolist()
    assert first.labels["calibration"].tolist() == second.labels["test"].tolist()
    told = np.concatenate([one.tables["test"].confidence for one in (first, second)], 1)
    assert sorted(told[0]) == sorted(branches.calibration[0].max(axis=1))


def test_what_was_recorded_of_more_seeds_is_kept(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = module_of("ablation", monkeypatch)
    before = {"part": {"both": {"seeds": [0, 1], "x": 1}, "gone": {"seeds": [0]}}}
    now = {"part": {"both": {"seeds": [0], "x": 2}, "new": {"seeds": [0]}}}
    kept = ablation.keep_longer(before, now)["part"]
    assert set(kept) == {"both", "gone", "new"}
    assert kept["both"]["x"] == 1
    now["part"]["both"]["seeds"] = [0, 1]
    assert ablation.keep_longer(before, now)["part"]["both"]["x"] == 2


def test_corruption_compares_survivors_with_all_rows_within_a_seed(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corruption = module_of("corruption", monkeypatch)
    monkeypatch.setattr(corruption, "SEEDS", (0, 1))
    monkeypatch.setattr(
        corruption, "read", lambda *args: random_set(sets, seed=args[-1])
    )
    monkeypatch.setattr(
        corruption, "corrupted_path", lambda *args: tmp_path / f"{args[-1]}.npz"
    )
    for seed in (0, 1):
        np.savez(tmp_path / f"{seed}.npz", blurred=random_set(sets, seed).test)
    cells = {
        (c["margin_mode"], c["margin"], c["calibrate_on"], c["images"]): c
        for c in corruption.over_seeds("", "small")
    }
    assert len(cells) == 4 * 2 * 2
    one, other = (
        cells["local", 0.05, rows, "blurred"] for rows in ("survivors", "all")
    )
    assert one["drop"]["n"] == 2
    for key in ("drop", "flops_saved"):
        difference = one[key]["mean"] - other[key]["mean"]
        assert one["more_than_all_rows"][key]["mean"] == pytest.approx(
            difference, abs=2e-5
        )


@pytest.mark.filterwarnings("ignore::sk_calex.branches._defaults.BranchCostWarning")
@pytest.mark.filterwarnings("ignore::sk_calex.calibration.CalibrationWarning")
def test_sets_are_asked_about_corrupted_images_once(
    sets: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    corruption = module_of("corruption", monkeypatch)
    data, cache = small_data(sets), str(tmp_path / "features")
    monkeypatch.setattr(corruption, "SEEDS", (0,))
    monkeypatch.setattr(corruption, "N_IMAGES", 8)
    monkeypatch.setattr(corruption, "load_data", lambda *args: data)
    corruption.ask_corrupted(cache, "small")
    path = corruption.corrupted_path(cache, "small", 0)
    with np.load(path) as file:
        assert len(file.files) == 5
        assert {file[name].shape for name in file.files} == {(3, 8, 2)}
    written = path.stat().st_mtime_ns
    corruption.ask_corrupted(cache, "small")
    assert path.stat().st_mtime_ns == written
