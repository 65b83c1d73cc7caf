"""PTEENet on a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn

from sk_calex.baselines._exit_net import ExitNet
from sk_calex.branches._layers import BranchHead, integers, linear, trunk
from sk_calex.cascade._costs import stage_and_head_macs
from sk_calex.cascade._training_data import TrainingData
from sk_calex.policies import ExitPolicy, OwnGate
from sk_calex.utils._codec import savable
from sk_calex.utils._flops import depth_costs

from ._joint import JointCascade

__all__ = ["PTEENetClassifier"]


class PTEENetHead(BranchHead):
    """Convolutions, mean, then class logits and the logit of a confidence."""

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        widths: Sequence[int],
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        widths = integers("widths", widths, 1)
        self.body = trunk(self.feature_shape, widths, generator)
        self.classifier = linear(widths[-1], self.n_classes, generator)
        self.confidence = linear(widths[-1], 1, generator)

    def _logits(self, x: Tensor) -> Tensor:
        u = self.body(x).mean((2, 3))
        return torch.cat([self.classifier(u), self.confidence(u)], dim=1)


class PTEENet(ExitNet):
    """Heads whose confidences mix their answers with those of the stages after them.

    `costs` are those of an answer at each depth, relative to the plain backbone.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        n_classes: int,
        widths: Sequence[int],
        cost_weight: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(shapes, n_classes)
        self.cost_weight = cost_weight
        self.costs: tuple[float, ...] = ()
        self.heads = nn.ModuleList(
            PTEENetHead(shape, n_classes, widths=widths, generator=generator)
            for shape in shapes
        )

    def loss(
        self, outputs: list[Tensor], labels: Tensor, final: Tensor, weight: Tensor
    ) -> Tensor:
        """Compute ``mean w (lambda C_0 - log Y_0[t])``, t the last stage's answer.

        The recursion runs on the logarithm of the one probability that the loss looks
        at: ``log Y_k = logaddexp(log h_k + log y_k, log(1 - h_k) + log Y_{k+1})``. The
        last stage gives its own answer at least 1 / n_classes, so no logarithm is
        infinite. See `ExitNet.loss`.
        """
        top, target = final.max(dim=1)
        log_mixture, cost = top.log(), torch.full_like(top, self.costs[-1])
        for output, depth_cost in zip(
            reversed(outputs), reversed(self.costs[:-1]), strict=True
        ):
            logits, trust = output[:, :-1], output[:, -1]
            own = -F.cross_entropy(logits, target, reduction="none")
            log_mixture = torch.logaddexp(
                F.logsigmoid(trust) + own, F.logsigmoid(-trust) + log_mixture
            )
            cost = cost.lerp(torch.full_like(cost, depth_cost), trust.sigmoid())
        return (weight * (self.cost_weight * cost - log_mixture)).mean()

    def read_tensors(self, branch: int, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Split outputs into class logits, and the confidence as the gate."""
        return outputs[:, :-1], outputs[:, -1].double().sigmoid()


@savable
class PTEENetClassifier(JointCascade):
    """PTEENet: each branch learns how far its answer is to be trusted.

    Beside its answer, a branch gives a confidence. Trained together, the confidences
    decide how much each answer counts, and how much the average sample costs.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier, as of `CascadeClassifier`; None for plain 2-D data, or
        features that carry their layout.
    threshold : float or "auto", default=0.5
        The knob: exit where the confidence reaches it. Moved without a refit.
    cost_weight : float, default=1.0
        Weight of the cost in the loss, at least 0. The paper's curve is a fit for each
        value of it: search it with `GridSearchCV`.
    widths : tuple of int, default=(96, 128)
        Channels of the convolutions, as of the head "conv".
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
    weight_decay : float, default=1e-4
        Decoupled weight decay (adam), or L2 penalty on the mean loss (full batch). Less
        than elsewhere: a branch that is hardly trusted has hardly any gradient, and a
        stronger penalty would wipe it out.
    cv : float, int or splitter, default=0.2
        What is held out to fit the exit rule, as of `CascadeClassifier`; this method's
        own takes no statistics of it.
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
    relative_costs_ : ndarray of float64, shape (n_branches + 1,)
        Costs in the loss: `depth_costs_` over the cost of the plain backbone, or
        evenly spaced where the MACs are unknown.
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
    With y_k the softmax and h_k the sigmoid of branch k, y_K the probabilities of the
    last stage, t its answer, and c_k the relative cost of an answer at depth k, from
    the last branch to the first:

        Y_K = y_K;  Y_k = h_k y_k + (1 - h_k) Y_{k+1}
        C_K = c_K;  C_k = h_k c_k + (1 - h_k) C_{k+1}
        loss = mean w (-log Y_0[t] + cost_weight C_0)
        exit at the first k with h_k >= threshold

    The true labels train nothing, but a `final_estimator`. The loss is computed in log
    space. It reaches a branch only as far as the branch is trusted: with costs that
    weigh little, or a tap that adds little, a branch may never begin to exit.

    After Lahiany & Aperstein (2022) and their public code, which has several losses;
    this is the one that it trains the branches with, at a `cost_weight` of 1 and with
    the last stage's answers as labels, too. Deviations: c_k counts every head on the
    way, where the code counts only the one that answers and none at the last stage;
    where the MACs of a stage are unknown, it is ``(k + 1) / (n_branches + 1)`` (our
    definition). The convolutions are the trunk of CalexNet's head, where the code has
    as many channels as the tap and no stride, at several times the cost. AdamW under a
    one-cycle schedule in place of 50 epochs of Adam at 1e-3. The threshold itself
    exits, too. The paper's rule is ``h > 0.5`` and its curve is over `cost_weight`; the
    threshold as a knob is our definition.

    References
    ----------
    Lahiany, A. & Aperstein, Y. (2022). PTEENet: Post-trained early-exit neural networks
    augmentation for inference cost optimization. IEEE Access 10.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex.baselines import PTEENetClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = PTEENetClassifier(random_state=0).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> _ = cascade.set_operating_point(0.7)  # no refit
    """

    knob: ClassVar[str] = "threshold"

    _parameter_constraints = {
        "threshold": OwnGate._parameter_constraints["threshold"],
        "cost_weight": [Interval(Real, 0, None, closed="left")],
        "widths": [tuple, list],
        **JointCascade._parameter_constraints,
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        threshold: float | str = 0.5,
        cost_weight: float = 1.0,
        widths: tuple[int, ...] = (96, 128),
        final_estimator: Any = None,
        calibrator: ExitPolicy | None = None,
        max_accuracy_drop: float = 0.005,
        solver: str = "auto",
        max_iter: int | None = None,
        batch_size: int = 256,
        learning_rate: float | None = None,
        weight_decay: float = 1e-4,
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
        self.cost_weight = cost_weight
        self.widths = widths
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
        net = PTEENet(
            data.layout.shapes,
            data.n_classes,
            tuple(self.widths),
            float(self.cost_weight),
            generator,
        )
        self._head_macs_ = net.macs()
        self.relative_costs_ = self._relative_costs(data.layout.n_taps)
        net.costs = tuple(self.relative_costs_.tolist())
        return net

    def _relative_costs(self, n_branches: int) -> NDArray[np.float64]:
        """Compute each depth's cost over the backbone's; by depth alone if unknown."""
        try:
            stages, heads = stage_and_head_macs(self)
        except ValueError:
            stages = [0]
        if sum(stages) == 0:
            return np.arange(1, n_branches + 2) / (n_branches + 1)
        return depth_costs(stages, heads) / sum(stages)

    def _rule(self) -> ExitPolicy:
        return OwnGate(self.threshold)
