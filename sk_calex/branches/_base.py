"""Base of the torch branches: validation, training, probabilities, MACs."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from sk_calex.branches._heads import BranchHead, fuse_for_inference
from sk_calex.branches._own_heads import drawing_from
from sk_calex.branches._soft_targets import SoftenedRows, SoftTargets
from sk_calex.branches._train_head import (
    choose_solver,
    count_epochs,
    init_head,
    train_head,
)
from sk_calex.branches._training import Batch, soften_rows
from sk_calex.utils._callbacks import CallbackSupportMixin, Task, with_callbacks
from sk_calex.utils._decoded import DecodedFeatures
from sk_calex.utils._fitted_state import all_or_nothing, fitted_state
from sk_calex.utils._flops import count_macs
from sk_calex.utils._modes import trainable
from sk_calex.utils._rows import as_rows
from sk_calex.utils._saving import SavableMixin, plain_seed
from sk_calex.utils._validation import (
    check_are_classes,
    check_finite,
    check_labels,
    check_probabilities,
    check_sample_weight,
    resolve_device,
    softmax64,
)

__all__ = ["BaseBranch"]

_PREDICT_ROWS = 1024
# Softened targets that take more are computed anew for each mini-batch.
_SOFT_BYTES = 64 * 2**20
# Floats are read as they are: a memory map of them is never converted as a whole.
_DTYPES = (np.float64, np.float32, np.float16)


class BaseBranch(CallbackSupportMixin, SavableMixin, ClassifierMixin, BaseEstimator):
    """Train a torch head, which a subclass builds, as a classifier."""

    feature_shape: tuple[int, ...] | None
    temperature: float
    alpha: float
    solver: str
    max_iter: int | None
    batch_size: int
    learning_rate: float | None
    weight_decay: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    warm_start: bool
    device: str
    random_state: Any
    verbose: int
    classes_: NDArray[Any]
    feature_shape_: tuple[int, ...]

    _parameter_constraints: dict[str, list[Any]] = {
        "feature_shape": [tuple, list, None],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, 1, closed="both")],
        "solver": [StrOptions({"adam", "adam_full_batch", "lbfgs", "auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _new_head(
        self, shape: tuple[int, ...], n_classes: int, generator: torch.Generator
    ) -> BranchHead:
        raise NotImplementedError

    def _head_is_linear(self) -> bool:
        """Say whether the logits are linear in what the head does not train."""
        raise NotImplementedError

    def _draws_during_training(self) -> bool:
        """Say whether the head may draw from torch's global generators."""
        return False

    @with_callbacks
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        soft_targets: ArrayLike | None = None,
    ) -> BaseBranch:
        """Train the head.

        A fit that fails or is interrupted leaves the branch unfitted.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Flattened features of one tap, one row for each sample. A memory map is read
            batch by batch, and int8 features of a `FrozenBackbone` are decoded so.
        y : array-like of shape (n_samples,)
            Labels: strings, integers or booleans, of at least two classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Importance weights, at least 0, scaled to mean 1; a row of weight 0 is
            absent. Full-batch solvers take integer weights as repetition.
        soft_targets : array-like of shape (n_samples, n_classes), default=None
            Class probabilities to imitate, such as the backbone's, columns in the
            order of the sorted labels. They are softened by `temperature` here.

        Returns
        -------
        self : BaseBranch
            The fitted branch.

        Raises
        ------
        ValueError
            If the shapes do not fit each other or `feature_shape`, if there are fewer
            than two classes, or if a value is not finite.
        """
        before = fitted_state(self) if self.warm_start else {}
        with all_or_nothing(self):
            self._fit_head(X, y, sample_weight, soft_targets, before)
        return self

    def _fit_head(
        self, X: Any, y: Any, sample_weight: Any, soft_targets: Any, before: Any
    ) -> None:
        """Train a new head, or that of the fit before; set all that a fit leaves."""
        self._validate_params()
        features, y = self._check_X_y(X, y)
        check_are_classes(y)
        weight = check_sample_weight(sample_weight, features)
        classes, codes = np.unique(y, return_inverse=True)
        n_classes = len(classes)
        if n_classes < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, y holds one class: "
                f"{classes[0]!r}."
            )
        shape = _check_shape(self.feature_shape, features.shape[1])
        if before and not (
            shape == before["feature_shape_"]
            and np.array_equal(classes, before["classes_"])
        ):
            raise ValueError(
                "warm_start=True continues the last fit, which saw features of "
                f"shape {before['feature_shape_']} and the labels "
                f"{before['classes_']}; now they are {shape} and {classes}. Set "
                "warm_start=False."
            )
        self.classes_ = classes
        device = resolve_device(self.device, needs_float64=True)
        soft = None
        if soft_targets is not None:
            soft = soft_targets
            if not isinstance(soft, SoftTargets):
                soft = check_probabilities(soft_targets, "soft_targets")
            if soft.shape != (len(features), n_classes):
                raise ValueError(
                    f"soft_targets has shape {soft.shape}, expected "
                    f"{(len(features), n_classes)}: one row for each sample, one "
                    "column for each of the sorted labels of y."
                )
        rows = np.flatnonzero(weight > 0)
        batch = Batch(features, rows, codes[rows].astype(np.int64), weight[rows], None)
        self.solver_ = choose_solver(self, batch)
        if soft is not None:
            batch = replace(batch, soft=self._softened(soft, rows))
        epochs = 0 if self.solver_ == "lbfgs" else count_epochs(self, len(batch))
        seeds = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(seeds.randint(2**31 - 1)))
        with trainable(), Task.root(self, epochs, X, y, sample_weight) as task:
            if before:
                head = before["head_"].float()
                head.set_momentum(0.1)  # a full-batch fit left it at 1
            else:
                head = self._new_head(shape, n_classes, generator)
                init_head(head, batch, shape, generator)
                head = head.float().to(device)
            epoch = partial(
                task.part, "epoch", fitted=partial(_current_attributes, head, shape)
            )
            draws = self._draws_during_training()
            with drawing_from(generator, device) if draws else nullcontext():
                history = train_head(
                    self, head, batch, shape, generator, device, seeds, epoch
                )
            self.loss_curve_ = history.loss
            self.validation_loss_curve_ = history.validation_loss
            self.n_iter_ = history.n_iter
            self.feature_shape_ = shape
            self._set_head(head)

    def _softened(self, soft: Any, rows: NDArray[np.intp]) -> Any:
        """Soften the targets of the training rows, now or as they are drawn."""
        is_adam = self.solver_ == "adam"
        n_bytes = 4 * len(rows) * soft.shape[1]
        if is_adam and isinstance(soft, SoftTargets) and n_bytes > _SOFT_BYTES:
            return SoftenedRows(soft, rows, self.temperature)
        # Mini-batches are float32, and other solvers are for small data.
        dtype = np.float32 if is_adam else np.float64
        return soften_rows(soft, rows, self.temperature, dtype)

    def _check_X_y(self, X: Any, y: Any) -> tuple[Any, NDArray[Any]]:
        if isinstance(X, DecodedFeatures):  # finite numbers, not to be read here
            validate_data(self, X, skip_check_array=True)
            check_consistent_length(X, y)
            return X, check_labels(y)
        checked: Any = validate_data(self, X, y, dtype=_DTYPES, ensure_all_finite=False)
        for i in range(0, len(checked[0]), _PREDICT_ROWS):
            _check_rows(checked[0][i : i + _PREDICT_ROWS])
        features, y = checked
        return features, y

    def _set_head(self, head: BranchHead) -> None:
        self.head_ = head
        self._fuse_head()
        example = torch.zeros(
            1, *self.feature_shape_, dtype=head.dtype, device=head.device
        )
        self.macs_ = count_macs(self._fused, example)

    def _fuse_head(self) -> None:
        """Prepare the head for inference, and look up its place once."""
        self._fused = fuse_for_inference(self.head_)
        self._fused_place = (self.head_.device, self.head_.dtype)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the logits of the samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Flattened features of the tap.

        Returns
        -------
        logits : ndarray of float64, shape (n_samples, n_classes) or (n_samples,)
            One column for each class; with two classes the difference of the two,
            positive for ``classes_[1]``.

        Raises
        ------
        ValueError
            If `X` does not have the width seen in fit or is not finite.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Compute the probabilities of the classes.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Flattened features of the tap.

        Returns
        -------
        proba : ndarray of float64, shape (n_samples, n_classes)
            Softmax of the logits at temperature 1.

        Raises
        ------
        ValueError
            If `X` does not have the width seen in fit or is not finite.
        """
        return softmax64(self._logits(X))

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Predict the most probable class of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Flattened features of the tap.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Labels as in `classes_`.

        Raises
        ------
        ValueError
            If `X` does not have the width seen in fit or is not finite.
        """
        logits = self._logits(X)
        return self.classes_[logits.argmax(axis=1)]

    def _logits(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        if isinstance(X, DecodedFeatures):
            validate_data(self, X, skip_check_array=True, reset=False)
            checked: Any = X
        else:
            checked = validate_data(
                self, X, dtype=_DTYPES, reset=False, ensure_all_finite=False
            )
        parts = []
        for i in range(0, len(checked), _PREDICT_ROWS):
            rows = checked[i : i + _PREDICT_ROWS]
            if not isinstance(rows, DecodedFeatures):
                _check_rows(rows)
            batch = as_rows(rows).view(-1, *self.feature_shape_)
            parts.append(self.answer_logits(batch))
        return torch.cat(parts).double().cpu().numpy()

    def answer_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Compute the logits of a tap's tensor without checks, for a running cascade.

        Parameters
        ----------
        features : Tensor of shape (n_samples, *feature_shape_)
            Tap features.

        Returns
        -------
        logits : Tensor of shape (n_samples, n_classes)
            Logits, on the CPU: fetched once, so that a device waits once a head.

        Raises
        ------
        ValueError
            If a logit is not finite.
        """
        with torch.inference_mode():
            logits = self._fused(features.to(*self._fused_place)).cpu()
        check_finite(
            logits, f"the logits of {type(self).__name__}", "Scale the features."
        )
        return logits

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        for name in ("_fused", "_fused_place"):  # made again from the head
            state.pop(name, None)
        if "head_" in state:
            state["head_"] = copy.deepcopy(state["head_"]).cpu()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "head_" in state:
            # "auto" is resolved again: the machine that loads may have no GPU.
            if str(self.device) == "auto":
                self.head_.to(resolve_device("auto", needs_float64=True))
            self._fuse_head()

    def _archive_state(self) -> dict[str, Any]:
        state = self.__getstate__()
        if "head_" in state:
            state["head_state"] = dict(state.pop("head_").state_dict())
        state["random_state"] = plain_seed(self.random_state)
        return state

    def _restore_archive(self, state: dict[str, Any], backbone: Any) -> None:
        weights = state.pop("head_state", None)
        if weights is not None:
            self.__dict__.update(state)
            head = self._new_head(
                self.feature_shape_, len(self.classes_), torch.Generator()
            )
            head.load_state_dict(weights, assign=True)  # keeps their dtypes
            state["head_"] = head.eval()
        self.__setstate__(state)


def _current_attributes(head: BranchHead, shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the attributes of a branch as if its training ended now."""
    head = copy.deepcopy(head).eval()
    return {
        "head_": head,
        "feature_shape_": shape,
        "_fused": fuse_for_inference(head),
        "_fused_place": (head.device, head.dtype),
    }


def _check_rows(rows: NDArray[Any]) -> None:
    check_finite(rows, "X", "Remove or replace the samples concerned.")


def _check_shape(
    feature_shape: tuple[int, ...] | None, n_features: int
) -> tuple[int, ...]:
    if feature_shape is None:
        return (n_features,)
    shape = tuple(int(size) for size in feature_shape)
    usable = len(shape) in (1, 2, 3) and min(shape) >= 1
    if not usable or math.prod(shape) != n_features:
        raise ValueError(
            f"feature_shape={feature_shape!r} does not fit X with {n_features} "
            "features: give (C, H, W), (L, D) or (D,) whose product is the number of "
            "columns, or None for flat vectors."
        )
    return shape
