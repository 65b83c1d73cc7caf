"""The frozen network as a transformer: samples in, a matrix of tapped features out."""

from __future__ import annotations

from ._frozen_backbone import FrozenBackbone
from ._layout import FeatureArray, TapLayout
from ._suggest import SuggestedTaps, suggest_taps

__all__ = [
    "FeatureArray",
    "FrozenBackbone",
    "SuggestedTaps",
    "TapLayout",
    "suggest_taps",
]
