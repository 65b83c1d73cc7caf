"""Exit rules over what the branches say, usable with any cascade.

A rule gives every sample a score at every branch and exits where the score reaches the
threshold of the predicted class. Rules are fitted on what the stages say of calibration
samples, without training a branch: see `CascadeClassifier(policy=...)`, or fit one on
cached probabilities of shape (n_stages, n_samples, n_classes).
"""

from __future__ import annotations

from ._base import ClassThresholds, ExitPolicy, first_exits
from ._base import Policy as Policy  # a protocol: for annotations
from ._learned import LearnedGate, RegretPriced
from ._oracle import Oracle
from ._simple import EntropyThreshold, OwnGate, Patience, SharedThreshold
from ._stopping import OptimalStopping
from ._survivors import PrecisionThresholds, Quota

__all__ = [
    "ClassThresholds",
    "EntropyThreshold",
    "ExitPolicy",
    "LearnedGate",
    "OptimalStopping",
    "Oracle",
    "OwnGate",
    "Patience",
    "PrecisionThresholds",
    "Quota",
    "RegretPriced",
    "SharedThreshold",
    "first_exits",
]
