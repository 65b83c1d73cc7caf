"""Zero Time Waste on a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.utils._param_validation import Interval
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sk_calex.baselines._exit_net import ExitNet, ExitRows
from sk_calex.branches._layers import (
    BranchHead,
    Pointwise,
    integer,
    linear,
    mixed_pool,
    pooled_grid,
    relu,
)
from sk_calex.cascade._ensembles import LogMean, fit_log_mean
from sk_calex.cascade._training_data import TrainingData
from sk_calex.policies import ExitPolicy, SharedThreshold
from sk_calex.utils._codec import savable
from sk_calex.utils._progress import labelled

from ._joint import JointCascade

__all__ = ["ZTWClassifier"]

_ROWS = 1024
# Just enough that no weight grows without end where the answers are all right.
_ENSEMBLE_DECAY = 1e-4


class ZTWHead(BranchHead):
    """Convolution, ReLU, mixed pooling; linear on that and on the logits before."""

    def __init__(
        self,
        feature_shape: Sequence[int],
        n_classes: int,
        *,
        width: int,
        n_before: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__(feature_shape, n_classes)
        width = integer("width", width)
        if len(self.feature_shape) == 3:
            stride = 2 if min(self.feature_shape[1:]) > 4 else 1
            self.conv: nn.Module = _drawn(
                skip_init(
                    nn.Conv2d, self.in_channels, width, 3, stride=stride, padding=1
                ),
                generator,
            )
            height, breadth = (-(-side // stride) for side in self.feature_shape[1:])
            self.grid = pooled_grid((width, height, breadth))
        else:
            self.conv = _drawn(skip_init(Pointwise, self.in_channels, width), generator)
            self.grid = pooled_grid(self.feature_shape)
        self.alpha = nn.Parameter(torch.tensor(0.5))
        n_pooled = width * self.grid[0] * self.grid[1]
        self.classifier = linear(n_pooled + n_before, n_classes, generator)

    def forward(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Compute logits (n, n_classes); `before` are those of the branch before."""
        u = relu(self.conv(self._as_map(x)))
        u = mixed_pool(u, self.grid, self.alpha)
        return self.classifier(u if before is None else torch.cat([u, before], dim=1))


def _drawn(
    layer: nn.Conv2d | nn.Linear, generator: torch.Generator
) -> nn.Conv2d | nn.Linear:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
    nn.init.zeros_(cast(Tensor, layer.bias))
    return layer


