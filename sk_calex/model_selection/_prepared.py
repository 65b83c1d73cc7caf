"""A cascade made ready for a search: its features made once, its taps cut."""

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
from sk_calex.cascade._base import BaseCascade
from sk_calex.utils._validation import note_features

from ._estimators import cascade_in, knob_of

__all__ = ["Prepared", "moved", "taps_of"]


@dataclass(frozen=True)
class Prepared:
    """An unfitted estimator, and X in the form in which folds are trained on it.

    A cascade on samples is trained on their features, which the backbone makes once for
    all folds and for the cascade that is kept. `backbone` is that backbone, fitted;
    None where X is as it was given.
    """

    estimator: Any
    X: Any
    backbone: FrozenBackbone | None

    @classmethod
    def of(cls, estimator: Any, X: Any) -> Prepared:
        """Make the features where X holds samples for a backbone."""
        if isinstance(estimator, BaseCascade) and estimator._staged():
            backbone = estimator._fitted_backbone(X)
            return cls(estimator, backbone.transform(X), backbone)
        return cls(estimator, X, None)

    def at(self, value: Any = None) -> Any:
        """An unfitted clone, at a value of the knob."""
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
            note_features(fitted, self.backbone)
        return fitted

    def of_taps(self, taps: Sequence[int], layout: TapLayout, X: Any) -> Prepared:
        """The same on some of the taps; `X` is what was given to the search.

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
        whole = self.estimator._given_backbone()
        pool = whole.pool
        if isinstance(pool, Mapping):
            pool = {name: pool[name] for name in names if name in pool}
        chosen = [whole.taps[k] for k in taps]
        new.set_params(backbone=clone(whole).set_params(taps=chosen, pool=pool))
        backbone = clone(new.backbone).fit(X)
        features = taps_of(self.X, layout, names)
        return Prepared(new, FeatureArray.wrap(features, backbone.layout_), backbone)


def taps_of(X: Any, layout: TapLayout, names: Sequence[str]) -> Any:
    """The columns of some taps and of the outputs; they know their layout."""
    if list(names) == list(layout.names):
        return X
    columns = layout.select_columns(names)
    return FeatureArray.wrap(np.asarray(X)[:, columns], layout.select(names))


def moved(estimator: Any, value: Any) -> Any:
    """A copy of a fitted estimator at another value of the knob."""
    if isinstance(estimator, Pipeline):
        steps = list(estimator.steps)
        steps[-1] = (steps[-1][0], moved(steps[-1][1], value))
        pipeline = copy.copy(estimator)
        pipeline.steps = steps
        return pipeline
    if isinstance(estimator, FrozenEstimator):
        return moved(estimator.estimator, value)
    if hasattr(estimator, "best_estimator_"):
        if not hasattr(estimator, "_input_of_best"):
            return moved(estimator.best_estimator_, value)
        search = copy.copy(estimator)  # it may cut columns before it asks its best one
        search.best_estimator_ = moved(estimator.best_estimator_, value)
        return search
    cascade = copy.copy(estimator)
    if cascade.policy is None:
        return cascade.set_operating_point(value)
    policy = clone(cascade.policy)
    return cascade.set_policy(policy.set_params(**{policy.knob: value}))
