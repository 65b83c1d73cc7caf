"""Operating points for front.py: chosen on validation, then read off the test set.

A variant is an exit rule on the answers of a fit, swept over its knob. Each value is
judged on validation rows that fitted neither the rule nor the ensemble (five folds).
What is chosen there is written down, and only then are the labels of the test set read.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from _front_fits import Answers, Fit
from _front_tasks import TestLabels
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold

from sk_calex import pareto_front
from sk_calex.calibration import CalibrationWarning, StageTable
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.cascade._ensembles import Ensembles
from sk_calex.utils._flops import depth_costs

CUTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
AIMS = (0.0, 0.005, 0.01)
FOLDS = 5


@dataclass(frozen=True)
class Variant:
    """An exit rule on the answers of a fit.

    Parameters
    ----------
    rule
        The rule; what of its knob is tried is `values`.
    values
        Values of the knob, from strict to lax.
    ensemble
        Whether stages answer together with those before them.
    has_auto
        Whether the value that the rule finds by itself is judged, too.
    """

    rule: Any
    values: NDArray[np.float64]
    ensemble: bool = False
    has_auto: bool = False


class Path(NamedTuple):
    """What is answered at each value of a knob, and at which cost; no labels."""

    codes: NDArray[np.int16]  # (n_values, n_samples)
    cost: NDArray[np.float64]  # (n_values, n_samples), over that of the backbone
    plain: NDArray[np.int16]  # (n_samples,) answers of the backbone alone

    @property
    def saved(self) -> NDArray[np.float64]:
        """FLOPs saved at each value."""
        return 1 - self.cost.mean(axis=1)

    def accuracy(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Accuracy at each value."""
        return (self.codes == y).mean(axis=1)


@dataclass(frozen=True)
class Situation:
    """Rows that rules are fitted on, and rows that they are followed on.

    Parameters
    ----------
    known
        Answers and labels of the rows to fit on.
    table
        Answers to the rows to follow.
    plain
        What the backbone alone answers there.
    costs
        Of each depth, over that of the backbone.
    """

    known: CalibrationSet
    table: StageTable
    plain: NDArray[np.int16]
    costs: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        given: Answers,
        y: NDArray[Any],
        judged: Answers,
        costs: NDArray[np.float64],
        ensemble: bool,
    ) -> Situation:
        """Let the stages answer alone or together; weights are fitted on `given`."""
        reference = given.proba[-1].argmax(axis=1)
        plain = judged.proba[-1].argmax(axis=1).astype(np.int16)
        labels, ones = y.astype(np.intp), np.ones(len(y))
        if ensemble:
            means = Ensembles.fit(given.proba, labels, ones)
            given, judged = (Answers(means.combine(a.proba)) for a in (given, judged))
        known = CalibrationSet(
            given.table(), labels, ones, costs, reference, plain_cost=1.0
        )
        return cls(known, judged.table(), plain, costs)

    def follow(self, rule: Any, values: Any) -> tuple[Path, list[Any]]:
        """Fit a rule at each value of its knob, and follow it."""
        everyone = np.arange(self.table.n_samples)
        codes, cost, rules = [], [], []
        for value in values:
            fitted = clone(rule).set_params(**{rule.knob: value})
            with warnings.catch_warnings():
                # "auto" says so where nothing exits.
                warnings.simplefilter("ignore", CalibrationWarning)
                rules.append(fitted.fit_on(self.known))
            depth = fitted.depth(self.table)
            codes.append(self.table.predicted[depth, everyone].astype(np.int16))
            cost.append(self.costs[depth])
        return Path(np.array(codes), np.array(cost), self.plain), rules


