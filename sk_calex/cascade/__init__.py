"""The cascade: branches trained in order, an exit rule, and early exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sk_calex.utils._lazy import lazy_names

if TYPE_CHECKING:
    from ._alignment import (
        SurvivorAlignment,
        effective_sample_size,
        exit_probability,
        survivor_weights,
    )
    from ._cascade import CascadeClassifier
    from ._cascade_prediction import CascadePrediction
    from ._costs import measure_costs
    from ._named_settings import PAPER_SETTINGS, RECIPE_SETTINGS
    from ._onnx._export import export_onnx
    from ._onnx._onnx_cascade import OnnxCascade
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "_alignment": [
                "SurvivorAlignment",
                "effective_sample_size",
                "exit_probability",
                "survivor_weights",
            ],
            "_cascade": ["CascadeClassifier"],
            "_costs": ["measure_costs"],
            "_cascade_prediction": ["CascadePrediction"],
            "_named_settings": ["PAPER_SETTINGS", "RECIPE_SETTINGS"],
            "_onnx._export": ["export_onnx"],
            "_onnx._onnx_cascade": ["OnnxCascade"],
        },
    )

__all__ = [
    "PAPER_SETTINGS",
    "RECIPE_SETTINGS",
    "CascadeClassifier",
    "CascadePrediction",
    "OnnxCascade",
    "SurvivorAlignment",
    "effective_sample_size",
    "exit_probability",
    "export_onnx",
    "measure_costs",
    "survivor_weights",
]
