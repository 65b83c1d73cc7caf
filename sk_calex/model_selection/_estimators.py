"""The cascade in an estimator: its knob, and how a search trains and moves it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._layout import FeatureArray, TapLayout
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._inputs import (
    fit_backbone,
    note_precision,
    reads_samples,
    unwrap_backbone,
)
from sk_calex.cascade._seen_rows import digest_rows
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    OwnGate,
    Patience,
    Quota,
    RegretPriced,
    SharedThreshold,
)
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._validation import note_features

__all__ = [
    "Prepared",
    "cascade_in",
    "default_values",
    "input_of",
    "knob_of",
    "moved",
    "never_exit",
    "taps_of",
    "without_exits",
]

# Denser where little is given up; strict enough for margins that hold for a mean.
SEARCH_MARGINS = (
    *(-1.0, -0.6, -0.4, -0.3, -0.2, -0.15, -0.1, -0.05, -0.02),
    *(0.0, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
)


def cascade_in(estimator: Any) -> Any:
    """Return the cascade that an estimator is, ends in, or has found."""
    if isinstance(estimator, BaseCascade):
        return estimator
    if isinstance(estimator, FrozenEstimator):
        return cascade_in(estimator.estimator)
    if isinstance(estimator, Pipeline):
        return cascade_in(estimator.steps[-1][1])
    if hasattr(estimator, "best_estimator_"):
        return cascade_in(estimator.best_estimator_)
    raise TypeError(
        f"estimator must be a cascade, a pipeline that ends in one or a fitted search "
        f"for one, got {type(estimator).__name__}. Give a CascadeClassifier or one of "
        "sk_calex.baselines."
    )


def input_of(estimator: Any, X: Any) -> Any:
    """Transform X to what the cascade in a fitted estimator takes."""
    if isinstance(estimator, FrozenEstimator):
        return input_of(estimator.estimator, X)
    if isinstance(estimator, Pipeline):
        if len(estimator.steps) > 1:
            X = estimator[:-1].transform(X)
        return input_of(estimator.steps[-1][1], X)
    if hasattr(estimator, "best_estimator_"):
        if getattr(estimator, "_cuts_input", False):
            X = estimator._input_of_best(X)
        return input_of(estimator.best_estimator_, X)
    return X


def knob_of(cascade: Any) -> str:
    """Return the parameter that moves a cascade, named as `set_params` takes it."""
    return str(cascade._knob_name)


def default_values(cascade: Any) -> list[float]:
    """Return values of a fitted cascade's knob that span its curve (our choice)."""
    rule = cascade.calibrator_
    if isinstance(rule, SurvivorThresholdCalibrator):
        return list(SEARCH_MARGINS)
    if isinstance(rule, SharedThreshold | OwnGate | LearnedGate):
        fine = [0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999, 1.0]
        return [*(np.arange(4, 19) / 20).tolist(), *fine]
    if isinstance(rule, EntropyThreshold):
        shares = [0.005, 0.01, 0.02, 0.05, 0.1, *(np.arange(3, 20) / 20).tolist()]
        return [share * float(np.log(len(cascade.classes_))) for share in shares]
    if isinstance(rule, Patience):
        return list(range(cascade.layout_.n_taps + 1))
    if isinstance(rule, Quota):
        return np.geomspace(1 / 16, 16, 21).tolist()
    if isinstance(rule, RegretPriced):
        return [0.0, *np.geomspace(0.01, 10, 20).tolist()]
    if isinstance(rule, OptimalStopping):
        return [0.0, *np.geomspace(0.01, 1.2, 30).tolist()]
    raise ValueError(
        f"no values of {knob_of(cascade)!r} are known for {rule!r}. Give them as "
        "margins=[...] of a search or values=[...] of a scorer or curve."
    )


