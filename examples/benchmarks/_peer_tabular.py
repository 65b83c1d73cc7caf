"""scikit-fallback's cascade and LightGBM's prediction early stop on cached features."""

from __future__ import annotations

import warnings
from operator import itemgetter
from typing import Any

import numpy as np
from _peers import Clock, Data, costs_of, softmax, stopped_after
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

FALLBACK = "scikit-fallback"
GRID = 15  # thresholds a stage: all triples of them are tried
FREQUENCIES = (1, 2, 5, 10, 20, 50)
MARGINS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)


class Logits(ClassifierMixin, BaseEstimator):
    """The backbone's own answer, read from its columns."""

    def __init__(self, columns: slice) -> None:
        self.columns = columns

    def fit(self, X: Any, y: Any) -> Logits:
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        return softmax(np.asarray(X)[:, self.columns])


class Probabilities(Logits):
    """What a fitted stage said, read from its columns: nothing is computed twice."""

    def predict_proba(self, X: Any) -> np.ndarray:
        return np.asarray(X)[:, self.columns]


def linear_stages(data: Data) -> list[Any]:
    """A logistic regression on each pooled tap, and the backbone."""
    stages = [
        make_pipeline(
            FunctionTransformer(itemgetter((slice(None), columns))),
            StandardScaler(),
            LogisticRegression(max_iter=300),
        )
        for columns in data.columns[:-1]
    ]
    return [*stages, Logits(data.columns[-1])]


def fallback_defaults(data: Data, seed: int) -> list[dict[str, Any]]:
    """Its cascade with linear stages, thresholds chosen by its own cross-validation.

    On the rows that train the stages, 5 folds, ten thresholds a stage. Only the costs,
    which it wants by hand, are given: those of an answer at each depth, since it counts
    for a sample the cost of the estimator that answers. The same stages, read with
    thresholds chosen on the validation rows, are the second record.
    """
    from skfb.ensemble import ThresholdCascadeClassifierCV

    widths = [c.stop - c.start for c in data.columns[:-1]]
    costs = costs_of(data.stage_macs, [20 * width for width in widths])
    with Clock() as clock:
        cascade = ThresholdCascadeClassifierCV(
            linear_stages(data), costs=(costs / data.plain).tolist()
        ).fit(data.fit.pooled, data.fit.target)
    parts = {
        name: (part.pooled, part.target)
        for name, part in (("validation", data.validation), ("test", data.test))
    }
    first = {"method": FALLBACK, **_shared(data, seed, costs), **clock.seconds}
    first["points"] = [{"asked": "nothing (best score / cost)"}]
    first["points"][0] |= _point(cascade, *parts["test"], costs / data.plain)
    first["thresholds"] = [float(t) for t in cascade.best_thresholds_]
    first |= _swept(cascade, parts, costs / data.plain)
    said = {
        name: np.hstack([s.predict_proba(X) for s in cascade.estimators_])
        for name, (X, _) in parts.items()
    }
    second = fallback_on(said, costs, data, seed, f"{FALLBACK}, best setting")
    # The stages were fitted once, for both.
    return [first, {**second, **clock.seconds}]


def fallback_on(
    said: dict[str, np.ndarray], costs: np.ndarray, data: Data, seed: int, method: str
) -> dict[str, Any]:
    """Its search over thresholds, on validation rows, with stages fitted before.

    `said`: the stages' probabilities side by side, of the validation and test rows.
    """
    from skfb.ensemble import ThresholdCascadeClassifierCV

    parts = {
        "validation": (said["validation"], data.validation.target),
        "test": (said["test"], data.test.target),
    }
    rows = np.arange(len(data.validation.target))
    stages = [Probabilities(slice(20 * k, 20 * k + 20)) for k in range(len(costs))]
    with Clock() as clock:
        cascade = ThresholdCascadeClassifierCV(
            stages,
            costs=(costs / data.plain).tolist(),
            cv_thresholds=GRID,
            cv=[(rows, rows)],
        ).fit(*parts["validation"])
    return {
        "method": method,
        **_shared(data, seed, costs),
        **clock.seconds,
        **_swept(cascade, parts, costs / data.plain),
    }


def _shared(data: Data, seed: int, costs: np.ndarray) -> dict[str, Any]:
    import skfb

    return {
        "seed": seed,
        "version": skfb.__version__,
        "depth_mmacs": (costs / 1e6).tolist(),
        "backbone_accuracy": data.backbone_accuracy,
    }


