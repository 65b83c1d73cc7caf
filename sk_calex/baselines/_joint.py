"""What the baselines share whose heads are trained together."""

from __future__ import annotations

import copy
from functools import partial
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from joblib import Memory
from numpy.typing import NDArray
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_memory
from torch import Tensor, nn

from sk_calex.baselines._exit_net import ExitNet, ExitRows, fit_exit_net
from sk_calex.branches._heads import fuse_for_inference
from sk_calex.branches._solvers import History
from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.calibration._exit_rule import ExitPolicy, Policy
from sk_calex.calibration._exits import up_to_last
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._ensembles import calibration_of_stages
from sk_calex.cascade._fit_key import digest_for
from sk_calex.cascade._onnx._answer_modules import AnswerModule
from sk_calex.cascade._runtime import Answer, cached_sources, every_answer
from sk_calex.cascade._training_data import TrainingData
from sk_calex.utils._callbacks import Task, use_task
from sk_calex.utils._modes import trainable
from sk_calex.utils._progress import showing
from sk_calex.utils._validation import resolve_device

__all__ = ["JointCascade"]

_ROWS = 1024


class JointCascade(BaseCascade):
    """Base of the methods whose heads are trained together, in one `ExitNet`.

    A subclass gives `_net`, the untrained network, `_rule`, the exit rule at the
    present value of the knob, and `knob`, the parameter that moves along the curve. Its
    ``__init__`` takes the knob, its own parameters and as many of the shared ones as it
    likes; the others keep the defaults below.

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
        Mean loss of each epoch (adam) or evaluation (lbfgs).

    See Also
    --------
    ExitNet : Base of the networks.

    Notes
    -----
    Our definition of what such methods share. The fit splits the samples by `cv`,
    trains the network on the one part (`ExitNet.loss` on cached features), and fits the
    exit rule on its answers to the other.

    Examples
    --------
    >>> import torch
    >>> import torch.nn.functional as F
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex.baselines import ExitNet, JointCascade
    >>> from sk_calex.policies import SharedThreshold
    >>> class LinearHeads(ExitNet):
    ...     def __init__(self, shapes, n_classes):
    ...         super().__init__(shapes, n_classes)
    ...         self.heads = torch.nn.ModuleList(
    ...             torch.nn.Linear(shape[0], n_classes) for shape in shapes
    ...         )
    ...     def loss(self, outputs, labels, final, weight):
    ...         losses = [F.cross_entropy(z, labels, reduction="none") for z in outputs]
    ...         return (weight * torch.stack(losses).sum(dim=0)).mean()
    >>> class LinearCascade(JointCascade):
    ...     knob = "threshold"
    ...     def __init__(self, threshold=0.9, random_state=None):
    ...         self.threshold = threshold
    ...         self.random_state = random_state
    ...     def _net(self, data, generator):
    ...         return LinearHeads(data.layout.shapes, data.n_classes)
    ...     def _rule(self):
    ...         return SharedThreshold(self.threshold)
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> LinearCascade(random_state=0).fit(X, y).predict(X).shape
    (500,)
    """

    backbone: Any = None
    final_estimator: Any = None
    calibrator: ExitPolicy | None = None
    solver: str = "auto"
    max_iter: int | None = None
    batch_size: int = 256
    learning_rate: float | None = None
    weight_decay: float = 1e-2
    cv: Any = 0.2
    costs: Any = None
    input: str = "samples"
    memory: Any = None
    device: str = "auto"
    random_state: Any = None
    verbose: int = 0

    _parameter_constraints: dict[str, list[Any]] = {
        "backbone": [object, None],
        "final_estimator": [HasMethods(["fit", "predict_proba"]), None],
        "calibrator": [ExitPolicy, None],
        "max_accuracy_drop": [Interval(Real, 0, 1, closed="left")],
        "solver": [StrOptions({"adam", "adam_full_batch", "lbfgs", "auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "cv": ["cv_object", Interval(Real, 0, 1, closed="neither")],
        "costs": ["array-like", dict, None],
        "input": [StrOptions({"samples", "features"})],
        "memory": [str, HasMethods(["cache"]), None],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _net(self, data: TrainingData, generator: torch.Generator) -> ExitNet:
        """Build the untrained network for the taps of the training data."""
        raise NotImplementedError

    def _check_params(self) -> None:
        # Errors come before the work.
        resolve_device(self.device, needs_float64=True)
        check_memory(self.memory)

    def _train(self, data: TrainingData, task: Task) -> None:
        pairs = data.folds.pairs
        n_nets = 1 + (len(pairs) if data.folds.out_of_fold else 0)
        with task.part("heads", n_nets) as part, use_task(part):
            answers = self._train_nets(data)
        self.calibration_, self.ensembles_ = calibration_of_stages(data, *answers)

    def _answers_together(self) -> bool:
        """Tell whether stages answer with those before them, as `Ensembles` fits it."""
        return False

    def _train_nets(
        self, data: TrainingData
    ) -> tuple[StageTable, NDArray[np.float64] | None]:
        """Train the heads; return the answers to the calibration samples.

        And their probabilities, where stages are to answer with those before them.
        """
        seed = int(data.seeds.randint(2**31 - 1))
        memory = check_memory(self.memory)
        held, pairs = data.folds.calibration, data.folds.pairs
        # joblib would copy the features to hash them, and do so for every fold.
        content = digest_for(memory, data.features, data.codes, data.final, data.weight)
        train_net = partial(self._train_net, data, seed, memory, content)
        n_stages = data.layout.n_taps + 1
        table = StageTable.empty(n_stages, len(held), data.n_classes)
        proba = None
        if self._answers_together():
            proba = np.empty((n_stages, len(held), data.n_classes))
        if not data.folds.out_of_fold:
            self._set_net(train_net(data.folds.train))
            self._enter_answers(data, held, table, proba)
            return table, proba
        for i, (train, part) in enumerate(pairs):
            self._set_net(train_net(train, f"heads, fold {i + 1} of {len(pairs)}"))
            self._enter_answers(data, part, table, proba)
        self._set_net(train_net(data.folds.train))
        return table, proba

    def _train_net(
        self,
        data: TrainingData,
        seed: int,
        memory: Memory,
        content: str,
        rows: NDArray[np.intp],
        label: str = "heads",
    ) -> ExitNet:
        rows = rows[data.weight[rows] > 0]
        generator = torch.Generator().manual_seed(seed)
        training_rows = ExitRows(
            data.features,
            data.layout,
            rows,
            data.codes[rows],
            data.final[rows],
            data.weight[rows],
        )
        device = resolve_device(self.device, needs_float64=True)
        settings = {
            "solver": self.solver,
            "max_iter": self.max_iter,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "device": device,
        }
        with trainable(), showing(self.verbose, label):
            net = self._net(data, generator)
            known = {"ignore": ["net", "rows"]} if isinstance(memory, Memory) else {}
            trained, history = memory.cache(_train_anywhere, **known)(
                net,
                [_describe(net), content, data.layout, rows],
                training_rows,
                settings,
                int(torch.randint(2**31 - 1, (), generator=generator)),
            )
        self.loss_curve_, self.n_iter_ = history.loss, history.n_iter
        return cast(ExitNet, trained.to(device))

    def _set_net(self, net: ExitNet) -> None:
        self.net_ = net
        self.branches_ = list(net.heads)
        self._fused_net_ = fuse_for_inference(net)
        self._head_macs_ = self._fused_net_.macs()

    def _enter_answers(
        self,
        data: TrainingData,
        rows: NDArray[np.intp],
        table: StageTable,
        proba: NDArray[np.float64] | None,
    ) -> None:
        """Enter what the stages answer to some of the calibration samples."""
        where = np.searchsorted(data.folds.calibration, rows)
        for start in range(0, len(rows), _ROWS):
            part, place = (each[start : start + _ROWS] for each in (rows, where))
            sources = cached_sources(data.features[part], data.layout, _ROWS)
            # Those of a final estimator were computed out of fold.
            last: Answer = partial(_answer_with, data.final[part])
            for stage, _, said in every_answer(
                sources, [*self._branch_answers(), last]
            ):
                table.put(stage, place, said)
                if proba is not None:
                    proba[stage, place] = said.proba

    def _branch_answers(self) -> list[Answer]:
        n_branches = self.layout_.n_taps
        return [
            partial(self._fused_net_.answer, branch) for branch in range(n_branches)
        ]

    def _answer_modules(self) -> list[AnswerModule]:
        if type(self.net_).read is not ExitNet.read:
            raise TypeError(
                f"{type(self.net_).__name__} overrides `read`, which works in numpy "
                "and cannot be exported. Override `read_tensors` instead."
            )
        net = copy.deepcopy(self.net_).cpu().eval().requires_grad_(False)
        # Full-batch training leaves float64, in which onnxruntime has no convolution.
        net.heads.float()
        return [_NetAnswer(net, branch) for branch in range(len(net.heads))]

    def _running_heads(self, rule: Policy | None) -> NDArray[np.bool_]:
        heads = super()._running_heads(rule)
        # Branches that pass something on have to run before one that may answer.
        net = type(self.net_)
        alone = net.exit is ExitNet.exit and net.answer is ExitNet.answer
        return heads if alone else up_to_last(heads)

    def _branch_macs(self) -> list[int]:
        return self._head_macs_

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        state.pop("_fused_net_", None)  # rebuilt from the net
        if "net_" in state:
            state["net_"] = copy.deepcopy(state["net_"]).cpu()
            state["branches_"] = list(state["net_"].heads)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "net_" in state:
            # "auto" is resolved again: the machine that loads may have no GPU.
            if str(self.device) == "auto":
                self.net_.to(resolve_device("auto", needs_float64=True))
            self._fused_net_ = fuse_for_inference(self.net_)

    def _archive_state(self) -> dict[str, Any]:
        state = super()._archive_state()
        net = state.pop("net_")
        del state["branches_"], state["_head_macs_"]  # those of the net
        return state | {"net_state": dict(net.state_dict())}

    def _restore_archive(self, state: dict[str, Any], backbone: Any) -> None:
        weights = state.pop("net_state")
        super()._restore_archive(state, backbone)
        shapes = SimpleNamespace(layout=self.layout_, n_classes=len(self.classes_))
        net = self._net(cast(TrainingData, shapes), torch.Generator())
        net.load_state_dict(weights, assign=True)  # keeps their dtypes
        self._set_net(net.to(resolve_device(self.device, needs_float64=True)).eval())


class _NetAnswer(AnswerModule):
    """One branch of a net, unfolded, as a module that can be traced."""

    def __init__(self, net: ExitNet, branch: int) -> None:
        super().__init__()
        self.net, self._branch = net, branch

    def forward(
        self, features: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        tap = features.reshape(-1, *self.net.shapes[self._branch]).float()
        outputs, memory = self.net.exit(self._branch, tap, memory)
        return *self.net.read_tensors(self._branch, outputs), memory


def _train_anywhere(
    net: ExitNet,
    content: list[Any],
    rows: ExitRows,
    settings: dict[str, Any],
    seed: int,
) -> tuple[ExitNet, History]:
    """Train on any device, return on the CPU: a cache may be read elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    history = fit_exit_net(net, rows, **settings, generator=generator)
    return net.cpu(), history


def _describe(net: nn.Module) -> list[Any]:
    """Describe a network by what joblib can hash: of tensors it hashes the address."""
    inherited = set(vars(nn.Module()))
    content: list[Any] = []
    for name, module in net.named_modules():
        own = {key: v for key, v in vars(module).items() if key not in inherited}
        content.append((name, type(module).__qualname__, own))
    tensors = [*net.named_parameters(), *net.named_buffers()]
    return [*content, {name: tensor.detach().numpy() for name, tensor in tensors}]


def _answer_with(
    proba: NDArray[np.float64], features: torch.Tensor, before: StageAnswer | None
) -> StageAnswer:
    return StageAnswer(proba, before)
