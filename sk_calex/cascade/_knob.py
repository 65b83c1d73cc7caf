"""The parameter that moves a cascade, beside an exit rule that has one of its own."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from sk_calex.calibration._exit_rule import ExitPolicy

__all__ = ["check_is_rule", "check_knob", "default_of", "hand_on_drop"]


def check_is_rule(calibrator: Any) -> None:
    """Refuse what is neither an exit rule nor None."""
    if calibrator is not None and not isinstance(calibrator, ExitPolicy):
        raise TypeError(
            f"calibrator must be a SurvivorThresholdCalibrator, another rule of "
            f"sk_calex.policies or None, got {calibrator!r}. The Oracle is no rule: it "
            "needs the labels."
        )


def check_knob(cascade: Any) -> None:
    """Refuse a knob that was set although the calibrator decides without it."""
    given = cascade.calibrator
    if given is None:
        return
    name, value = cascade.knob, getattr(cascade, cascade.knob)
    if cascade._knob_moves(given):
        own = getattr(given, given.knob)
        if not (_is_default(given, given.knob) or np.array_equal(own, value)):
            raise ValueError(
                f"calibrator has {given.knob}={own!r} and the cascade has "
                f"{name}={value!r}, which is the one that counts. Set {name} of the "
                "cascade, and leave that of the calibrator at its default."
            )
    elif not _is_default(cascade, name):
        raise ValueError(
            f"{name}={value!r} has no effect, since calibrator={given!r} decides: set "
            f"{cascade._knob_name} instead, and leave {name} at its default, "
            f"{default_of(cascade, name)!r}."
        )


def hand_on_drop(cascade: Any, rule: ExitPolicy) -> None:
    """Give a rule whose knob is "auto" the drop that its cascade allows."""
    allowed, own = cascade.max_accuracy_drop, rule.max_accuracy_drop
    of_rule = own != ExitPolicy.max_accuracy_drop
    of_cascade = allowed != ExitPolicy.max_accuracy_drop
    if of_rule and of_cascade and own != allowed:
        raise ValueError(
            f"calibrator has max_accuracy_drop={own!r} and the cascade has "
            f"{allowed!r}. Set that of the cascade, and leave the calibrator's at its "
            "default."
        )
    if not of_rule:
        rule.max_accuracy_drop = allowed


def default_of(estimator: Any, name: str) -> Any:
    """Return the default of a parameter of an estimator's class."""
    return inspect.signature(type(estimator)).parameters[name].default


def _is_default(estimator: Any, name: str) -> bool:
    return np.array_equal(getattr(estimator, name), default_of(estimator, name))
