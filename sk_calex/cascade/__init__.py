"""The cascade: branches trained in order, thresholds, and the run that exits early."""

from __future__ import annotations

from ._alignment import effective_sample_size, exit_probability, survivor_weights
from ._cascade import CascadeClassifier

__all__ = [
    "CascadeClassifier",
    "effective_sample_size",
    "exit_probability",
    "survivor_weights",
]
