"""Exit rules over what the branches answer, usable with any cascade.

A rule gives every sample a score at every branch and exits where the score reaches the
threshold of the predicted class. Rules are fitted on what the stages answer to
calibration samples, without training a branch: give one as
``CascadeClassifier(calibrator=...)``, or fit it on cached probabilities of shape
(n_stages, n_samples, n_classes). `SurvivorThresholdCalibrator` is such a rule, too.
"""

from __future__ import annotations

from sk_calex.calibration._exit_rule import ExitPolicy, first_exits
from sk_calex.calibration._exit_rule import Policy as Policy  # for annotations

from ._learned import LearnedGate, RegretPriced
from ._oracle import Oracle
from ._quota import Quota
from ._simple import (
    ClassThresholds,
    EntropyThreshold,
    OwnGate,
    Patience,
    SharedThreshold,
)
from ._stopping import OptimalStopping

__all__ = [
    "ClassThresholds",
    "EntropyThreshold",
    "ExitPolicy",
    "LearnedGate",
    "OptimalStopping",
    "Oracle",
    "OwnGate",
    "Patience",
    "Quota",
    "RegretPriced",
    "SharedThreshold",
    "first_exits",
]
