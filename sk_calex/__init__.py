"""Frozen torch classifiers made cheaper by calibrated early exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_calex.utils._lazy import lazy_names

if TYPE_CHECKING:
    from sk_calex.backbone import (
        FeatureArray,
        FrozenBackbone,
        TapLayout,
        suggest_taps,
    )
    from sk_calex.branches import (
        BranchClassifier,
        PrototypePoolingClassifier,
    )
    from sk_calex.calibration import (
        SurvivorThresholdCalibrator,
        class_precision,
        precision_bars,
    )
    from sk_calex.cascade import (
        CascadeClassifier,
        CascadePrediction,
        OnnxCascade,
        SurvivorAlignment,
        effective_sample_size,
        exit_probability,
        export_onnx,
        measure_costs,
        survivor_weights,
    )
    from sk_calex.inspection import (
        AlignmentDisplay,
        CascadeDisplay,
        ExitDepthDisplay,
        ExitMonitor,
        MonitorDisplay,
        ThresholdDisplay,
        alignment_report,
        drift_report,
        exit_report,
    )
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
else:
    # Imported at first use, so that what needs no torch does not wait for it.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "backbone": [
                "FeatureArray",
                "FrozenBackbone",
                "TapLayout",
                "suggest_taps",
            ],
            "branches": ["BranchClassifier", "PrototypePoolingClassifier"],
            "calibration": [
                "SurvivorThresholdCalibrator",
                "class_precision",
                "precision_bars",
            ],
            "cascade": [
                "CascadeClassifier",
                "CascadePrediction",
                "OnnxCascade",
                "SurvivorAlignment",
                "effective_sample_size",
                "exit_probability",
                "export_onnx",
                "measure_costs",
                "survivor_weights",
            ],
            "inspection": [
                "AlignmentDisplay",
                "CascadeDisplay",
                "ExitDepthDisplay",
                "ExitMonitor",
                "MonitorDisplay",
                "ThresholdDisplay",
                "alignment_report",
                "drift_report",
                "exit_report",
            ],
            "model_selection": [
                "ExitRiskController",
                "MarginSearchCV",
                "accuracy_at_flops_scorer",
                "accuracy_drop_bound",
                "best_within",
                "cheapest_within",
                "flops_reduction_scorer",
                "margin_curve",
                "operating_curve",
                "paired_drop_p_value",
                "pareto_front",
                "select_taps",
            ],
            "store": ["FeatureStore"],
            "utils._saving": ["load"],
            "utils._versions": ["show_versions"],
        },
        folders=("baselines", "datasets", "policies"),
    )

__version__ = "0.1.0"

__all__ = [
    "AlignmentDisplay",
    "BranchClassifier",
    "CascadeClassifier",
    "CascadeDisplay",
    "CascadePrediction",
    "ExitDepthDisplay",
    "ExitMonitor",
    "ExitRiskController",
    "FeatureArray",
    "FeatureStore",
    "FrozenBackbone",
    "MarginSearchCV",
    "MonitorDisplay",
    "OnnxCascade",
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
    "export_onnx",
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
