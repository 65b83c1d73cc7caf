"""The parameter that moves a cascade along its curve, and values worth trying."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from sk_calex.cascade._base import BaseCascade
from sk_calex.policies import (
    EntropyThreshold,
    LearnedGate,
    OptimalStopping,
    OwnGate,
    Patience,
    PrecisionThresholds,
    Quota,
    RegretPriced,
    SharedThreshold,
)

__all__ = ["cascade_in", "default_values", "input_of", "knob_of"]

# Denser where little is given up; strict enough for margins that hold for a mean.
SEARCH_MARGINS = (
    *(-1.0, -0.6, -0.4, -0.3, -0.2, -0.15, -0.1, -0.05, -0.02),
    *(0.0, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5),
)


def cascade_in(estimator: Any) -> Any:
    """The cascade that an estimator is, ends in, or has found."""
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
    """X as the cascade in a fitted estimator gets it."""
    if isinstance(estimator, FrozenEstimator):
        return input_of(estimator.estimator, X)
    if isinstance(estimator, Pipeline):
        if len(estimator.steps) > 1:
            X = estimator[:-1].transform(X)
        return input_of(estimator.steps[-1][1], X)
    if hasattr(estimator, "best_estimator_"):
        if hasattr(estimator, "_input_of_best"):
            X = estimator._input_of_best(X)
        return input_of(estimator.best_estimator_, X)
    return X


def knob_of(cascade: Any) -> str:
    """Name of the parameter that moves a cascade, as `set_params` takes it."""
    if cascade.policy is not None:
        return f"policy__{cascade.policy.knob}"
    return str(cascade.knob)


def default_values(cascade: Any) -> list[float]:
    """Values of a fitted cascade's knob that span its curve (our choice)."""
    rule = getattr(cascade, "policy_", None)
    if isinstance(rule, PrecisionThresholds) or (
        rule is None and knob_is_margin(cascade)
    ):
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
        "margins=[...] of a search or values=[...] of a scorer."
    )


def knob_is_margin(cascade: Any) -> bool:
    """Whether the cascade moves by its own margin."""
    return knob_of(cascade) == "margin"
