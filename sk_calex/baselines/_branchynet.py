"""BranchyNet on a frozen backbone."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils._param_validation import StrOptions

from sk_calex.backbone._layout import TapLayout
from sk_calex.baselines._exit_net import ExitNet, LabelNet
from sk_calex.branches._heads import HEADS
from sk_calex.cascade._training_data import TrainingData
from sk_calex.policies import EntropyThreshold, ExitPolicy
from sk_calex.utils._codec import savable

from ._joint import JointCascade

__all__ = ["BranchyNetClassifier"]


@savable
class BranchyNetClassifier(JointCascade):
    """BranchyNet: a small convolutional branch at each tap, exit at low entropy.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier, as of `CascadeClassifier`; None for plain 2-D data, or
        features that carry their layout.
    threshold : float or "auto", default=0.5
        The knob: exit where the entropy of the probabilities, in nats, is at most this.
        From 0, where no sample exits, to just above ``log(n_classes)``, where all do.
    branch_weights : array-like of shape (n_branches,), default=None
        Weights of the branches' losses, positive. None: all 1.
    head : str, default="conv"
        Head of the branches, a name of `sk_calex.branches._heads.HEADS`.
    head_params : dict, default=None
        Parameters of the head, by their names in its class; None means its defaults.
    final_estimator : classifier, default=None
        Trained on the backbone's outputs and answering in its place: for a backbone
        that never saw the classes.
    calibrator : ExitPolicy, default=None
        Exit rule of `sk_calex.policies`, or a `SurvivorThresholdCalibrator`, in place
        of the method's own. It decides by its own knob: leave the method's at its
        default then.
    max_accuracy_drop : float, default=0.005
        With ``threshold="auto"``: accuracy that may be lost against the last stage
        alone, as of `CascadeClassifier`.
    solver : {"auto", "adam", "adam_full_batch", "lbfgs"}, default="auto"
        Algorithm that trains the heads.

        - "auto": up to 100,000 numbers in the taps, all rows at once: "lbfgs" where
          every head is linear ("gap", "sdn"), "adam_full_batch" otherwise; "adam" for
          larger data.
        - "adam": mini-batch AdamW in float32, for data of any size.
        - "adam_full_batch", "lbfgs": all rows at once in float64, without randomness;
          integer weights are repetition. With "lbfgs" the result of a head that is not
          linear hangs on rounding.
    max_iter : int, default=None
        Epochs (adam), updates (adam_full_batch) or iterations (lbfgs). None: 12 epochs
        and at least 400 updates; 60 updates; 30 iterations.
    batch_size : int, default=256
        Rows of a mini-batch (adam): larger ones are quicker for each epoch, smaller
        ones make more updates.
    learning_rate : float, default=None
        Highest rate of Adam's one-cycle schedule; lower it where the loss does not
        fall. None: 0.003 for mini-batches, and for full batches 0.005 to 0.02, by the
        kind of head. "lbfgs" does not use it.
    weight_decay : float, default=1e-2
        Decoupled weight decay (adam), or L2 penalty on the mean loss (full batch).
    cv : float, int or splitter, default=0.2
        What is held out to fit the exit rule, as of `CascadeClassifier`.
    costs : array-like of shape (n_branches + 1,) or dict, default=None
        Cost of an answer at each depth in another unit than MACs, as of
        `CascadeClassifier`.
    input : {"samples", "features"}, default="samples"
        What `X` holds: samples, or the output of `FrozenBackbone.transform`, for fits
        that share it.
    memory : str or joblib.Memory, default=None
        Where trained heads are cached: a search over the knob trains them once.
    device : str, default="auto"
        Torch device of the heads; "auto" is the first of CUDA, XPU and MPS that torch
        sees and that computes in float64, else the CPU.
    random_state : int, RandomState instance or None, default=None
        Seed of the split, the initialisation and the mini-batches; an int makes fits
        repeat.
    verbose : int, default=0
        1 shows progress bars on stderr, as of `CascadeClassifier`; 0 shows nothing.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    net_ : ExitNet
        The trained heads, in eval mode.
    calibrator_ : ExitPolicy
        The fitted exit rule.
    n_iter_ : int
        Epochs or iterations done.
    loss_curve_ : list of float
        Mean loss of each epoch (Adam) or evaluation (lbfgs).
    depth_costs_ : ndarray of float64, shape (n_branches + 1,)
        MACs of an answer at each depth, heads included.
    backbone_, final_estimator_, layout_, n_features_in_
        As of `CascadeClassifier`.

    Notes
    -----
    With z_k the logits of branch k, p_k their softmax and v the `branch_weights`:

        loss = sum_k v_k mean w CE(z_k, y)
        exit at the first k with -sum_c p_k[c] log p_k[c] <= threshold

    After Teerapittayanon et al. (2016). Deviations: one threshold for all branches,
    where the paper has one each, so that there is one knob, and the threshold itself
    exits; the head ends in the mean and the maximum over the positions, where the
    paper's branches flatten them; AdamW under a one-cycle schedule. The paper trains
    the network and its branches together, and the weights v decide what the shared
    layers learn. Here the branches share nothing: v only weighs each loss against
    `weight_decay`.

    References
    ----------
    Teerapittayanon, S., McDanel, B. & Kung, H. T. (2016). BranchyNet: Fast inference
    via early exiting from deep neural networks. ICPR.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex.baselines import BranchyNetClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = BranchyNetClassifier(threshold=0.5, random_state=0).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> _ = cascade.set_operating_point(0.8)  # no refit
    """

    knob: ClassVar[str] = "threshold"

    _parameter_constraints = {
        "threshold": EntropyThreshold._parameter_constraints["threshold"],
        "branch_weights": ["array-like", None],
        "head": [StrOptions(set(HEADS))],
        "head_params": [dict, None],
        **JointCascade._parameter_constraints,
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        threshold: float | str = 0.5,
        branch_weights: Any = None,
        head: str = "conv",
        head_params: dict[str, Any] | None = None,
        final_estimator: Any = None,
        calibrator: ExitPolicy | None = None,
        max_accuracy_drop: float = 0.005,
        solver: str = "auto",
        max_iter: int | None = None,
        batch_size: int = 256,
        learning_rate: float | None = None,
        weight_decay: float = 1e-2,
        cv: Any = 0.2,
        costs: Any = None,
        input: str = "samples",
        memory: Any = None,
        device: str = "auto",
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.threshold = threshold
        self.branch_weights = branch_weights
        self.head = head
        self.head_params = head_params
        self.final_estimator = final_estimator
        self.calibrator = calibrator
        self.max_accuracy_drop = max_accuracy_drop
        self.solver = solver
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.cv = cv
        self.costs = costs
        self.input = input
        self.memory = memory
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _net(self, data: TrainingData, generator: torch.Generator) -> ExitNet:
        return LabelNet(
            data.layout.shapes,
            data.n_classes,
            self.head,
            self.head_params,
            generator,
            self._weights(data.layout),
        )

    def _weights(self, layout: TapLayout) -> list[float] | None:
        if self.branch_weights is None:
            return None
        weights = np.asarray(self.branch_weights, dtype=np.float64)
        if weights.shape != (layout.n_taps,) or not (
            np.isfinite(weights).all() and weights.min() > 0
        ):
            raise ValueError(
                f"branch_weights={self.branch_weights!r} must be {layout.n_taps} "
                f"finite positive numbers, one for each tap: {list(layout.names)}. "
                "None weighs all alike."
            )
        return weights.tolist()

    def _rule(self) -> ExitPolicy:
        return EntropyThreshold(self.threshold)
