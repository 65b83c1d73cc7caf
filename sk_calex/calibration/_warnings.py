"""A warning where calibration rows are too few to choose thresholds from."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._exits import CalibrationSet
from sk_calex.utils._warn import warn_caller

__all__ = ["CalibrationWarning", "warn_of_few_rows", "warn_without_exits"]

# With fewer rows than this many times `min_support`, one class in two hardly finds a
# threshold: not all its rows are confident.
_ENOUGH = 3
_SHOWN = 5


class CalibrationWarning(UserWarning):
    """Warn that calibration rows are few, or that no class can exit early.

    Notes
    -----
    The limit of three times `min_support` rows for each class is our definition.

    Examples
    --------
    >>> import warnings
    >>> from sk_calex.calibration import CalibrationWarning
    >>> warnings.simplefilter("ignore", CalibrationWarning)
    """


def warn_of_few_rows(rule: Any, given: CalibrationSet, classes: NDArray[Any]) -> None:
    """Warn, with the numbers, where a fitted rule had too few rows to be fitted on.

    Parameters
    ----------
    rule : ExitPolicy
        The fitted rule.
    given : CalibrationSet
        What it was fitted on.
    classes : ndarray of shape (n_classes,)
        Labels of the classes.
    """
    least = float(getattr(rule, "min_support", 0))
    total = float(given.weight.sum())
    remedy = (
        "Hold out more rows (cv), give more data, lower min_support, or let them share "
        "a threshold (rare_classes='shared' of the calibrator)."
    )
    if total < least:
        _warn(
            f"the calibration rows have a total weight of {total:g}, less than "
            f"min_support={least:g}, so that no class can exit at any branch. {remedy}"
        )
        return
    weight = np.bincount(given.labels, given.weight, len(classes))
    thin = np.flatnonzero((weight > 0) & (weight < _ENOUGH * least))
    few = ""
    if len(thin):
        thin = thin[np.argsort(weight[thin], kind="stable")]
        shown = ", ".join(
            f"{classes.tolist()[c]!r}: {weight[c]:g}" for c in thin[:_SHOWN]
        )
        few = (
            f"{len(thin)} of {len(classes)} classes have fewer calibration rows than "
            f"{_ENOUGH} times min_support={least:g} ({shown}"
            f"{', ...' if len(thin) > _SHOWN else ''})"
        )
    if few and np.any(rule.thresholds_ < np.inf):
        exits = np.isfinite(rule.thresholds_).any(axis=0).sum()
        _warn(
            f"{few}: their thresholds are rough, or they never exit; {exits} of "
            f"{len(classes)} classes may exit at some branch. {remedy}"
        )
    else:
        warn_without_exits(rule, given, few)


def warn_without_exits(rule: Any, given: CalibrationSet, few: str = "") -> None:
    """Warn where no class can exit at any branch, unless the rule has said why.

    Parameters
    ----------
    rule : ExitPolicy
        The fitted rule.
    given : CalibrationSet
        What it was fitted on.
    few : str, default=""
        What is to be said of few rows, too.
    """
    used = getattr(rule, f"{rule.knob}_", 0.0)
    if isinstance(used, float) and np.isnan(used):
        return  # "auto" found none, and the rule has said why
    if np.all(rule.thresholds_ == np.inf):
        _warn(
            f"no class can exit at any branch: no threshold satisfies {rule!r} on "
            f"{np.count_nonzero(given.weight)} calibration rows"
            f"{'; ' + few if few else ''}. Allow more (a larger margin, a lower "
            "threshold), train better branches, or calibrate on more rows."
        )


def _warn(message: str) -> None:
    warn_caller(message, CalibrationWarning)
