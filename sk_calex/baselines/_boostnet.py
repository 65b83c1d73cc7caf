"""BoostNet on a frozen backbone."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor

from sk_calex.backbone._layout import TapLayout
from sk_calex.baselines._exit_net import ExitNet, LabelNet
from sk_calex.branches._heads import HEADS
from sk_calex.branches._training import branch_loss
from sk_calex.cascade._branch_settings import check_shares
from sk_calex.cascade._training_data import TrainingData
from sk_calex.policies import ExitPolicy, Quota
from sk_calex.utils._codec import savable

from ._joint import JointCascade

__all__ = ["BoostNetClassifier"]

# Of the soft targets, as of the branches of a CascadeClassifier.
_TEMPERATURE = 2.0
# A class may have no probability at all.
_LEAST = 1e-12


class BoostNet(LabelNet):
    """Each head adds to a shrunken sum of those before it, which it cannot change.

    `alphas` are the shares of the soft targets in what each branch learns.
    """

    def __init__(
        self, *args: Any, shrinkage: float, alphas: Sequence[float] | None = None
    ) -> None:
        super().__init__(*args)
        self.shrinkage = shrinkage
        self.alphas = tuple([0.0] * len(self.shapes) if alphas is None else alphas)

    def loss(
        self, outputs: list[Tensor], labels: Tensor, final: Tensor, weight: Tensor
    ) -> Tensor:
        """Compute the sum of each branch's `branch_loss`; see `ExitNet.loss`."""
        if not any(self.alphas):
            return super().loss(outputs, labels, final, weight)
        soft = (final.clamp_min(_LEAST).log() / _TEMPERATURE).softmax(dim=1)
        losses = [
            branch_loss(z, labels, weight, soft, temperature=_TEMPERATURE, alpha=alpha)
            for z, alpha in zip(outputs, self.alphas, strict=False)
        ]
        return torch.stack(losses).sum()

    def exit(
        self, branch: int, tap: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Compute outputs ``F_k = z_k + E_k`` and memory ``E_{k+1} = t F_k``."""
        outputs = self.heads[branch](tap)
        if memory is not None:
            outputs = outputs + memory
        return outputs, self.shrinkage * outputs.detach()


@savable
class BoostNetClassifier(JointCascade):
    """BoostNet: each branch adds to what the branches before it said.

    Parameters
    ----------
    backbone : FrozenBackbone, default=None
        The frozen classifier, as of `CascadeClassifier`; None for plain 2-D data, or
        features that carry their layout.
    quota_decay : float or "auto", default=1.0
        The knob, above 0, as of `Quota`: the share of samples answered at depth k is
        proportional to ``quota_decay ** k``. The authors sweep it from 0.05 to 1.95.
    shrinkage : float, default=0.5
        Share of the sum so far that the next branch adds to, in [0, 1]; 0: independent
        branches.
    head : str, default="conv"
        Head of the branches, a name of `sk_calex.branches._heads.HEADS`.
    head_params : dict, default=None
        Parameters of the head, by their names in its class; None means its defaults.
    alpha : float or sequence of float, default=0.0
        Share of soft targets, the probabilities of the last stage at T = 2, in what
        branches learn, in [0, 1], for all or for each; the labels have the rest. 0 is
        the method; 0.5 on early branches measured better where much is saved, and a
        little worse where little is.
    ensemble : bool, default=False
        Whether each stage, the last included, answers by a weighted geometric mean of
        its probabilities and those of the branches before, as of `CascadeClassifier`.
        False is the method; True measured better where branches can correct the last
        stage, and no worse elsewhere.
    final_estimator : classifier, default=None
        Trained on the backbone's outputs and answering in its place: for a backbone
        that never saw the classes.
    calibrator : ExitPolicy, default=None
        Exit rule of `sk_calex.policies`, or a `SurvivorThresholdCalibrator`, in place
        of the method's own. It decides by its own knob: leave the method's at its
        default then.
    max_accuracy_drop : float, default=0.005
        With ``quota_decay="auto"``: accuracy that may be lost against the last stage
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
    backbone_, ensembles_, final_estimator_, layout_, n_features_in_
        As of `CascadeClassifier`.

    See Also
    --------
    CascadeClassifier : Trains branches one by one, each by itself.

    Notes
    -----
    With z_k what head k computes, t the `shrinkage` and sg the identity without a
    gradient:

        E_0 = 0;  F_k = z_k + sg(E_k);  E_{k+1} = t (z_k + E_k)
        loss = sum_k mean w CE(F_k, y)
        p_k = softmax(F_k)

    So each branch learns what the sum of those before it gets wrong. After Yu et al.
    (2023) and their public code. Deviations: their head, too, is two convolutions with
    batch normalisation and ReLU, but of 128 channels, each with stride 2, and with the
    mean alone; AdamW under a one-cycle schedule in place of SGD. The paper also
    rescales the gradients that the branches send into the network: into a frozen one
    they send none. Its last classifier is trained as one more term of the sum, where
    the frozen one answers alone. And where fewer samples than its quota reach a branch,
    the code lets none of them exit, and `Quota` all. `alpha` and `ensemble` are ours:
    together with ``OptimalStopping("auto")`` they make it the strongest rival of
    `RECIPE_SETTINGS` (figures on the page "The recipe on several backbones").

    References
    ----------
    Yu, H., Li, H., Hua, G., Huang, G. & Shi, H. (2023). Boosted dynamic neural
    networks. AAAI.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex.baselines import BoostNetClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = BoostNetClassifier(quota_decay=1.0, random_state=0).fit(X, y)
    >>> labels, depth = cascade.predict(X, return_depth=True)
    >>> _ = cascade.set_operating_point(0.5)  # no refit
    >>> from sk_calex.policies import OptimalStopping
    >>> together = BoostNetClassifier(
    ...     ensemble=True, calibrator=OptimalStopping("auto"), random_state=0
    ... ).fit(X, y)
    """

    knob: ClassVar[str] = "quota_decay"

    _parameter_constraints = {
        "quota_decay": Quota._parameter_constraints["decay"],
        "shrinkage": [Interval(Real, 0, 1, closed="both")],
        "head": [StrOptions(set(HEADS))],
        "head_params": [dict, None],
        "alpha": [Interval(Real, 0, 1, closed="both"), "array-like"],
        "ensemble": ["boolean"],
        **JointCascade._parameter_constraints,
    }

    def __init__(
        self,
        backbone: Any = None,
        *,
        quota_decay: float | str = 1.0,
        shrinkage: float = 0.5,
        head: str = "conv",
        head_params: dict[str, Any] | None = None,
        alpha: float | Sequence[float] = 0.0,
        ensemble: bool = False,
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
        self.quota_decay = quota_decay
        self.shrinkage = shrinkage
        self.head = head
        self.head_params = head_params
        self.alpha = alpha
        self.ensemble = ensemble
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

    def _check_taps(self, layout: TapLayout) -> None:
        check_shares(self.alpha, layout.n_taps)

    def _answers_together(self) -> bool:
        return bool(self.ensemble)

    def _net(self, data: TrainingData, generator: torch.Generator) -> ExitNet:
        return BoostNet(
            data.layout.shapes,
            data.n_classes,
            self.head,
            self.head_params,
            generator,
            shrinkage=self.shrinkage,
            alphas=check_shares(self.alpha, data.layout.n_taps),
        )

    def _rule(self) -> ExitPolicy:
        return Quota(self.quota_decay)
