"""Samples or features: what a cascade reads, at fit and later."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._layout import TapLayout
from sk_calex.cascade._plain_input import read_plain
from sk_calex.cascade._runtime import Source, cached_sources, staged_sources
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._validation import note_features

__all__ = [
    "Inputs",
    "check_precision",
    "check_same_taps",
    "feature_batches",
    "fit_backbone",
    "input_batches",
    "note_precision",
    "reads_samples",
    "training_features",
    "unwrap_backbone",
]


def reads_samples(cascade: Any) -> bool:
    """Tell whether X holds samples that a backbone has to run on."""
    return cascade.backbone is not None and cascade.input == "samples"


def unwrap_backbone(cascade: Any) -> FrozenBackbone | None:
    """Return the parameter `backbone`, taken out of a `FrozenEstimator`."""
    given = cascade.backbone
    if isinstance(given, FrozenEstimator):
        given = given.estimator
    if given is not None and not isinstance(given, FrozenBackbone):
        raise TypeError(
            f"backbone must be a FrozenBackbone or None, got "
            f"{type(given).__name__}. Wrap a torch module: "
            "FrozenBackbone(module, taps=[...])."
        )
    return given


def fit_backbone(cascade: Any, X: Any) -> FrozenBackbone:
    """Return a fitted clone of the backbone, or the one in a `FrozenEstimator`."""
    given = unwrap_backbone(cascade)
    if isinstance(cascade.backbone, FrozenEstimator):
        check_is_fitted(given)
        return cast(FrozenBackbone, given)
    return cast(FrozenBackbone, clone(given)).fit(X)


def training_features(
    cascade: Any, X: Any, check_layout: Callable[[TapLayout], None]
) -> tuple[Any, TapLayout]:
    """Return the feature matrix of X at fit and its layout; sets `backbone_`.

    The backbone runs on all of X only after `check_layout` has accepted its outputs.
    """
    given = unwrap_backbone(cascade)
    cascade.backbone_ = None
    if reads_samples(cascade):
        backbone = fit_backbone(cascade, X)
        check_layout(backbone.layout_)
        cascade.backbone_ = backbone
        note_features(cascade, backbone)
        features = backbone.transform(X)
        if not isinstance(features, DecodedFeatures):
            features = np.asarray(features)
        return features, backbone.layout_
    if cascade.input == "samples":
        rows = read_plain(cascade, X, cascade._readers(), reset=True)
        branches = getattr(cascade, "branch", None)
        n_branches = len(branches) if isinstance(branches, list) else 1
        identity = TapLayout.identity(rows.shape[1], n_branches)
        check_layout(identity)
        return rows, identity
    layout = _layout_of(X)
    features = read_plain(cascade, X, None, reset=True)
    fitted = getattr(given, "layout_", None)
    if layout is None:
        layout = fitted
    if layout is None:
        raise ValueError(
            "input='features' needs to know which columns of X are which tap. "
            "Give the output of FrozenBackbone.transform as it is (slices of rows "
            "keep its layout, data frames its column names), or a fitted backbone."
        )
    if fitted is not None:
        if set(layout.names) < set(fitted.names):  # some of its taps
            fitted = fitted.select(layout.names)
        check_same_taps(layout, fitted, "the backbone makes")
        if layout.stage_macs is None:
            layout = fitted
    if layout.width != features.shape[1]:
        raise ValueError(
            f"X has {features.shape[1]} columns but the layout of the taps has "
            f"{layout.width}. Give the features that this backbone made."
        )
    check_layout(layout)
    return features, layout


class Inputs(NamedTuple):
    """X on its way through the stages.

    Attributes
    ----------
    batches : iterable of (slice, Source)
        Batches and their rows.
    n_samples : int
        Number of rows.
    mode : callable
        Returns the context in which the batches are used up.
    """

    batches: Iterable[tuple[slice, Source]]
    n_samples: int
    mode: Callable[[], AbstractContextManager[None]] = nullcontext


def note_precision(cascade: Any) -> None:
    """Note with which `amp` the backbone made the answers that chose the thresholds."""
    cascade._calibrated_amp_ = getattr(cascade.backbone_, "amp", None)


def check_precision(cascade: Any) -> None:
    """Refuse to run in another precision than that which chose the thresholds.

    Scores lie a little elsewhere then, so that other samples would exit.
    """
    noted = getattr(cascade, "_calibrated_amp_", cascade.backbone_.amp)
    if noted != cascade.backbone_.amp:
        raise ValueError(
            f"backbone_ has amp={cascade.backbone_.amp!r}, but the thresholds were "
            f"calibrated with amp={noted!r}. Call recalibrate(X, y) with samples that "
            "trained nothing, such as those that calibrated, or set amp back."
        )


def input_batches(cascade: Any, X: Any) -> Inputs:
    """Return batches of X on their way through the stages."""
    check_is_fitted(cascade)
    if cascade.backbone_ is not None:
        check_precision(cascade)
        samples = cascade.backbone_._check_samples(X)
        # One for the whole call: another thread may change the settings meanwhile.
        runner = cascade.backbone_.runner()
        batches = staged_sources(runner, samples)
        return Inputs(batches, len(samples), runner.inference_mode)
    from_samples = cascade.input == "samples"
    given = None if from_samples else _layout_of(X)
    readers = cascade._readers() if from_samples else None
    rows = read_plain(cascade, X, readers, reset=False)
    if given is not None:
        check_same_taps(given, cascade.layout_, "the cascade was fitted on")
    return Inputs(cached_sources(rows, cascade.layout_), rows.shape[0])


def feature_batches(cascade: Any, X: Any) -> Inputs:
    """Return `input_batches` of features, of which every stage can see every sample."""
    check_is_fitted(cascade)
    if cascade.backbone_ is not None:
        features = cascade.backbone_.transform(X)
        return Inputs(cached_sources(features, cascade.layout_), len(features))
    return input_batches(cascade, X)


def _layout_of(X: Any) -> TapLayout | None:
    layout = getattr(X, "layout", None)
    if isinstance(layout, TapLayout):
        return layout
    columns = getattr(X, "columns", None)
    return None if columns is None else TapLayout.from_feature_names(columns)


def check_same_taps(given: TapLayout, known: TapLayout, whose: str) -> None:
    """Refuse features of other taps, which may well have as many columns."""

    def described(layout: TapLayout) -> tuple[Any, ...]:
        # As tuples, though a layout made by hand may hold lists.
        shapes = tuple(map(tuple, layout.shapes))
        return tuple(layout.names), shapes, layout.n_outputs

    if described(given) != described(known):
        raise ValueError(
            f"X has features of taps {list(given.names)}, of shapes {given.shapes} "
            f"with {given.n_outputs} outputs; what {whose} are those of "
            f"{list(known.names)}, of shapes {known.shapes} with {known.n_outputs} "
            "outputs. Give features that the same backbone made."
        )
