"""Frozen torch classifiers made cheaper by calibrated early exits."""

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._layout import FeatureArray, TapLayout
from sk_calex.backbone._suggest import suggest_taps
from sk_calex.branches._branches import BranchClassifier, PrototypePoolingClassifier
from sk_calex.calibration._calibrator import SurvivorThresholdCalibrator
from sk_calex.calibration._thresholds import class_precision, precision_bars
from sk_calex.cascade._alignment import (
    SurvivorAlignment,
    effective_sample_size,
    exit_probability,
    survivor_weights,
)
from sk_calex.cascade._cascade import CascadeClassifier
from sk_calex.cascade._costs import measure_costs
from sk_calex.inspection._drift import drift_report
from sk_calex.inspection._monitor import ExitMonitor
from sk_calex.inspection._plot import (
    AlignmentDisplay,
    CascadeDisplay,
    ExitDepthDisplay,
    MonitorDisplay,
    ThresholdDisplay,
)
from sk_calex.inspection._reports import alignment_report, exit_report
from sk_calex.model_selection import (
    ExitRiskController,
    MarginSearchCV,
    accuracy_at_flops_scorer,
    accuracy_drop_bound,
    best_within,
    cheapest_within,
    flops_reduction_scorer,
    margin_curve,
    operating_curve,
    paired_drop_p_value,
    pareto_front,
    select_taps,
)
from sk_calex.store import FeatureStore
from sk_calex.utils._saving import load
from sk_calex.utils._versions import show_versions

__version__ = "0.1.0"

__all__ = [
    "AlignmentDisplay",
    "BranchClassifier",
    "CascadeClassifier",
    "CascadeDisplay",
    "ExitDepthDisplay",
    "ExitMonitor",
    "ExitRiskController",
    "FeatureArray",
    "FeatureStore",
    "FrozenBackbone",
    "MarginSearchCV",
    "MonitorDisplay",
    "PrototypePoolingClassifier",
    "SurvivorAlignment",
    "SurvivorThresholdCalibrator",
    "TapLayout",
    "ThresholdDisplay",
    "accuracy_at_flops_scorer",
    "accuracy_drop_bound",
    "alignment_report",
    "best_within",
    "cheapest_within",
    "class_precision",
    "drift_report",
    "effective_sample_size",
    "exit_probability",
    "exit_report",
    "flops_reduction_scorer",
    "load",
    "margin_curve",
    "measure_costs",
    "operating_curve",
    "paired_drop_p_value",
    "pareto_front",
    "precision_bars",
    "select_taps",
    "show_versions",
    "suggest_taps",
    "survivor_weights",
]
