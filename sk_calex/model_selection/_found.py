"""Answers of the cascade that a search or a controller has found."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from sk_calex.cascade._cascade_prediction import CascadePrediction
from sk_calex.cascade._prediction import predict_batches

from ._estimators import cascade_in, input_of

__all__ = ["FoundCascade"]

Method = TypeVar("Method", bound=Callable[..., Any])


def _if_found(method: Method) -> Method:
    return cast(Method, available_if(_has_best)(method))


def _has_best(search: FoundCascade) -> bool:
    if isinstance(search.estimator, FrozenEstimator) or getattr(search, "refit", True):
        return True
    raise AttributeError(
        "this search was made with refit=False, so it has no cascade to answer with. "
        "Set refit=True, or fit one with margin=best_margin_."
    )


class FoundCascade(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):
    """Base of `MarginSearchCV` and `ExitRiskController`.

    It answers as its `best_estimator_` does.
    """

    estimator: Any
    best_estimator_: Any
    #: Whether X must go through `_input_of_best` first.
    _cuts_input = False

    def _input_of_best(self, X: Any) -> Any:
        """Cut X to what `best_estimator_` takes."""
        raise NotImplementedError

    def _call_best(self, method: str, X: Any, **options: Any) -> Any:
        check_is_fitted(self)
        best = self.best_estimator_
        if self._cuts_input:
            X = self._input_of_best(X)
        # Not by the pipeline: it passes options on only where routing lets it.
        return getattr(cascade_in(best), method)(input_of(best, X), **options)

    @_if_found
    def predict(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.intp]]:
        """Answer every sample with the cascade found.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.
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
        return self._call_best("predict", X, return_depth=return_depth)

    @_if_found
    def predict_proba(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Compute probabilities by the branch that answers each sample.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.
        return_depth : bool, default=False
            Also return where each sample was answered.

        Returns
        -------
        proba : ndarray of float64, shape (n_samples, n_classes)
            Columns as in `classes_`.
        depth : ndarray of int, shape (n_samples,)
            Index of the branch that answered, the number of branches for the backbone;
            only with `return_depth`.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        return self._call_best("predict_proba", X, return_depth=return_depth)

    @_if_found
    def predict_details(self, X: Any) -> CascadePrediction:
        """Compute labels, probabilities, depths and costs in one run.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        prediction : CascadePrediction
            As of the cascade found.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or is not finite.
        """
        said: CascadePrediction = self._call_best("predict_details", X)
        return said

    @_if_found
    def predict_iter(
        self, batches: Iterable[Any], *, batch_size: int = 256
    ) -> Iterator[CascadePrediction]:
        """Answer batches that come one by one, in memory that does not grow.

        Parameters
        ----------
        batches : iterable
            Batches, a DataLoader or a Dataset, as of the cascade's `predict_iter`.
        batch_size : int, default=256
            Samples in a batch that is made of a Dataset; no other batch is changed.

        Returns
        -------
        predictions : iterator of CascadePrediction
            What `predict_details` returns, for one batch after another; each is
            computed at its first use.

        Raises
        ------
        TypeError
            If `batches` is one array, or cannot be iterated over.
        ValueError
            If a batch does not have the shape seen in fit, or is not finite.
        """
        check_is_fitted(self)
        return predict_batches(self, batches, batch_size)

    @_if_found
    def exit_depth(self, X: Any) -> NDArray[np.intp]:
        """Compute where each sample is answered.

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
        return self._call_best("exit_depth", X)

    @_if_found
    def cost(self, X: Any) -> NDArray[np.float64]:
        """Compute the multiply-accumulates spent on each sample.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        cost : ndarray of float64, shape (n_samples,)
            MACs (1 MAC = 2 FLOPs), heads included.

        Raises
        ------
        ValueError
            If the MACs of a stage or head are unknown.
        """
        return self._call_best("cost", X)

    @_if_found
    def flops_reduction(self, X: Any) -> float:
        """Compute the share of the plain backbone's FLOPs that is saved on `X`.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in fit.

        Returns
        -------
        reduction : float
            ``1 - mean cost / cost of the plain backbone``, which has no heads.

        Raises
        ------
        ValueError
            If the MACs of a stage or head are unknown.
        """
        return float(self._call_best("flops_reduction", X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags = copy.copy(get_tags(self.estimator).input_tags)
        return tags
