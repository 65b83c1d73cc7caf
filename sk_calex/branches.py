"""Branch classifiers: scikit-learn estimators around the torch heads."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from sk_calex._validation import (
    as_tensor,
    check_finite,
    check_probabilities,
    resolve_device,
    softmax64,
)
from sk_calex.flops import count_macs
from sk_calex.heads import HEADS, BranchHead, build_head, fuse_for_inference
from sk_calex.training import Batch, History, soften, train_adam, train_lbfgs

__all__ = ["BranchClassifier", "PrototypePoolingClassifier"]

# Below this many numbers in X a full-batch solver is both exact and quick.
_LBFGS_MAX_SIZE = 100_000
_PREDICT_ROWS = 1024


class BaseBranch(ClassifierMixin, BaseEstimator):
    """What all torch branches share: validation, training, probabilities, MACs."""

    feature_shape: tuple[int, ...] | None
    temperature: float
    alpha: float
    solver: str
    max_iter: int | None
    batch_size: int
    learning_rate: float
    weight_decay: float
    early_stopping: bool
    validation_fraction: float
    n_iter_no_change: int
    tol: float
    warm_start: bool
    device: str
    random_state: Any
    verbose: int

    _parameter_constraints: dict[str, list[Any]] = {
        "feature_shape": [tuple, list, None],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, 1, closed="both")],
        "solver": [StrOptions({"adam", "lbfgs", "auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
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

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        soft_targets: ArrayLike | None = None,
    ) -> BaseBranch:
        """Train the head.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Flattened features of one tap. A memory map is read batch by batch.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Importance weights, scaled to mean 1. With ``solver="lbfgs"`` integer
            weights are repetition and zero is absence.
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
        self._validate_params()
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, ensure_non_negative=True)
        self.classes_, codes = np.unique(y, return_inverse=True)
        n_classes = len(self.classes_)
        if n_classes < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, y holds one class: "
                f"{self.classes_[0]!r}."
            )
        shape = _check_shape(self.feature_shape, X.shape[1])
        device = resolve_device(self.device)
        soft = None
        if soft_targets is not None:
            soft = check_probabilities(soft_targets, "soft_targets")
            if soft.shape != (len(X), n_classes):
                raise ValueError(
                    f"soft_targets has shape {soft.shape}, expected "
                    f"{(len(X), n_classes)}: one row a sample and one column for each "
                    "of the sorted labels of y."
                )
            soft = soften(soft, self.temperature)
        everyone = Batch(X, np.arange(len(X)), codes.astype(np.int64), weight, soft)
        batch = everyone.take(np.flatnonzero(weight > 0))

        seeds = check_random_state(self.random_state)
        generator = torch.Generator().manual_seed(int(seeds.randint(2**31 - 1)))
        head = self._start_head(batch, shape, n_classes, generator, device)
        history = self._train(head, batch, shape, generator, device, seeds)
        self.loss_curve_ = history.loss
        self.validation_loss_curve_ = history.validation_loss
        self.n_iter_ = history.n_iter
        self.feature_shape_ = shape
        self._set_head(head)
        return self

    def _start_head(
        self,
        batch: Batch,
        shape: tuple[int, ...],
        n_classes: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> BranchHead:
        if self.warm_start and hasattr(self, "head_"):
            if self.feature_shape_ != shape or self.head_.n_classes != n_classes:
                raise ValueError(
                    "warm_start=True goes on from the last fit, which saw features of "
                    f"shape {self.feature_shape_} and {self.head_.n_classes} classes; "
                    f"now they are {shape} and {n_classes}. Set warm_start=False."
                )
            return self.head_.float()
        head = self._new_head(shape, n_classes, generator)
        # A sample is enough to place prototypes, and bounds the memory it takes.
        rows = np.arange(len(batch))
        if len(rows) > 4096:
            picked = torch.randperm(len(rows), generator=generator)[:4096]
            rows = np.sort(picked.numpy())
        start = batch.take(rows)
        X = batch.features
        head.double()
        head.init_from_data(
            torch.from_numpy(X[start.rows].astype(np.float64)).view(-1, *shape),
            torch.from_numpy(start.labels),
            sample_weight=torch.from_numpy(start.weight),
            generator=generator,
        )
        return head.float().to(device)

    def _train(
        self,
        head: BranchHead,
        batch: Batch,
        shape: tuple[int, ...],
        generator: torch.Generator,
        device: torch.device,
        seeds: np.random.RandomState,
    ) -> History:
        solver = self.solver
        if solver == "auto":
            small = len(batch) * batch.features.shape[1] <= _LBFGS_MAX_SIZE
            solver = "lbfgs" if small and not self.early_stopping else "adam"
        self.solver_ = solver
        if solver == "lbfgs":
            if self.early_stopping:
                raise ValueError(
                    "early_stopping=True needs mini-batches: use solver='adam', or "
                    "early_stopping=False with solver='lbfgs'."
                )
            return train_lbfgs(
                head,
                batch,
                shape,
                temperature=self.temperature,
                alpha=self.alpha,
                max_iter=self.max_iter or 100,
                weight_decay=self.weight_decay,
                device=device,
            )
        batch = replace(batch, weight=batch.weight / batch.weight.mean())
        validation = None
        if self.early_stopping:
            kept, held = train_test_split(
                np.arange(len(batch)),
                test_size=self.validation_fraction,
                stratify=batch.labels,
                random_state=seeds,
            )
            batch, validation = batch.take(np.sort(kept)), batch.take(np.sort(held))
        return train_adam(
            head,
            batch,
            shape,
            temperature=self.temperature,
            alpha=self.alpha,
            epochs=self.max_iter or self._default_epochs(len(batch)),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            generator=generator,
            device=device,
            validation=validation,
            patience=self.n_iter_no_change,
            tol=self.tol,
            verbose=bool(self.verbose),
        )

    def _default_epochs(self, n: int) -> int:
        # Twelve epochs suffice at tens of thousands of rows; few rows need about as
        # many updates as a few hundred, else the schedule ends before it has begun.
        return max(12, math.ceil(400 / max(1, n // min(self.batch_size, n))))

    def _set_head(self, head: BranchHead) -> None:
        self.head_ = head
        self._fused = fuse_for_inference(head)
        example = torch.zeros(
            1, *self.feature_shape_, dtype=head.dtype, device=head.device
        )
        self.macs_ = count_macs(self._fused, example)

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Logits of the samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Flattened features of the tap.

        Returns
        -------
        logits : ndarray of float64, shape (n_samples, n_classes) or (n_samples,)
            One column a class; with two classes the difference of the two, positive
            for ``classes_[1]``.

        Raises
        ------
        ValueError
            If `X` does not have the width seen in fit or is not finite.
        """
        logits = self._logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of the classes.

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

    def predict(self, X: ArrayLike) -> NDArray:
        """Most probable class of each sample.

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
        X = validate_data(self, X, dtype=[np.float32, np.float64], reset=False)
        rows = as_tensor(X)
        parts = [
            self.answer_logits(rows[i : i + _PREDICT_ROWS].view(-1, *self.feature_shape_))
            for i in range(0, len(rows), _PREDICT_ROWS)
        ]
        return torch.cat(parts).double().cpu().numpy()

    def answer_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits of a tap's tensor, unchecked: what a running cascade calls.

        Parameters
        ----------
        features : Tensor of shape (n_samples, *feature_shape_)
            Tap features.

        Returns
        -------
        logits : Tensor of shape (n_samples, n_classes)
            Logits, on the head's device.

        Raises
        ------
        ValueError
            If a logit is not finite.
        """
        with torch.inference_mode():
            logits = self._fused(features.to(self.head_.device, self.head_.dtype))
        check_finite(
            logits, f"the logits of {type(self).__name__}", "Scale the features."
        )
        return logits

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        state.pop("_fused", None)  # rebuilt from the head
        if "head_" in state:
            state["head_"] = copy.deepcopy(state["head_"]).cpu()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "head_" in state:
            # "auto" is resolved again: the machine that loads may have no GPU.
            if str(self.device) == "auto":
                self.head_.to(resolve_device("auto"))
            self._fused = fuse_for_inference(self.head_)


class BranchClassifier(BaseBranch):
    """A branch with any of the torch heads.

    Parameters
    ----------
    head : {"gap", "sdn", "conv1d", "conv", "prototype", "prototype_augmented"}, \
            default="conv"
        The head; see `sk_calex.heads`.
    head_params : dict, default=None
        Parameters of the head, such as ``{"widths": (96, 128)}`` of "conv".
    feature_shape : tuple of int, default=None
        Shape of one sample's features: (C, H, W), (L, D) or (D,). None means
        ``(n_features,)``; inside a cascade, the shape of the tap.
    temperature : float, default=2.0
        Temperature T of the soft targets (the paper's setting is 4).
    alpha : float, default=1.0
        Share of the soft targets in the loss, in [0, 1]; the labels have the rest.
        Without soft targets the labels have all.
    solver : {"auto", "adam", "lbfgs"}, default="auto"
        "lbfgs" is full-batch, in float64, without randomness once the head is
        initialised, and takes integer weights as repetition; "adam" is mini-batch
        AdamW under a one-cycle schedule. "auto" is "lbfgs" up to 100,000 numbers in X.
    max_iter : int, default=None
        Epochs (adam) or iterations (lbfgs). None: 100 iterations, or 12 epochs and at
        least as many as give 400 updates.
    batch_size : int, default=256
        Rows of a mini-batch.
    learning_rate : float, default=3e-3
        Highest rate of the one-cycle schedule (adam).
    weight_decay : float, default=1e-2
        Decoupled weight decay (adam) or L2 penalty on the mean loss (lbfgs).
    early_stopping : bool, default=False
        Hold out rows and keep the best epoch (adam only).
    validation_fraction : float, default=0.1
        Share of rows held out with `early_stopping`.
    n_iter_no_change : int, default=5
        Epochs without a gain of `tol` before stopping.
    tol : float, default=1e-4
        Least gain in validation loss that counts.
    warm_start : bool, default=False
        Go on from the head of the last fit.
    device : str, default="auto"
        Torch device; "auto" is CUDA where there is one, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed of the initialisation, the batches and the held-out rows.
    verbose : int, default=0
        1 shows a progress bar over the epochs.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    head_ : torch.nn.Module
        The trained head, in eval mode.
    macs_ : int
        Multiply-accumulates of the head for one sample, counted by torch.
    feature_shape_ : tuple of int
        Shape of one sample's features.
    solver_ : str
        Solver that was used.
    n_iter_ : int
        Epochs or iterations done.
    loss_curve_, validation_loss_curve_ : list of float
        Mean loss of each epoch (adam) or evaluation (lbfgs).
    n_features_in_ : int
        Columns of X seen in fit.
    feature_names_in_ : ndarray of str
        Names of those columns, where X had names.

    See Also
    --------
    PrototypePoolingClassifier : CalexNet's head with its parameters spelled out.

    References
    ----------
    Aperstein, Y. & Apartsin, A. (2026). CalexNet. Electronics 15(10), 2149.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_calex import BranchClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> branch = BranchClassifier("gap", random_state=0).fit(X, y)
    >>> branch.predict_proba(X[:2]).shape
    (2, 3)
    >>> branch.macs_
    12
    """

    _parameter_constraints = {
        "head": [StrOptions(set(HEADS))],
        "head_params": [dict, None],
        **BaseBranch._parameter_constraints,
    }

    def __init__(
        self,
        head: str = "conv",
        *,
        head_params: dict[str, Any] | None = None,
        feature_shape: tuple[int, ...] | None = None,
        temperature: float = 2.0,
        alpha: float = 1.0,
        solver: str = "auto",
        max_iter: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        tol: float = 1e-4,
        warm_start: bool = False,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.head = head
        self.head_params = head_params
        self.feature_shape = feature_shape
        self.temperature = temperature
        self.alpha = alpha
        self.solver = solver
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _new_head(
        self, shape: tuple[int, ...], n_classes: int, generator: torch.Generator
    ) -> BranchHead:
        params = self.head_params or {}
        return build_head(self.head, shape, n_classes, generator=generator, **params)


class PrototypePoolingClassifier(BaseBranch):
    """CalexNet's branch: a light trunk, then pooling by learned prototypes.

    The trunk's output u at each position is compared with M prototypes (cosine); each
    prototype pools the positions by attention, and the pooled similarities join the
    mean and the maximum of u before a linear layer.

    Parameters
    ----------
    n_prototypes : int, default=None
        Number M of prototypes; None means two a class.
    widths : tuple of int, default=(96, 128)
        Channels of the trunk's 3x3 convolutions (linear layers on tokens and vectors);
        the first has stride 2 on grids larger than 4. ``()`` leaves the trunk out and
        projects to `dim`.
    dim : int, default=64
        Channels of the projection where there is no trunk.
    feature_shape : tuple of int, default=None
        Shape of one sample's features: (C, H, W), (L, D) or (D,). None means
        ``(n_features,)``; inside a cascade, the shape of the tap.
    temperature : float, default=2.0
        Temperature T of the soft targets (the paper's setting is 4).
    alpha : float, default=1.0
        Share of the soft targets in the loss, in [0, 1]; the labels have the rest.
        Without soft targets the labels have all.
    solver : {"auto", "adam", "lbfgs"}, default="auto"
        "lbfgs" is full-batch, in float64, without randomness once the head is
        initialised, and takes integer weights as repetition; "adam" is mini-batch
        AdamW under a one-cycle schedule. "auto" is "lbfgs" up to 100,000 numbers in X.
    max_iter : int, default=None
        Epochs (adam) or iterations (lbfgs). None: 100 iterations, or 12 epochs and at
        least as many as give 400 updates.
    batch_size : int, default=256
        Rows of a mini-batch.
    learning_rate : float, default=3e-3
        Highest rate of the one-cycle schedule (adam).
    weight_decay : float, default=1e-2
        Decoupled weight decay (adam) or L2 penalty on the mean loss (lbfgs).
    early_stopping : bool, default=False
        Hold out rows and keep the best epoch (adam only).
    validation_fraction : float, default=0.1
        Share of rows held out with `early_stopping`.
    n_iter_no_change : int, default=5
        Epochs without a gain of `tol` before stopping.
    tol : float, default=1e-4
        Least gain in validation loss that counts.
    warm_start : bool, default=False
        Go on from the head of the last fit.
    device : str, default="auto"
        Torch device; "auto" is CUDA where there is one, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed of the initialisation, the batches and the held-out rows.
    verbose : int, default=0
        1 shows a progress bar over the epochs.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    head_ : torch.nn.Module
        The trained head, in eval mode.
    macs_ : int
        Multiply-accumulates of the head for one sample, counted by torch.
    feature_shape_ : tuple of int
        Shape of one sample's features.
    solver_ : str
        Solver that was used.
    n_iter_ : int
        Epochs or iterations done.
    loss_curve_, validation_loss_curve_ : list of float
        Mean loss of each epoch (adam) or evaluation (lbfgs).
    n_features_in_ : int
        Columns of X seen in fit.
    feature_names_in_ : ndarray of str
        Names of those columns, where X had names.

    See Also
    --------
    BranchClassifier : The same training around any head.

    Notes
    -----
    The augmented prototype-pooling head is named by Aperstein & Apartsin (2026) but
    not defined there; the formulas, in `sk_calex.heads`, are our definition.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_calex import PrototypePoolingClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> branch = PrototypePoolingClassifier(random_state=0).fit(X, y)
    >>> bool(branch.score(X, y) > 0.9)
    True
    """

    _parameter_constraints = {
        "n_prototypes": [Interval(Integral, 1, None, closed="left"), None],
        "widths": [tuple, list],
        "dim": [Interval(Integral, 1, None, closed="left")],
        **BaseBranch._parameter_constraints,
    }

    def __init__(
        self,
        n_prototypes: int | None = None,
        *,
        widths: tuple[int, ...] = (96, 128),
        dim: int = 64,
        feature_shape: tuple[int, ...] | None = None,
        temperature: float = 2.0,
        alpha: float = 1.0,
        solver: str = "auto",
        max_iter: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        tol: float = 1e-4,
        warm_start: bool = False,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_prototypes = n_prototypes
        self.widths = widths
        self.dim = dim
        self.feature_shape = feature_shape
        self.temperature = temperature
        self.alpha = alpha
        self.solver = solver
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _new_head(
        self, shape: tuple[int, ...], n_classes: int, generator: torch.Generator
    ) -> BranchHead:
        return build_head(
            "prototype_augmented",
            shape,
            n_classes,
            generator=generator,
            n_prototypes=self.n_prototypes,
            widths=tuple(self.widths),
            dim=self.dim,
        )


def _check_shape(
    feature_shape: tuple[int, ...] | None, n_features: int
) -> tuple[int, ...]:
    if feature_shape is None:
        return (n_features,)
    shape = tuple(int(size) for size in feature_shape)
    if len(shape) not in (1, 2, 3) or math.prod(shape) != n_features:
        raise ValueError(
            f"feature_shape={feature_shape!r} does not fit X with {n_features} "
            "features: give (C, H, W), (L, D) or (D,) whose product is the number of "
            "columns, or None for flat vectors."
        )
    return shape
