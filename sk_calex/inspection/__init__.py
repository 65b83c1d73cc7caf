"""What became of a cascade: reports in numbers, displays as pictures."""

from __future__ import annotations

from ._plot import (
    AlignmentDisplay,
    CascadeDisplay,
    ExitDepthDisplay,
    ThresholdDisplay,
)
from ._reports import alignment_report, exit_report

__all__ = [
    "AlignmentDisplay",
    "CascadeDisplay",
    "ExitDepthDisplay",
    "ThresholdDisplay",
    "alignment_report",
    "exit_report",
]
