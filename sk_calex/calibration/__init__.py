"""When a branch is sure enough: thresholds per class from the rows that reach it."""

from __future__ import annotations

from ._calibrator import (
    SurvivorThresholdCalibrator,
    class_precision,
    precision_bars,
)

__all__ = ["SurvivorThresholdCalibrator", "class_precision", "precision_bars"]