class ZTW(ExitNet):
    """Each head sees the logits before; then ensembles of all heads so far.

    The outputs of a branch, and its memory, are the logits of all branches so far, side
    by side. `exponents` and `shifts` hold the ensembles: row k, of branch k.
    """

    separable: ClassVar[bool] = True
    exponents: Tensor
    shifts: Tensor

    def __init__(
        self,
        shapes: Sequence[tuple[int, ...]],
        n_classes: int,
        width: int,
        ensemble: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__(shapes, n_classes)
        self.ensemble = ensemble
        self.heads = nn.ModuleList(
            ZTWHead(
                shape,
                n_classes,
                width=width,
                n_before=n_classes if k else 0,
                generator=generator,
            )
            for k, shape in enumerate(shapes)
        )
        self.register_buffer("exponents", torch.zeros(len(shapes), len(shapes)))
        self.register_buffer("shifts", torch.zeros(len(shapes), n_classes))

    def exit(
        self, branch: int, tap: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Join logits of all branches so far: (n, (branch + 1) * n_classes), twice."""
        if memory is None:
            logits = self.heads[branch](tap)
            return logits, logits
        # No gradient goes back: each head's loss is its own.
        before = memory.detach()
        logits = self.heads[branch](tap, before[:, -self.n_classes :])
        logits = torch.cat([before, logits], dim=1)
        return logits, logits

    def loss(
        self, outputs: list[Tensor], labels: Tensor, final: Tensor, weight: Tensor
    ) -> Tensor:
        """Compute ``sum_k mean w CE(z_k, y)``; see `ExitNet.loss`."""
        losses = [
            F.cross_entropy(z[:, -self.n_classes :], labels, reduction="none")
            for z in outputs
        ]
        return (weight * torch.stack(losses).sum(dim=0)).mean()

    def finish(self, rows: ExitRows) -> None:
        """Fit the ensemble of each branch on the log-probabilities of the rows."""
        if not self.ensemble:
            return
        log_proba = self._log_proba(rows)
        labels = torch.from_numpy(rows.labels.astype(np.int64))
        weight = torch.from_numpy(rows.weight)
        for k in range(len(self.heads)):
            mean = LogMean(k + 1, self.n_classes)
            with labelled(f"ensemble {k + 1} of {len(self.heads)}"):
                fit_log_mean(
                    mean,
                    log_proba[:, : k + 1],
                    labels,
                    weight,
                    weight_decay=_ENSEMBLE_DECAY,
                )
            self.exponents[k, : k + 1] = mean.exponents.detach().to(self.exponents)
            self.shifts[k] = mean.shift.detach().to(self.shifts)

    def _log_proba(self, rows: ExitRows) -> Tensor:
        """Compute those of all branches on the rows, (n, K, C), float64, on the CPU."""
        parameter = next(self.parameters())
        parts = []
        with torch.no_grad():
            for start in range(0, len(rows), _ROWS):
                index = torch.arange(start, min(start + _ROWS, len(rows)))
                taps, *_ = rows.tensors(index, parameter.device, parameter.dtype)
                parts.append(self._as_log_proba(self(taps)[-1]))
        return torch.cat(parts)

    def _as_log_proba(self, outputs: Tensor) -> Tensor:
        # To the CPU first: not every device has float64.
        logits = outputs.cpu().double().unflatten(1, (-1, self.n_classes))
        return logits.log_softmax(dim=2)

    def read_tensors(self, branch: int, outputs: Tensor) -> tuple[Tensor, None]:
        """Return the logits of the ensemble, or of the head alone."""
        if not self.ensemble:
            return outputs[:, -self.n_classes :], None
        used = branch + 1
        weight = self.exponents[branch, :used].cpu().double().exp() / used
        mean = torch.einsum("nkc,k->nc", self._as_log_proba(outputs), weight)
        return mean + self.shifts[branch].cpu().double(), None


@savable
class ZTWClassifier(JointCascade):
    """Zero Time Waste: no branch forgets what the branches before it said.

    Each head sees the logits of the one before, and the answer of a branch is an
    ensemble of all heads so far, so that what did not exit is not wasted.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier, as of `CascadeClassifier`; None for plain 2-D data, or
        features that carry their layout.
    threshold : float or "auto", default=0.9
        The knob: exit where the largest probability of the ensemble reaches it.
    ensemble : bool, default=True
        Whether branches answer by the ensemble. False leaves the second stage of the
        training out: a branch then answers by its own head.
    width : int, default=96
        Channels of each head's convolution.
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
          linear hangs on rounding. "lbfgs" trains one head after the other; the
          ensembles always have it.
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
    n_iter_ : int
        Epochs or iterations done on the heads.
    loss_curve_ : list of float
        Mean loss of the heads in each epoch (adam) or evaluation (lbfgs).
    depth_costs_ : ndarray of float64, shape (n_branches + 1,)
        MACs of an answer at each depth, heads included; the ensembles, a few numbers a
        class, are not counted.
    backbone_, final_estimator_, layout_, n_features_in_
        As of `CascadeClassifier`.

    Notes
    -----
    With u_k what the convolution of head k makes of its tap, mixed pooling as of the
    head "sdn", and sg the identity without a gradient, first:

        z_1 = W_1 pool(relu(u_1));  z_k = W_k [pool(relu(u_k)); sg(z_{k-1})]
        loss = sum_k mean w CE(z_k, y)

    and then, the heads fixed, for each k with its own w and b, on the training rows:

        log q_k = log_softmax((1/k) sum_{j<=k} e^{w_kj} log softmax(z_j) + b_k)
        loss_k  = mean w CE(q_k, y)
        exit at the first k with max q_k >= threshold

    After Wolczyk et al. (2021), Wojcik et al. (2023) and their public code. As in the
    code, the last stage answers alone. Deviations: the ensembles start from w = 0 and
    are fitted by full-batch L-BFGS in float64, with an L2 penalty of 1e-4 that keeps
    them finite, where the paper takes some 500 epochs of Adam at 5e-4; the heads by
    AdamW under a one-cycle schedule in place of 50 epochs of Adam at 1e-3, divided by
    ten at epoch 15. The convolution has a stride of 2 on maps larger than 4 x 4 and a
    width that does not follow the tap's, at a fraction of the cost; on tokens it is a
    linear layer at each position (our definition). The code may normalise the logits
    that are passed on, which leaves of two classes only the sign; here they are not. An
    answer at the threshold itself exits, where the code requires more than it.

    The heads are over-confident on the rows that trained them, and the ensembles are
    fitted there: their probabilities are sharper than they are right, and where a head
    has learned its training rows by heart, it can be better alone.

    References
    ----------
    Wolczyk, M., Wojcik, B., Balazy, K., Podolak, I., Tabor, J., Smieja, M. &
    Trzcinski, T. (2021). Zero Time Waste: Recycling predictions in early exit neural
    networks. NeurIPS.

    Wojcik, B., Przewiezlikowski, M., Szatkowski, F., Wolczyk, M., Balazy, K., et al.
    (2023). Zero time waste in pre-trained early exit neural networks. Neural Networks.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex.baselines import ZTWClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = ZTWClassifier(threshold=0.8, random_state=0).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> _ = cascade.set_operating_point(0.6)  # no refit
    """

    knob: ClassVar[str] = "threshold"

    _parameter_constraints = {
        "threshold": SharedThreshold._parameter_constraints["threshold"],
        "ensemble": ["boolean"],
        "width": [Interval(Integral, 1, None, closed="left")],
        **JointCascade._parameter_constraints,
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        threshold: float | str = 0.9,
        ensemble: bool = True,
        width: int = 96,
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
        self.ensemble = ensemble
        self.width = width
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
        return ZTW(
            data.layout.shapes,
            data.n_classes,
            self.width,
            bool(self.ensemble),
            generator,
        )

    def _rule(self) -> ExitPolicy:
        return SharedThreshold(self.threshold)
