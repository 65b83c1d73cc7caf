"""When a branch is sure enough: what stages answer, and thresholds from a margin."""

from __future__ import annotations

from ._answers import StageAnswer, StageTable
from ._calibrator import SurvivorThresholdCalibrator
from ._thresholds import class_precision, precision_bars
from ._warnings import CalibrationWarning

__all__ = [
    "CalibrationWarning",
    "StageAnswer",
    "StageTable",
    "SurvivorThresholdCalibrator",
    "class_precision",
    "precision_bars",
]
