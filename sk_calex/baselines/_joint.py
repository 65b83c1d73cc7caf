"""What the baselines share whose heads are trained together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Self, cast

import numpy as np
import torch
from joblib import Memory
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_memory
from torch import nn

from sk_calex.baselines._exit_net import ExitNet, ExitRows, fit_exit_net
from sk_calex.branches._heads import fuse_for_inference
from sk_calex.branches._solvers import History
from sk_calex.calibration._answers import StageAnswer, StageTable
from sk_calex.cascade._content import digest_for
from sk_calex.cascade._learning import LearningCascade, Lesson
from sk_calex.cascade._runtime import Answer, cached_sources, tabulate
from sk_calex.policies import ExitPolicy, Policy
from sk_calex.utils._callbacks import Task, handing, with_callbacks
from sk_calex.utils._modes import trainable
from sk_calex.utils._progress import bar, showing
from sk_calex.utils._validation import resolve_device

__all__ = ["JointCascade"]

_ROWS = 1024


class JointCascade(LearningCascade):
    """Base of the baselines: trains an `ExitNet`, then fits an exit rule.

    A subclass gives `_net`, the untrained network, `_rule`, the exit rule with its
    parameters, and `knob`, the parameter that moves along the curve. Its ``__init__``
    takes the knob, its own parameters and as many of the shared ones as it likes; the
    others keep the defaults below.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    net_ : ExitNet
        The trained heads, in eval mode.
    policy_ : ExitPolicy
        The fitted exit rule.
    n_iter_ : int
        Epochs or iterations done.
    loss_curve_ : list of float
        Mean loss of each epoch (adam) or evaluation (lbfgs).
    """

    backbone: Any = None
    final_estimator: Any = None
    policy: ExitPolicy | None = None
    solver: str = "auto"
    max_iter: int | None = None
    batch_size: int = 256
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    cv: Any = 0.2
    input: str = "samples"
    memory: Any = None
    device: str = "auto"
    random_state: Any = None
    verbose: int = 0

    _parameter_constraints: dict[str, list[Any]] = {
        "backbone": [object, None],
        "final_estimator": [HasMethods(["fit", "predict_proba"]), None],
        "policy": [ExitPolicy, None],
        "solver": [StrOptions({"adam", "lbfgs", "auto"})],
        "max_iter": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "cv": ["cv_object", Interval(Real, 0, 1, closed="neither")],
        "input": [StrOptions({"samples", "features"})],
        "memory": [str, HasMethods(["cache"]), None],
        "device": [str, torch.device],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def _net(self, lesson: Lesson, generator: torch.Generator) -> ExitNet:
        """The untrained network for the taps of a lesson."""
        raise NotImplementedError

    def _rule(self) -> ExitPolicy:
        """The method's exit rule, unfitted, at the present value of the knob."""
        raise NotImplementedError

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        **params: Any,
    ) -> Self:
        """Train the heads on one part of the samples, fit the exit rule on the other.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as of `CascadeClassifier`.
        y : array-like of shape (n_samples,)
            Labels of any kind.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights in training and calibration.
        **params : dict
            Metadata for `cv`'s ``split``, such as ``groups``, with metadata routing.

        Returns
        -------
        self : object
            The fitted cascade.

        Raises
        ------
        ValueError
            If `X`, `y` and the backbone do not fit each other, a value is not finite,
            or a class is absent from a part of the split.
        TypeError
            If `backbone` is not a `FrozenBackbone`.
        """
        self._validate_params()
        resolve_device(self.device)  # an error should come before the work
        memory = check_memory(self.memory)
        with Task.root(self, 3, X, y, sample_weight) as task:
            with self._recalled(X, y, sample_weight, params) as known:
                if not known:
                    with task.part("features"):
                        lesson = self._lesson(X, y, sample_weight, params)
                    pairs = lesson.folds.pairs
                    n_nets = 1 if len(pairs) == 1 else 1 + len(pairs)
                    with task.part("heads", n_nets) as part, handing(part):
                        self._train(lesson, memory)
            with (
                task.part("calibration"),
                showing(self.verbose, "calibration"),
                bar(unit="rule", total=1) as shown,
            ):
                self._calibrate()
                shown.update()
        return self

    def _train(self, lesson: Lesson, memory: Memory) -> None:
        """Train the heads; sets all that calibration needs."""
        seed = int(lesson.seeds.randint(2**31 - 1))
        held = lesson.folds.calibration
        self._calibration_codes = lesson.codes[held]
        self._calibration_weight = lesson.weight[held]
        # joblib would copy the features to hash them, and do so for every fold.
        content = digest_for(
            memory, lesson.features, lesson.codes, lesson.final, lesson.weight
        )
        trained = partial(self._trained, lesson, seed, memory, content)
        if len(lesson.folds.pairs) == 1:
            net = trained(lesson.folds.train)
            self._set_net(net)
            self.calibration_answers_ = self._table(lesson, held)
        else:
            stages = lesson.layout.n_taps + 1
            table = StageTable.empty(stages, len(held), lesson.n_classes)
            for i, (train, part) in enumerate(lesson.folds.pairs):
                label = f"heads, fold {i + 1} of {len(lesson.folds.pairs)}"
                net = trained(train, label)
                self._set_net(net)
                table.fill(np.searchsorted(held, part), self._table(lesson, part))
            self._set_net(trained(lesson.folds.train))
            self.calibration_answers_ = table

    def _trained(
        self,
        lesson: Lesson,
        seed: int,
        memory: Memory,
        content: str,
        rows: NDArray[np.intp],
        label: str = "heads",
    ) -> ExitNet:
        rows = rows[lesson.weight[rows] > 0]
        generator = torch.Generator().manual_seed(seed)
        data = ExitRows(
            lesson.features,
            lesson.layout,
            rows,
            lesson.codes[rows],
            lesson.final[rows],
            lesson.weight[rows],
        )
        device = resolve_device(self.device)
        settings = {
            "solver": self.solver,
            "max_iter": self.max_iter,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
            "device": device,
        }
        with trainable(), showing(self.verbose, label):
            net = self._net(lesson, generator)
            known = {"ignore": ["net", "rows"]} if isinstance(memory, Memory) else {}
            trained, history = memory.cache(_train, **known)(
                net,
                [_content(net), content, lesson.layout, rows],
                data,
                settings,
                int(torch.randint(2**31 - 1, (), generator=generator)),
            )
        self.loss_curve_, self.n_iter_ = history.loss, history.n_iter
        return cast(ExitNet, trained.to(device))

    def _set_net(self, net: ExitNet) -> None:
        self.net_ = net
        self.branches_ = list(net.heads)
        self._fused = fuse_for_inference(net)
        self._head_macs = self._fused.macs()

    def _table(self, lesson: Lesson, rows: NDArray[np.intp]) -> StageTable:
        """What the stages say of some rows of the features."""
        n_stages = lesson.layout.n_taps + 1
        table = StageTable.empty(n_stages, len(rows), lesson.n_classes)
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            sources = cached_sources(lesson.features[part], lesson.layout, _ROWS)
            # Those of a final estimator were taken out of fold.
            last: Answer = partial(_given, lesson.final[part])
            answers = [*self._branch_answers(), last]
            said = tabulate(sources, answers, len(part), lesson.n_classes)
            table.fill(np.arange(start, start + len(part)), said)
        return table

    def _branch_answers(self) -> list[Answer]:
        n_branches = self.layout_.n_taps
        return [partial(self._fused.answer, branch) for branch in range(n_branches)]

    def _answers(self) -> list[Answer]:
        return [*self._branch_answers(), self._last_answer()]

    def _branch_macs(self) -> list[int]:
        return self._head_macs

    def _calibrate(self) -> Self:
        self.policy_ = self._fit_policy(self._present_rule())
        return self

    def _present_rule(self) -> ExitPolicy:
        return self._rule() if self.policy is None else self.policy

    def _policy(self) -> Policy:
        return self.policy_

    def _policy_at(self, value: float | Sequence[float]) -> Policy:
        return self._fit_policy(self._present_rule(), value)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        state.pop("_fused", None)  # rebuilt from the net
        if "net_" in state:
            state["net_"] = copy.deepcopy(state["net_"]).cpu()
            state["branches_"] = list(state["net_"].heads)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "net_" in state:
            # "auto" is resolved again: the machine that loads may have no GPU.
            if str(self.device) == "auto":
                self.net_.to(resolve_device("auto"))
            self._fused = fuse_for_inference(self.net_)


def _train(
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


def _content(net: nn.Module) -> list[Any]:
    """What joblib can tell networks apart by: tensors it hashes by where they lie."""
    inherited = set(vars(nn.Module()))
    content: list[Any] = []
    for name, module in net.named_modules():
        own = {key: v for key, v in vars(module).items() if key not in inherited}
        content.append((name, type(module).__qualname__, own))
    tensors = [*net.named_parameters(), *net.named_buffers()]
    return [*content, {name: tensor.detach().numpy() for name, tensor in tensors}]


def _given(
    proba: NDArray[np.float64], features: torch.Tensor, before: StageAnswer | None
) -> StageAnswer:
    return StageAnswer(proba, before)