class Judged:
    """A fit whose answers rules are fitted on: in folds, and for the test set."""

    def __init__(self, fit: Fit, y: NDArray[Any], ensemble: bool, seed: int) -> None:
        costs = depth_costs(fit.stages, fit.heads) / fit.stages.sum()
        given = fit.calibration
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(y, y)
        self._parts = [
            (
                Situation.of(given.take(a), y[a], given.take(b), costs, ensemble),
                b,
            )
            for a, b in folds
        ]
        self.test = Situation.of(given, y, fit.test, costs, ensemble)

    def cross_fitted(self, variant: Variant) -> Path:
        """Follow each validation row by rules that were fitted without it."""
        paths = [s.follow(variant.rule, variant.values)[0] for s, _ in self._parts]
        order = np.argsort(np.concatenate([b for _, b in self._parts]))
        joined = (
            np.concatenate(each, axis=-1)[..., order]
            for each in zip(*paths, strict=True)
        )
        return Path(*joined)


def choose(validation: Path, y: NDArray[Any], test: Path) -> dict[str, Any]:
    """Choose operating points by validation labels, and by what they cost on test.

    Returns
    -------
    points : dict
        "front": values of the knob that are efficient on validation. "cuts": for each
        saving two neighbours on that front and the share of the second one, by which
        exactly so much is saved on test; -1 is the plain backbone; None beyond the
        cheapest. "aims": for each loss against the backbone the value that saves most
        on validation within it, without a standard error and with one.
    """
    saved, accuracy = validation.saved, validation.accuracy(y)
    plain = validation.plain == y
    _, first = np.unique(np.column_stack([saved, accuracy]), axis=0, return_index=True)
    front = first[pareto_front(saved[first], accuracy[first])]
    front = front[(saved[front] > 0) & (test.saved[front] > 0)]
    front = front[np.argsort(test.saved[front], kind="stable")]
    aims = {}
    lost = plain.astype(float) - (validation.codes == y)
    error = lost.std(axis=1, ddof=1) / np.sqrt(len(y))
    for name, margin in (("", 0.0), ("+se", 1.0)):
        for aim in AIMS:
            drop = lost.mean(axis=1) + margin * error
            allowed = np.flatnonzero((drop <= aim + 1e-9) & (saved > 0))
            best = allowed[saved[allowed].argmax()] if len(allowed) else None
            aims[f"{aim}{name}"] = None if best is None else int(best)
    return {
        "front": front.tolist(),
        "cuts": [_mixture(cut, front, test.saved) for cut in CUTS],
        "validated_cuts": [_mixture(cut, front, saved) for cut in CUTS],
        "aims": aims,
    }


def _mixture(
    cut: float, front: NDArray[np.intp], saved: NDArray[np.float64]
) -> tuple[int, int, float] | None:
    """Two neighbours on a front, and the share of the second, that save `cut`."""
    ends = [(0.0, -1), *sorted((float(saved[i]), int(i)) for i in front)]
    for (low, i), (high, j) in pairwise(ends):
        if low <= cut <= high and high > low:
            return i, j, (cut - low) / (high - low)
    return None


def _mixed(
    mixture: tuple[int, int, float] | None, accuracy: NDArray[Any], plain: float
) -> float | None:
    if mixture is None:
        return None
    i, j, share = mixture
    first = plain if i < 0 else accuracy[i]
    return float((1 - share) * first + share * accuracy[j])


def judge(
    variants: dict[str, tuple[Variant, Fit]],
    y: NDArray[Any],
    sealed: TestLabels,
    seed: int,
) -> dict[str, Any]:
    """Choose the points of all variants on validation, then look at the test labels.

    Parameters
    ----------
    variants
        By name, the variant and the fit whose answers it takes.
    y
        Labels of the validation rows, as class codes.
    sealed
        Labels of the test set, as class codes.
    seed
        Of the folds.

    Returns
    -------
    record : dict
        For each variant what it does on validation and on test.
    """
    found, chosen = {}, {}
    ready: dict[tuple[int, bool], Judged] = {}
    for name, (variant, fit) in variants.items():
        key = (id(fit), variant.ensemble)
        if key not in ready:
            ready[key] = Judged(fit, y, variant.ensemble, seed)
        validation = ready[key].cross_fitted(variant)
        test, _ = ready[key].test.follow(variant.rule, variant.values)
        auto, rules = None, []
        if variant.has_auto:
            auto, rules = ready[key].test.follow(variant.rule, ["auto"])
        found[name] = (validation, test, auto, rules)
        chosen[name] = choose(validation, y, test)
    sealed.freeze(json.dumps(chosen, sort_keys=True))
    truth = sealed.read()
    return {
        name: _report(variants[name][0], chosen[name], y, truth, *found[name])
        for name in variants
    }


