"""Branch classifiers: scikit-learn estimators around the torch heads."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from sklearn.utils._param_validation import Interval, StrOptions

from sk_calex.branches._base import BaseBranch
from sk_calex.branches._heads import HEADS, BranchHead, build_head
from sk_calex.utils._codec import savable

__all__ = ["BaseBranch", "BranchClassifier", "PrototypePoolingClassifier"]


@savable
class BranchClassifier(BaseBranch):
    """A branch with any of the torch heads.

    Parameters
    ----------
    head : {"gap", "sdn", "conv1d", "conv", "prototype", "prototype_augmented"}, \
            default="conv"
        The head; see `sk_calex.branches._heads`.
    head_params : dict, default=None
        Parameters of the head, such as ``{"widths": (96, 128)}`` of "conv".
    feature_shape : tuple of int, default=None
        Shape of one sample's features: (C, H, W), (L, D) or (D,). None means
        ``(n_features,)``; inside a cascade, the shape of the tap.
    temperature : float, default=2.0
        Temperature T of the soft targets (the paper's setting is 4).
    alpha : float, default=0.5
        Share of the soft targets in the loss, in [0, 1]; the labels have the rest.
        Without soft targets the labels have all.
    solver : {"auto", "adam", "lbfgs"}, default="auto"
        "lbfgs" is full-batch, in float64, without randomness once the head is
        initialised, and takes integer weights as repetition; "adam" is mini-batch
        AdamW under a one-cycle schedule. "auto" is "lbfgs" up to 100,000 numbers in X.
    max_iter : int, default=None
        Epochs (adam) or iterations (lbfgs). None: 30 iterations, or 12 epochs and at
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
        1 shows a bar over the epochs or evaluations of the loss, on stderr.

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
    feature_names_in_ : ndarray of str, shape (n_features_in_,)
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
        alpha: float = 0.5,
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


@savable
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
    alpha : float, default=0.5
        Share of the soft targets in the loss, in [0, 1]; the labels have the rest.
        Without soft targets the labels have all.
    solver : {"auto", "adam", "lbfgs"}, default="auto"
        "lbfgs" is full-batch, in float64, without randomness once the head is
        initialised, and takes integer weights as repetition; "adam" is mini-batch
        AdamW under a one-cycle schedule. "auto" is "lbfgs" up to 100,000 numbers in X.
    max_iter : int, default=None
        Epochs (adam) or iterations (lbfgs). None: 30 iterations, or 12 epochs and at
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
        1 shows a bar over the epochs or evaluations of the loss, on stderr.

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
    feature_names_in_ : ndarray of str, shape (n_features_in_,)
        Names of those columns, where X had names.

    See Also
    --------
    BranchClassifier : The same training around any head.

    Notes
    -----
    The augmented prototype-pooling head is named by Aperstein & Apartsin (2026) but
    not defined there; the formulas, in `sk_calex.branches._heads`, are our definition.

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
        alpha: float = 0.5,
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
