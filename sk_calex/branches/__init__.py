"""Classifiers on taps: torch heads behind `fit` and `predict_proba`."""

from __future__ import annotations

from ._branches import BranchClassifier, PrototypePoolingClassifier
from ._defaults import BranchCostWarning

__all__ = ["BranchClassifier", "BranchCostWarning", "PrototypePoolingClassifier"]
