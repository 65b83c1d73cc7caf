"""What every cascade shares: reading inputs, running, and the price of an answer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MetaEstimatorMixin,
    clone,
)
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._layout import TapLayout
from sk_calex.branches._as_branch import macs_of, probabilities_of
from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._runtime import (
    Answer,
    Source,
    backbone_answer,
    cached_sources,
    every_answer,
    independent,
    run_cascade,
    staged_sources,
    tabulate,
)
from sk_calex.cascade._summary import cascade_summary
from sk_calex.policies import ExitPolicy, Policy, first_exits
from sk_calex.utils._flops import depth_costs, flops_reduction
from sk_calex.utils._html import SummaryMixin
from sk_calex.utils._validation import note_features

__all__ = ["BaseCascade"]

# The first is what other types become: not every integer is a float32.
_DTYPES = [np.float64, np.float32, np.float16]


class BaseCascade(SummaryMixin, ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Base of the cascades: `predict` and its family over a policy.

    A subclass fits `classes_`, `layout_`, `branches_`, `final_estimator_`, `backbone_`
    and says in `_policy` who exits where.
    """

    backbone: Any
    input: str
    classes_: NDArray[Any]
    layout_: TapLayout
    branches_: list[Any]
    backbone_: FrozenBackbone | None
    final_estimator_: Any
    calibration_answers_: StageTable
    _calibration_codes: NDArray[np.intp]
    _calibration_weight: NDArray[np.float64]
    _output_order: NDArray[np.intp]

    def _policy(self) -> Policy:
        raise NotImplementedError

    def _policy_at(self, value: float | Sequence[float]) -> Policy:
        """The rule at another value of the method's knob; nothing is changed."""
        raise NotImplementedError

    def _fit_policy(
        self, policy: ExitPolicy, value: float | Sequence[float] | None = None
    ) -> ExitPolicy:
        """A policy fitted on the calibration samples, at another value of its knob."""
        policy = clone(policy)
        if value is not None:
            policy.set_params(**{policy.knob: value})
        return policy.fit(
            self.calibration_answers_,
            self._calibration_codes,
            self._calibration_weight,
            costs=self.depth_costs_ if policy.needs_costs else None,
        )

    def _of_taps(self, taps: Sequence[int]) -> Self:
        """What this cascade is with some of its branches only, for cached answers."""
        raise TypeError(
            f"{type(self).__name__} trains its branches together, so none of them can "
            "be left out without training the others again. Give a CascadeClassifier, "
            "or fit one cascade for each choice of taps."
        )

    # -- reading X ---------------------------------------------------------------

    def _staged(self) -> bool:
        return self.backbone is not None and self.input == "samples"

    def _given_backbone(self) -> FrozenBackbone | None:
        """The parameter, taken out of a `FrozenEstimator`."""
        given = self.backbone
        if isinstance(given, FrozenEstimator):
            given = given.estimator
        if given is not None and not isinstance(given, FrozenBackbone):
            raise TypeError(
                f"backbone must be a FrozenBackbone or None, got "
                f"{type(given).__name__}. Wrap a torch module: "
                "FrozenBackbone(module, taps=[...])."
            )
        return given

    def _fitted_backbone(self, X: Any) -> FrozenBackbone:
        """A fitted clone of the backbone, or the very one in a `FrozenEstimator`."""
        given = self._given_backbone()
        if isinstance(self.backbone, FrozenEstimator):
            check_is_fitted(given)
            return cast(FrozenBackbone, given)
        return cast(FrozenBackbone, clone(given)).fit(X)

    def _features_of(self, X: Any) -> tuple[NDArray[Any], TapLayout]:
        """Feature matrix and layout of X at fit; runs the backbone if need be."""
        given = self._given_backbone()
        self.backbone_ = None
        if self._staged():
            backbone = self._fitted_backbone(X)
            self.backbone_ = backbone
            note_features(self, backbone)
            return np.asarray(backbone.transform(X)), backbone.layout_
        layout = self._given_layout(X) if self.input == "features" else None
        features = validate_data(self, X, dtype=_DTYPES)
        if self.input == "samples":
            return features, TapLayout.identity(features.shape[1])
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
            _check_alike(layout, fitted, "the backbone makes")
            if layout.stage_macs is None:
                layout = fitted
        if layout.width != features.shape[1]:
            raise ValueError(
                f"X has {features.shape[1]} columns but the layout of the taps has "
                f"{layout.width}. Give the features that this backbone made."
            )
        return features, layout

    @staticmethod
    def _given_layout(X: Any) -> TapLayout | None:
        layout = getattr(X, "layout", None)
        if isinstance(layout, TapLayout):
            return layout
        columns = getattr(X, "columns", None)
        return None if columns is None else TapLayout.from_feature_names(columns)

    def _sources(self, X: Any) -> tuple[Iterable[tuple[slice, Source]], int]:
        check_is_fitted(self)
        if self.backbone_ is not None:
            samples = self.backbone_._check_samples(X)
            return staged_sources(self.backbone_.runner(), samples), len(samples)
        given = self._given_layout(X) if self.input == "features" else None
        X = validate_data(self, X, dtype=_DTYPES, reset=False)
        if given is not None:
            _check_alike(given, self.layout_, "the cascade was fitted on")
        return cached_sources(X, self.layout_), len(X)

    def _feature_sources(self, X: Any) -> tuple[Iterable[tuple[slice, Source]], int]:
        """Like `_sources`, but every stage can see every sample, through the cache."""
        check_is_fitted(self)
        if self.backbone_ is not None:
            features = self.backbone_.transform(X)
            return cached_sources(features, self.layout_), len(features)
        return self._sources(X)

    # -- running -----------------------------------------------------------------

    def _answers(self) -> list[Answer]:
        n_classes = len(self.classes_)
        answers = [probabilities_of(branch, n_classes) for branch in self.branches_]
        return [*map(independent, answers), self._last_answer()]

    def _last_answer(self) -> Answer:
        if self.final_estimator_ is not None:
            return independent(
                probabilities_of(self.final_estimator_, len(self.classes_))
            )
        order = self._output_order
        return independent(lambda logits: backbone_answer(logits)[:, order])

    def _run(self, X: Any) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        sources, n = self._sources(X)
        answers, policy = self._answers(), self._policy()
        backbone = self.backbone_
        with nullcontext() if backbone is None else backbone.runner().inference_mode():
            return run_cascade(sources, answers, policy, n, len(self.classes_))

    def _shared_table(self, X: Any) -> StageTable | None:
        """What is already known of what the stages say of X; None: nothing."""
        return None

    def _tabulate(self, X: Any) -> StageTable:
        table = self._shared_table(X)
        if table is None:
            sources, n = self._feature_sources(X)
            table = tabulate(sources, self._answers(), n, len(self.classes_))
        return table

    def _decide(self, X: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Class codes and depths."""
        table = self._shared_table(X)
        if table is None:
            proba, depth = self._run(X)
            return proba.argmax(axis=1), depth
        depth = first_exits(self._policy(), table)
        return table.predicted[depth, np.arange(len(depth))], depth

    def predict(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.intp]]:
        """Answer every sample at the first branch that may.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit: images for a backbone, or its features with
            ``input="features"``.
        return_depth : bool, default=False
            Also return where each sample was answered.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Labels as in `classes_`.
        depth : ndarray of int, shape (n_samples,)
            Index of the branch that answered, the number of branches for the backbone;
            only with `return_depth`.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        codes, depth = self._decide(X)
        labels = self.classes_[codes]
        return (labels, depth) if return_depth else labels

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities from the branch that answers each sample.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        proba : ndarray of float64, shape (n_samples, n_classes)
            Columns as in `classes_`. Rows come from different branches, so compare
            classes within a row rather than rows with each other.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        return self._run(X)[0]

    def stage_probabilities(self, X: Any) -> NDArray[np.float64]:
        """What every stage says of every sample, nobody exiting.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        proba : ndarray of float64, shape (n_stages, n_samples, n_classes)
            Of the branches in cascade order and of the last stage: what the rules of
            `sk_calex.policies` are fitted on, given samples that trained nothing.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        sources, n = self._feature_sources(X)
        answers = self._answers()
        proba = np.empty((len(answers), n, len(self.classes_)))
        for stage, rows, said in every_answer(sources, answers):
            proba[stage, rows] = said.proba
        return proba

    def exit_depth(self, X: Any) -> NDArray[np.intp]:
        """Where each sample is answered.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        depth : ndarray of int, shape (n_samples,)
            Index of the branch, the number of branches for the backbone.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        return self._decide(X)[1]

    # -- price -------------------------------------------------------------------

    @property
    def depth_costs_(self) -> NDArray[np.float64]:
        """MACs of an answer at each depth, shape (n_branches + 1,), heads included."""
        check_is_fitted(self)
        return depth_costs(*self._macs())

    def _macs(self) -> tuple[list[int], list[int]]:
        if self.layout_.stage_macs is None:
            raise ValueError(
                "the MACs of the backbone's stages are unknown: X carried its layout "
                "in column names only. Give the fitted FrozenBackbone too, as "
                "backbone=FrozenEstimator(backbone) (of sklearn.frozen), which the "
                "clones of a search keep fitted."
            )
        stages = list(self.layout_.stage_macs)
        if self.final_estimator_ is not None:
            stages[-1] += macs_of(self.final_estimator_, "final_estimator")
        return stages, self._branch_macs()

    def _branch_macs(self) -> list[int]:
        return [macs_of(branch, "branch") for branch in self.branches_]

    def cost(self, X: Any) -> NDArray[np.float64]:
        """Multiply-accumulates spent on each sample.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        cost : ndarray of float64, shape (n_samples,)
            MACs (1 MAC = 2 FLOPs) counted by torch: the stages run, and every head
            evaluated on the way, the answering one included.

        Raises
        ------
        ValueError
            If the MACs of a stage or head are unknown.
        """
        return self.depth_costs_[self.exit_depth(X)]

    def flops_reduction(self, X: Any) -> float:
        """Share of the plain backbone's FLOPs that the cascade saves on `X`.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        reduction : float
            ``1 - mean cost / cost of the plain backbone``, which has no heads. Negative
            where the heads cost more than the exits save.

        Raises
        ------
        ValueError
            If the MACs of a stage or head are unknown.
        """
        return flops_reduction(self.exit_depth(X), *self._macs())

    def _summary(self) -> str:
        return cascade_summary(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = copy.copy(tags.input_tags)
        tags.input_tags.sparse = False
        if self._staged():
            tags.input_tags.two_d_array = False
            tags.input_tags.three_d_array = True
        return tags


def _check_alike(given: TapLayout, known: TapLayout, whose: str) -> None:
    """Refuse features of other taps, which may well be as many numbers."""

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
