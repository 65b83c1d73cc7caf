"""Choosing the operating point: curves, scorers, refit rules, searches."""

from __future__ import annotations

from ._curves import DEFAULT_MARGINS as DEFAULT_MARGINS
from ._curves import margin_curve, operating_curve

__all__ = ["margin_curve", "operating_curve"]
