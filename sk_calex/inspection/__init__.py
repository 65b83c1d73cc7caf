"""What became of a cascade: reports in numbers, displays as pictures."""

from __future__ import annotations

from ._drift import drift_report
from ._monitor import ExitMonitor
from ._plot import (
    AlignmentDisplay,
    CascadeDisplay,
    ExitDepthDisplay,
    MonitorDisplay,
    ThresholdDisplay,
)
from ._reports import alignment_report, exit_report

__all__ = [
    "AlignmentDisplay",
    "CascadeDisplay",
    "ExitDepthDisplay",
    "ExitMonitor",
    "MonitorDisplay",
    "ThresholdDisplay",
    "alignment_report",
    "drift_report",
    "exit_report",
]