@dataclass(frozen=True)
class Prepared:
    """An unfitted estimator, and X in the form in which folds are trained on it.

    A cascade on samples is trained on their features, which the backbone makes once for
    all folds and for the final cascade. `backbone` is that backbone, fitted;
    None where X is as it was given.
    """

    estimator: Any
    X: Any
    backbone: FrozenBackbone | None
    samples: Any = None

    @classmethod
    def of(cls, estimator: Any, X: Any) -> Prepared:
        """Make the features where X holds samples for a backbone."""
        if isinstance(estimator, BaseCascade) and reads_samples(estimator):
            backbone = fit_backbone(estimator, X)
            return cls(estimator, backbone.transform(X), backbone, X)
        return cls(estimator, X, None)

    def at(self, value: Any = None) -> Any:
        """Return an unfitted clone, at a value of the knob."""
        new = clone(self.estimator)
        cascade = cascade_in(new)
        if value is not None:
            cascade.set_params(**{knob_of(cascade): value})
        if self.backbone is not None:
            cascade.set_params(input="features", backbone=self.backbone)
        elif isinstance(self.estimator, BaseCascade):
            # One that is fitted knows what the taps of features are, and their MACs.
            new.set_params(backbone=self.estimator.backbone)
        return new

    def refit(self, value: Any, y: Any, params: Mapping[str, Any]) -> Any:
        """Train on everything; the result takes samples where the estimator does."""
        fitted = self.at(value).fit(self.X, y, **params)
        if self.backbone is not None:
            fitted.set_params(input="samples", backbone=clone(self.estimator.backbone))
            fitted.backbone_ = self.backbone
            fitted.row_digests_ = digest_rows(self.samples)  # not of features
            note_precision(fitted)
            note_features(fitted, self.backbone)
        return fitted

    def of_taps(self, taps: Sequence[int], layout: TapLayout, X: Any) -> Prepared:
        """Return the same on some of the taps; `X` is what was given to the search.

        Features are cut, not made again; of the smaller backbone only the stages are.
        """
        names = [layout.names[k] for k in taps]
        new = clone(self.estimator)
        if isinstance(new.branch, list):
            new.set_params(branch=[new.branch[k] for k in taps])
        if np.ndim(new.margin) == 1:
            new.set_params(margin=[new.margin[k] for k in taps])
        if self.backbone is None:
            return Prepared(new, taps_of(self.X, layout, names), None)
        whole = unwrap_backbone(self.estimator)
        assert whole is not None  # X held samples
        pool = whole.pool
        if isinstance(pool, Mapping):
            pool = {name: pool[name] for name in names if name in pool}
        chosen = [whole.taps[k] for k in taps]
        new.set_params(backbone=clone(whole).set_params(taps=chosen, pool=pool))
        backbone = clone(new.backbone).fit(X)
        features = taps_of(self.X, layout, names)
        features = _with_layout(features, backbone.layout_)
        return Prepared(new, features, backbone, X)


def _with_layout(features: Any, layout: TapLayout) -> Any:
    if isinstance(features, DecodedFeatures):
        return features.select(range(layout.n_taps + 1), layout)
    return FeatureArray.wrap(features, layout)


def taps_of(X: Any, layout: TapLayout, names: Sequence[str]) -> Any:
    """Select the columns of some taps and of the outputs, with their layout."""
    if list(names) == list(layout.names):
        return X
    if isinstance(X, DecodedFeatures):
        kept = [k for k, name in enumerate(layout.names) if name in set(names)]
        return X.select([*kept, layout.n_taps], layout.select(names))
    columns = layout.select_columns(names)
    return FeatureArray.wrap(np.asarray(X)[:, columns], layout.select(names))


def moved(estimator: Any, value: Any) -> Any:
    """Copy a fitted estimator to another value of the knob; None lets none exit."""
    if value is None:
        return without_exits(estimator)
    cascade = copy.copy(cascade_in(estimator)).set_operating_point(value)
    return with_cascade(estimator, cascade)


def without_exits(estimator: Any) -> Any:
    """Copy a fitted estimator so that the last stage answers every sample."""
    cascade = copy.copy(cascade_in(estimator))
    cascade.calibrator_ = never_exit(len(cascade.branches_), len(cascade.classes_))
    return with_cascade(estimator, cascade)


def never_exit(n_branches: int, n_classes: int) -> SharedThreshold:
    """Return a fitted rule under which no sample exits."""
    rule = SharedThreshold(np.inf)
    rule.thresholds_ = np.full((n_branches, n_classes), np.inf)
    rule.threshold_ = np.inf
    return rule


def with_cascade(estimator: Any, cascade: BaseCascade) -> Any:
    """Copy a fitted estimator with another cascade in the place of its own."""
    if isinstance(estimator, Pipeline):
        steps = list(estimator.steps)
        steps[-1] = (steps[-1][0], with_cascade(steps[-1][1], cascade))
        pipeline = copy.copy(estimator)
        pipeline.steps = steps
        return pipeline
    if isinstance(estimator, FrozenEstimator):
        return with_cascade(estimator.estimator, cascade)
    if hasattr(estimator, "best_estimator_"):
        best = with_cascade(estimator.best_estimator_, cascade)
        if not getattr(estimator, "_cuts_input", False):
            return best
        search = copy.copy(
            estimator
        )  # it may cut columns before its best estimator predicts
        search.best_estimator_ = best
        return search
    return cascade
