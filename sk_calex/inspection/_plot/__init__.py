"""Pictures of what a cascade costs, gets right, and was trained on.

matplotlib is imported where a picture is drawn, so the package works without it.
"""

from __future__ import annotations

from ._alignment import AlignmentDisplay
from ._cascade import CascadeDisplay
from ._depth import ExitDepthDisplay
from ._monitor import MonitorDisplay
from ._thresholds import ThresholdDisplay

__all__ = [
    "AlignmentDisplay",
    "CascadeDisplay",
    "ExitDepthDisplay",
    "MonitorDisplay",
    "ThresholdDisplay",
]
