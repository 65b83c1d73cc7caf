"""Settings with a name, as parameters of a `CascadeClassifier`."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from sk_calex.branches._branches import PrototypePoolingClassifier
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.cascade._alignment import SurvivorAlignment
from sk_calex.policies import OptimalStopping

__all__ = ["PAPER_SETTINGS", "RECIPE_SETTINGS"]

PAPER_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "branch": PrototypePoolingClassifier(temperature=4.0),
        "targets": "soft",
        "alpha": 1.0,
        "alignment": SurvivorAlignment("soft", margin=0.2, mixture=1.0),
        "margin": 0.2,
        "calibrator": SurvivorThresholdCalibrator(margin_mode="relative"),
    }
)
"""Settings of the paper: ``CascadeClassifier(backbone, **PAPER_SETTINGS)``.

Prototype-augmented branches that imitate the backbone alone at T = 4, trained on the
survivors of the margin 0.20, and class-precision margins on survivors at that margin
(Aperstein & Apartsin 2026, canonical point). What the paper does not state is our
definition, see Methods.
"""

RECIPE_SETTINGS: Mapping[str, Any] = MappingProxyType(
    {
        "alignment": "none",
        "alpha": "auto",
        "ensemble": True,
        "calibrator": OptimalStopping("auto"),
    }
)
"""What saves most on validation: ``CascadeClassifier(backbone, **RECIPE_SETTINGS)``.

Branches that each learn soft targets or labels, whichever is better on the calibration
samples, stages that answer together, and optimal stopping for half a point at most
(our definition; figures on the page "The recipe on several backbones"). Best with six
taps from the first blocks on and narrow heads. The defaults have thresholds by class,
which can be looked at and set; these settings have none, and every head always runs.
"""