def _point(cascade: Any, X: Any, y: Any, costs: np.ndarray) -> dict[str, float]:
    answer = cascade.predict(X)
    shares = np.asarray(answer.acceptance_rates)
    return {
        "accuracy": float((np.asarray(answer) == y).mean()),
        "flops_reduction": float(1 - shares @ costs),
        "own_count": float(1 - shares @ costs),
    }


def _swept(cascade: Any, parts: dict[str, Any], costs: np.ndarray) -> dict[str, Any]:
    """Ask for the best score at each budget; it does not refit for that."""
    cascade.set_params(strategy="min_score")
    lowest = cascade.mean_cv_costs_.min()
    seen: dict[tuple[float, ...], None] = {}
    for budget in np.linspace(lowest, 1.05, 41):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No threshold configuration")
            cascade.set_params(max_cost=float(budget) + 1e-9)
        seen[tuple(float(t) for t in cascade.best_thresholds_)] = None
    out: dict[str, Any] = {"values": [list(thresholds) for thresholds in seen]}
    for name, (X, y) in parts.items():
        points = []
        for thresholds in seen:
            cascade.set_params(thresholds=list(thresholds))
            points.append(_point(cascade, X, y, costs))
        keys = ("accuracy", "flops_reduction")
        out[name] = {key: [p[key] for p in points] for key in keys}
    return out


def lightgbm(data: Data, seed: int) -> dict[str, Any]:
    """Its classifier on all pooled features; what its early stop saves, in trees.

    The trees come after the whole backbone, so no stop among them saves a MAC of it.
    """
    import lightgbm as lgb

    model = lgb.LGBMClassifier(n_jobs=1, random_state=seed, verbose=-1)
    with Clock() as clock:
        model.fit(data.fit.pooled, data.fit.target)
    rounds = model.n_estimators_
    parts = {"validation": data.validation, "test": data.test}
    leads, answers = {}, {}
    for name, part in parts.items():
        leads[name], answers[name] = _by_round(model.booster_, part.pooled, rounds)
    out: dict[str, Any] = {
        "version": lgb.__version__,
        "seed": seed,
        **clock.seconds,
        "rounds": rounds,
        "trees": model.booster_.num_trees(),
        "backbone_accuracy": data.backbone_accuracy,
        "accuracy": {
            name: float((answers[name][-1] == part.target).mean())
            for name, part in parts.items()
        },
        "grid": [],
    }
    for frequency in FREQUENCIES:
        for margin in MARGINS:
            row: dict[str, Any] = {"frequency": frequency, "margin": margin}
            for name, part in parts.items():
                used = stopped_after(leads[name], frequency, margin)
                said = answers[name][used - 1, np.arange(len(used))]
                row[name] = {
                    "accuracy": float((said == part.target).mean()),
                    "trees_saved": float(1 - used.mean() / rounds),
                }
            out["grid"].append(row)
    default = {"pred_early_stop": True}
    best = _best(out["grid"], out["accuracy"]["validation"])
    chosen = {
        **default,
        "pred_early_stop_freq": best["frequency"],
        "pred_early_stop_margin": best["margin"],
    }
    out["settings"] = {}
    for name, kwargs in (("off", {}), ("default", default), ("best", chosen)):
        with Clock() as clock:
            said = model.predict(data.test.pooled, **kwargs)
        out["settings"][name] = {
            "kwargs": kwargs,
            "accuracy": float((said == data.test.target).mean()),
            "predict_cpu_seconds": clock.seconds["fit_cpu_seconds"],
        }
    used = stopped_after(leads["test"], best["frequency"], best["margin"])
    simulated = answers["test"][used - 1, np.arange(len(used))]
    out["share_as_simulated"] = float((simulated == said).mean())
    out["best"] = best
    return out


def _by_round(booster: Any, X: np.ndarray, rounds: int) -> tuple[Any, Any]:
    """Lead of the best class and that class, after each round."""
    raw, leads, answers = 0.0, [], []
    for k in range(rounds):
        raw = raw + booster.predict(
            X, start_iteration=k, num_iteration=1, raw_score=True
        )
        top = np.partition(raw, -2, axis=1)[:, -2:]
        leads.append(top[:, 1] - top[:, 0])
        answers.append(raw.argmax(axis=1))
    return np.array(leads), np.array(answers)


def _best(grid: list[dict[str, Any]], full: float, drop: float = 0.001) -> Any:
    """What saves most trees at no more than a tenth of a point, on validation."""
    enough = [r for r in grid if r["validation"]["accuracy"] >= full - drop]
    return max(enough or grid, key=lambda r: r["validation"]["trees_saved"])
