"""Branch classifiers: scikit-learn estimators around the torch heads."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from sk_calex.branches._base import BaseBranch
from sk_calex.branches._heads import HEADS, BranchHead, build_head
from sk_calex.branches._own_heads import build_own_head, check_factory
from sk_calex.utils._codec import ImportedName, savable

__all__ = ["BaseBranch", "BranchClassifier", "PrototypePoolingClassifier"]


@savable
class BranchClassifier(BaseBranch):
    """Train any of the torch heads as a branch.

    Parameters
    ----------
    head : {"gap", "sdn", "conv1d", "conv", "prototype", "prototype_augmented"} \
            or callable, default="conv"
        Kind of head, from cheap to rich, or what makes one of your own.

        - "gap": mean over the positions, linear. The cheapest; for late taps and small
          backbones.
        - "sdn": mean and maximum over a 4 x 4 grid, linear; keeps where things are.
        - "conv1d": one 1-D convolution over the positions; BTS-EE's head.
        - "prototype": pooling by learned prototypes; for few labels or tokens.
        - "conv": two 3x3 convolutions, then mean and maximum. For early taps of large
          backbones.
        - "prototype_augmented": "conv" and "prototype" side by side; the head of
          `PrototypePoolingClassifier`.
        - callable: ``head(feature_shape, n_classes, **head_params)`` returns a new
          `torch.nn.Module`, from features of shape (n, ...) to logits of shape (n,
          n_classes); a function or a module's class. It is trained and costed as the
          others are.
    head_params : dict, default=None
        Parameters of the head, such as ``{"widths": (96, 128)}`` of "conv"; see the
        Methods page for those of each head. None: the head's defaults.
    feature_shape : tuple of int, default=None
        Shape of one sample's features, of which a row of `X` is the flattened form.

        - ``(C, H, W)``: a map of C channels, as convolutions make it.
        - ``(L, D)``: L tokens of D features each, as transformers make them.
        - ``(D,)``: a flat vector.
        - None: ``(n_features,)``; inside a cascade, the shape of the tap.
    temperature : float, default=2.0
        Temperature T > 0 by which soft targets and logits are softened in the loss.
        Higher values teach more about the unlikely classes; the paper takes 4.
    alpha : float, default=0.5
        Share of the soft targets in the loss, from 0 to 1; the true labels have the
        rest. Without soft targets the labels have all.
    solver : {"auto", "adam", "adam_full_batch", "lbfgs"}, default="auto"
        Algorithm that trains the head.

        - "auto": up to 100,000 numbers in `X`, "lbfgs" for the linear heads ("gap",
          "sdn") and "adam_full_batch" for the others; "adam" for larger data or with
          `early_stopping`.
        - "adam": mini-batch AdamW in float32 under a one-cycle schedule. For data of
          any size, memory maps included.
        - "adam_full_batch": Adam on all rows at once in float64, with the same
          schedule. No randomness, and integer weights are repetition. Rounding in the
          features stays rounding in the probabilities.
        - "lbfgs": L-BFGS on all rows at once in float64. Most accurate on linear heads;
          on others its result hangs on the last bits of the features.
    max_iter : int, default=None
        Length of the training: epochs (adam), updates (adam_full_batch) or iterations
        (lbfgs). None: 12 epochs and at least as many as give 400 updates; 60 updates;
        30 iterations.
    batch_size : int, default=256
        Rows in a mini-batch of "adam"; a last, smaller batch is left out of the epoch.
    learning_rate : float, default=None
        Highest rate of Adam's one-cycle schedule. None: 0.003 for mini-batches; for
        full batches 0.02 ("conv1d"), 0.01 ("prototype") or 0.005 (the other heads).
        "lbfgs" does not use it.
    weight_decay : float, default=1e-2
        Strength of the regularisation: decoupled weight decay with "adam", a penalty of
        ``weight_decay / 2 * ||parameters||^2`` on the mean loss with the full batch.
    early_stopping : bool, default=False
        Whether to hold rows out, watch their loss, and keep the weights of the best
        epoch. For "adam" only.
    validation_fraction : float, default=0.1
        Share of the rows that `early_stopping` holds out, stratified by class, strictly
        between 0 and 1.
    n_iter_no_change : int, default=5
        Number of epochs without a gain of `tol` in the held-out loss after which
        `early_stopping` ends the training.
    tol : float, default=1e-4
        Least fall of the held-out loss that `early_stopping` counts as a gain.
    warm_start : bool, default=False
        Whether `fit` goes on from the head of the last fit, which must have seen the
        same classes and shape. False: each fit starts anew.
    device : str, default="auto"
        Torch device that trains and answers, such as "cpu" or "cuda:1". "auto" takes
        the first of CUDA, XPU and MPS that torch sees and that computes in float64,
        as small data need it, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial parameters, the order of the mini-batches and the rows held
        out. Give an int for the same result in every fit.
    verbose : int, default=0
        Whether to show progress on stderr: 1 shows a bar over the epochs, or over the
        evaluations of the loss with "lbfgs"; 0 nothing.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels, in the order of the columns of `predict_proba`.
    head_ : torch.nn.Module
        The trained head, in eval mode; in float64 after a full-batch fit.
    macs_ : int
        Multiply-accumulates of the head for one sample, counted by torch.
    feature_shape_ : tuple of int
        Shape of one sample's features.
    solver_ : str
        Solver that trained the head, where `solver` may have been "auto".
    n_iter_ : int
        Number of epochs, updates or iterations done.
    loss_curve_ : list of float
        Mean loss of each epoch (Adam) or evaluation (L-BFGS), penalty excluded.
    validation_loss_curve_ : list of float
        Mean loss of the rows held out after each epoch; empty without `early_stopping`.
    n_features_in_ : int
        Number of columns of `X` seen in fit.
    feature_names_in_ : ndarray of str, shape (n_features_in_,)
        Names of those columns, where `X` had names.

    See Also
    --------
    PrototypePoolingClassifier : CalexNet's head with its parameters spelled out.

    Notes
    -----
    Initial parameters, dropout and all else in a module of yours that draws from
    torch's global generator follow `random_state`; the generator is then what it was.
    A batch normalisation of torch's counts rows alike, whatever their weights. `save`
    writes the module's weights, and of `head` its name: it must be a function or class
    at the top of a module that can be imported, and `load` needs ``trusted=True``.

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

    With a head of your own:

    >>> import torch
    >>> def two_layers(feature_shape, n_classes, width=8):
    ...     return torch.nn.Sequential(
    ...         torch.nn.Linear(*feature_shape, width),
    ...         torch.nn.ReLU(),
    ...         torch.nn.Linear(width, n_classes),
    ...     )
    >>> BranchClassifier(two_layers, random_state=0).fit(X, y).macs_
    56
    """

    _parameter_constraints = {
        "head": [StrOptions(set(HEADS)), callable],
        "head_params": [dict, None],
        **BaseBranch._parameter_constraints,
    }

    def __init__(
        self,
        head: str | Callable[..., nn.Module] = "conv",
        *,
        head_params: dict[str, Any] | None = None,
        feature_shape: tuple[int, ...] | None = None,
        temperature: float = 2.0,
        alpha: float = 0.5,
        solver: str = "auto",
        max_iter: int | None = None,
        batch_size: int = 256,
        learning_rate: float | None = None,
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
        if isinstance(self.head, str):
            return build_head(
                self.head, shape, n_classes, generator=generator, **params
            )
        check_factory(self.head)
        return build_own_head(self.head, shape, n_classes, generator, params)

    def _head_is_linear(self) -> bool:
        return isinstance(self.head, str) and HEADS[self.head].is_linear

    def _draws_during_training(self) -> bool:
        return not isinstance(self.head, str)

    def _archive_state(self) -> dict[str, Any]:
        state = super()._archive_state()
        if not isinstance(self.head, str):
            state["head"] = ImportedName.of(self.head, "head")
        return state

    def _restore_archive(self, state: dict[str, Any], backbone: Any) -> None:
        if isinstance(state["head"], ImportedName):
            state["head"] = state["head"].found
        super()._restore_archive(state, backbone)


@savable
class PrototypePoolingClassifier(BaseBranch):
    """Train CalexNet's branch: a light trunk, then pooling by learned prototypes.

    The trunk's output u at each position is compared with M prototypes (cosine); each
    prototype pools the positions by attention, and the pooled similarities join the
    mean and the maximum of u before a linear layer.

    Parameters
    ----------
    n_prototypes : int, default=None
        Number M of prototypes, learned directions that positions are compared with.
        None: two for each class.
    widths : tuple of int, default=(96, 128)
        Channels of the trunk's layers: 3x3 convolutions on maps (the first of stride 2
        where both sides exceed 4), linear layers on tokens and vectors. Narrower ones
        cost less. ``()`` leaves the trunk out and projects to `dim`.
    dim : int, default=64
        Channels of the projection that takes the trunk's place where ``widths=()``.
    feature_shape : tuple of int, default=None
        Shape of one sample's features, of which a row of `X` is the flattened form.

        - ``(C, H, W)``: a map of C channels, as convolutions make it.
        - ``(L, D)``: L tokens of D features each, as transformers make them.
        - ``(D,)``: a flat vector.
        - None: ``(n_features,)``; inside a cascade, the shape of the tap.
    temperature : float, default=2.0
        Temperature T > 0 by which soft targets and logits are softened in the loss.
        Higher values teach more about the unlikely classes; the paper takes 4.
    alpha : float, default=0.5
        Share of the soft targets in the loss, from 0 to 1; the true labels have the
        rest. Without soft targets the labels have all.
    solver : {"auto", "adam", "adam_full_batch", "lbfgs"}, default="auto"
        Algorithm that trains the head.

        - "auto": up to 100,000 numbers in `X`, "lbfgs" for the linear heads ("gap",
          "sdn") and "adam_full_batch" for the others; "adam" for larger data or with
          `early_stopping`.
        - "adam": mini-batch AdamW in float32 under a one-cycle schedule. For data of
          any size, memory maps included.
        - "adam_full_batch": Adam on all rows at once in float64, with the same
          schedule. No randomness, and integer weights are repetition. Rounding in the
          features stays rounding in the probabilities.
        - "lbfgs": L-BFGS on all rows at once in float64. Most accurate on linear heads;
          on others its result hangs on the last bits of the features.
    max_iter : int, default=None
        Length of the training: epochs (adam), updates (adam_full_batch) or iterations
        (lbfgs). None: 12 epochs and at least as many as give 400 updates; 60 updates;
        30 iterations.
    batch_size : int, default=256
        Rows in a mini-batch of "adam"; a last, smaller batch is left out of the epoch.
    learning_rate : float, default=None
        Highest rate of Adam's one-cycle schedule. None: 0.003 for mini-batches; for
        full batches 0.02 ("conv1d"), 0.01 ("prototype") or 0.005 (the other heads).
        "lbfgs" does not use it.
    weight_decay : float, default=1e-2
        Strength of the regularisation: decoupled weight decay with "adam", a penalty of
        ``weight_decay / 2 * ||parameters||^2`` on the mean loss with the full batch.
    early_stopping : bool, default=False
        Whether to hold rows out, watch their loss, and keep the weights of the best
        epoch. For "adam" only.
    validation_fraction : float, default=0.1
        Share of the rows that `early_stopping` holds out, stratified by class, strictly
        between 0 and 1.
    n_iter_no_change : int, default=5
        Number of epochs without a gain of `tol` in the held-out loss after which
        `early_stopping` ends the training.
    tol : float, default=1e-4
        Least fall of the held-out loss that `early_stopping` counts as a gain.
    warm_start : bool, default=False
        Whether `fit` goes on from the head of the last fit, which must have seen the
        same classes and shape. False: each fit starts anew.
    device : str, default="auto"
        Torch device that trains and answers, such as "cpu" or "cuda:1". "auto" takes
        the first of CUDA, XPU and MPS that torch sees and that computes in float64,
        as small data need it, otherwise the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial parameters, the order of the mini-batches and the rows held
        out. Give an int for the same result in every fit.
    verbose : int, default=0
        Whether to show progress on stderr: 1 shows a bar over the epochs, or over the
        evaluations of the loss with "lbfgs"; 0 nothing.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels, in the order of the columns of `predict_proba`.
    head_ : torch.nn.Module
        The trained head, in eval mode; in float64 after a full-batch fit.
    macs_ : int
        Multiply-accumulates of the head for one sample, counted by torch.
    feature_shape_ : tuple of int
        Shape of one sample's features.
    solver_ : str
        Solver that trained the head, where `solver` may have been "auto".
    n_iter_ : int
        Number of epochs, updates or iterations done.
    loss_curve_ : list of float
        Mean loss of each epoch (Adam) or evaluation (L-BFGS), penalty excluded.
    validation_loss_curve_ : list of float
        Mean loss of the rows held out after each epoch; empty without `early_stopping`.
    n_features_in_ : int
        Number of columns of `X` seen in fit.
    feature_names_in_ : ndarray of str, shape (n_features_in_,)
        Names of those columns, where `X` had names.

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
        learning_rate: float | None = None,
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

    def _head_is_linear(self) -> bool:
        return False
