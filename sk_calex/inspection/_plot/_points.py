"""Operating points from answers, and from the results of a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_calex.calibration._answers import StageTable
from sk_calex.model_selection import operating_curve
from sk_calex.model_selection._estimators import default_values, knob_of
from sk_calex.policies import ExitPolicy, SharedThreshold
from sk_calex.utils._intervals import clopper_pearson
from sk_calex.utils._validation import check_finite, check_sample_weight

__all__ = [
    "curve_of_probabilities",
    "knob_values",
    "numbers_of",
    "points_in_per_cent",
    "points_of_cv_results",
    "points_of_predictions",
]


def knob_values(
    cascade: Any, values: Iterable[Any] | None, margins: Iterable[Any] | None
) -> NDArray[Any]:
    """Return the values of the knob to go over, given under one of two names."""
    knob = knob_of(cascade)
    if margins is not None:
        if values is not None:
            raise ValueError("values and margins are two names of the same: give one.")
        if not knob.endswith("margin"):
            raise ValueError(
                f"margins were given, but this {type(cascade).__name__} moves by "
                f"{knob!r}. Give values=[...] of it."
            )
        values = margins
    return np.array(default_values(cascade) if values is None else list(values))


def curve_of_probabilities(
    y_true: ArrayLike,
    probabilities: Any,
    rule: ExitPolicy | None,
    values: Any,
    *,
    backbone_pred: ArrayLike | None,
    **given: Any,
) -> Bunch:
    """Compute the curve that `CascadeDisplay` draws of probabilities of stages."""
    if not isinstance(probabilities, StageTable):
        first = probabilities[0] if len(probabilities) else []
        if np.ndim(first) < 2:
            raise ValueError(
                "depth=None, so y_pred must hold the probabilities of all stages, of "
                "shape (n_stages, n_samples, n_classes); its first entry has shape "
                f"{np.shape(first)}. With labels give the depth of each, too."
            )
    if backbone_pred is not None:
        raise ValueError(
            "backbone_pred was given, but the probabilities of the last stage say what "
            "the backbone answers. Leave it out."
        )
    rule = SharedThreshold() if rule is None else rule
    curve = operating_curve(rule, probabilities, y_true, values, **given)
    curve.value_name = rule.knob
    return curve


def points_of_predictions(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    depth: ArrayLike,
    costs: ArrayLike,
    backbone_cost: float,
    backbone_pred: ArrayLike | None,
    sample_weight: ArrayLike | None,
) -> dict[str, Any]:
    """Compute what `CascadeDisplay` draws of answers and depths."""
    truth = column_or_1d(y_true)
    labels, depths = np.atleast_2d(y_pred), np.atleast_2d(depth)
    prices = column_or_1d(costs).astype(np.float64)
    shapes_fit = labels.shape == depths.shape and labels.shape[1:] == truth.shape
    if not shapes_fit or not labels.size:
        raise ValueError(
            f"y_pred and depth must both have shape (n_points, {len(truth)}), one "
            f"column for each entry of y_true, at least one; got {labels.shape} and "
            f"{depths.shape}. "
            "Stack what predict(X, return_depth=True) gives at each operating point."
        )
    whole = depths.dtype.kind in "iu"
    if not whole or depths.min() < 0 or depths.max() >= len(prices):
        raise ValueError(
            f"depth must hold integers from 0 to {len(prices) - 1}: costs has "
            f"{len(prices)} entries, one a depth. It has dtype {depths.dtype} and goes "
            f"from {depths.min()} to {depths.max()}."
        )
    if not (np.isfinite(prices).all() and prices.min() >= 0 and backbone_cost > 0):
        raise ValueError(
            f"costs={prices} must be finite and not negative, and "
            f"backbone_cost={backbone_cost!r} positive, both in one unit, such as MACs."
        )
    weight = check_sample_weight(sample_weight, truth)
    points: dict[str, Any] = {
        "flops_reduction": 1
        - np.average(prices[depths], axis=1, weights=weight) / backbone_cost,
        "accuracy": np.average(labels == truth, axis=1, weights=weight),
    }
    if backbone_pred is not None:
        plain = column_or_1d(backbone_pred)
        check_consistent_length(plain, truth)
        points["backbone_accuracy"] = float(np.average(plain == truth, weights=weight))
    return points


def points_of_cv_results(
    cv_results: Mapping[str, Any], accuracy: str, flops: str, best_index: int | None
) -> dict[str, Any]:
    """Compute what `CascadeDisplay` draws of the results of a search."""
    right, right_std = _metric(cv_results, accuracy, "accuracy")
    saved, saved_std = _metric(cv_results, flops, "flops_reduction")
    scored = np.isfinite(right) & np.isfinite(saved)  # the rest failed to fit
    if not scored.any():
        raise ValueError("cv_results holds no candidate that was scored: all are NaN.")
    points: dict[str, Any] = {
        "flops_reduction": saved[scored],
        "accuracy": right[scored],
        "flops_reduction_std": saved_std[scored],
        "accuracy_std": right_std[scored],
    }
    if best_index is not None:
        points["operating_point"] = (float(saved[best_index]), float(right[best_index]))
    for key in ("params", "margin"):
        if key in cv_results:
            found = [cv_results[key][i] for i in np.flatnonzero(scored)]
            names = {name for each in found if key == "params" for name in each}
            points["values"] = found
            if len(names) < 2:  # of several, none is the knob
                points["value_name"] = (names or {key}).pop().rpartition("__")[2]
            break
    return points


def _metric(
    results: Mapping[str, Any], name: str, own: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and deviation of a metric, of scikit-learn's searches or of ours."""
    for metric in (f"test_{name}", own):
        if f"mean_{metric}" in results:
            mean, std = results[f"mean_{metric}"], results[f"std_{metric}"]
            return np.asarray(mean, np.float64), np.asarray(std, np.float64)
    start = "mean_test_"
    known = [key.removeprefix(start) for key in results if key.startswith(start)]
    raise ValueError(
        f"cv_results has no metric {name!r}, only {known}. Search with scoring="
        '{"accuracy": "accuracy", "flops": flops_reduction_scorer}, or name the '
        "metrics: accuracy=..., flops=..."
    )


def points_in_per_cent(display: Any) -> Any:
    """Return points, limits and values of a display, from the highest cost on."""
    parts: list[Any] = []
    for what in ("flops_reduction", "accuracy"):
        for suffix in ("", "_std"):
            given = getattr(display, what + suffix)
            if given is None:
                parts.append(None)
                continue
            part = 100 * column_or_1d(given).astype(np.float64)
            check_finite(part, what + suffix, "Leave such points out.")
            parts.append(part)
    check_consistent_length(*(part for part in parts if part is not None))
    x, x_std, y, y_std = parts
    low = high = None
    if y_std is not None:
        low, high = y - y_std, y + y_std
    elif display.n_samples is not None:
        right = y / 100 * display.n_samples
        low, high = 100 * clopper_pearson(right, display.n_samples)
    values = numbers_of(display.values)
    order = np.argsort(np.asarray(x), kind="stable")
    parts = [x, y, x_std, low, high, values]
    return [None if p is None else p[order] for p in parts]


def numbers_of(values: Any) -> NDArray[np.float64] | None:
    """Give the values if each is a number, such as a margin for all branches."""
    if values is None:
        return None
    given = list(values)
    if given and all(isinstance(v, Mapping) and len(v) == 1 for v in given):
        given = [next(iter(v.values())) for v in given]  # of a grid over one parameter
    if not all(isinstance(v, Real) and np.isfinite(float(v)) for v in given):
        return None
    return np.array(given, dtype=np.float64)
