"""Choosing the operating point: curves, scorers, refit rules, searches."""

from __future__ import annotations

from ._curves import DEFAULT_MARGINS as DEFAULT_MARGINS
from ._curves import margin_curve, operating_curve, pareto_front
from ._margin_search import MarginSearchCV
from ._refit import best_within, cheapest_within
from ._risk_control import (
    ExitRiskController,
    accuracy_drop_bound,
    paired_drop_p_value,
)
from ._scorers import accuracy_at_flops_scorer, flops_reduction_scorer
from ._taps import select_taps

__all__ = [
    "ExitRiskController",
    "MarginSearchCV",
    "accuracy_at_flops_scorer",
    "accuracy_drop_bound",
    "best_within",
    "cheapest_within",
    "flops_reduction_scorer",
    "margin_curve",
    "operating_curve",
    "paired_drop_p_value",
    "pareto_front",
    "select_taps",
]