def _report(
    variant: Variant,
    points: dict[str, Any],
    y: NDArray[Any],
    truth: NDArray[Any],
    validation: Path,
    test: Path,
    auto: Path | None,
    rules: list[Any],
) -> dict[str, Any]:
    accuracy, validated = test.accuracy(truth), validation.accuracy(y)
    plain = float((test.plain == truth).mean())
    plain_validated = float((validation.plain == y).mean())
    record: dict[str, Any] = {
        "plain": plain,
        "validation_at_cuts": [
            _mixed(cut, validated, plain_validated) for cut in points["validated_cuts"]
        ],
        "test_at_cuts": [_mixed(cut, accuracy, plain) for cut in points["cuts"]],
        "aims": {},
        "validation_curve": _rounded(validation.saved, validated),
        "test_curve": _rounded(test.saved, accuracy),
        "front": points["front"],
    }
    for aim, i in points["aims"].items():
        most = float(aim.removesuffix("+se"))
        record["aims"][aim] = {
            "knob": None if i is None else float(variant.values[i]),
            "saved": 0.0 if i is None else float(test.saved[i]),
            "lost": 0.0 if i is None else float(plain - accuracy[i]),
            "validated_saved": 0.0 if i is None else float(validation.saved[i]),
            "on_the_front": _most_saved(points["front"], test, accuracy, plain, most),
        }
    if auto is not None:
        record["auto"] = _automatic(rules[0], auto, test, accuracy, truth)
    return record


def _rounded(*columns: NDArray[Any]) -> list[list[float]]:
    return [column.round(5).tolist() for column in columns]


def _most_saved(
    front: list[int], test: Path, accuracy: NDArray[Any], plain: float, most: float
) -> float:
    """Most that the frozen front saves on test while it loses at most so much."""
    saved = np.r_[0.0, test.saved[front]]
    right = np.r_[plain, accuracy[front]]
    grid = np.linspace(0, saved[-1], 2001)
    return float(grid[np.interp(grid, saved, right) >= plain - most - 1e-12].max())


def _automatic(
    rule: Any, auto: Path, test: Path, accuracy: NDArray[Any], truth: NDArray[Any]
) -> dict[str, Any]:
    """What the knob "auto" found, expected on validation, and did on test."""
    knob = float(getattr(rule, f"{rule.knob}_"))
    path = getattr(rule, f"{rule.knob}_path_")
    plain = (test.plain == truth).astype(float)
    lost = plain - (auto.codes[0] == truth)
    saved, drop = float(auto.saved[0]), float(lost.mean())
    found: dict[str, float | None] = {
        "knob": None if np.isnan(knob) else knob,
        "saved": saved,
        "lost": drop,
        "test_error": float(lost.std(ddof=1) / np.sqrt(len(lost))),
        "validated_saved": 0.0,
        "validated_lost": 0.0,
    }
    tried = np.flatnonzero(path[rule.knob] == knob)
    if len(tried):
        found["validated_saved"] = float(1 - path["mean_cost"][tried[0]])
        found["validated_lost"] = float(path["accuracy_drop"][tried[0]])
    drops = plain.mean() - accuracy
    for name, most in (("aim", rule.max_accuracy_drop), ("loss", max(drop, 0.0))):
        best = float(test.saved[drops <= most + 1e-12].max(initial=0.0))
        found[f"best_at_{name}"] = max(best, saved if drop <= most else 0.0)
    best = found["best_at_loss"]
    found["share_of_best"] = saved / best if best > 0 else None
    return found
