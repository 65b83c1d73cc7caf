"""What became of a cascade: reports in numbers, displays as pictures."""

from __future__ import annotations

from ._drift import drift_report
from ._monitor import ExitMonitor
from ._plot._alignment import AlignmentDisplay
from ._plot._cascade import CascadeDisplay
from ._plot._depth import ExitDepthDisplay
from ._plot._monitor import MonitorDisplay
from ._plot._thresholds import ThresholdDisplay
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
