"""The cascade: branches trained in order, an exit rule, and early exits."""

from __future__ import annotations

from ._alignment import (
    SurvivorAlignment,
    effective_sample_size,
    exit_probability,
    survivor_weights,
)
from ._cascade import CascadeClassifier
from ._costs import measure_costs

__all__ = [
    "CascadeClassifier",
    "SurvivorAlignment",
    "effective_sample_size",
    "exit_probability",
    "measure_costs",
    "survivor_weights",
]
