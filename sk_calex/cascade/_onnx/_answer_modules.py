"""What answers at a stage, as torch modules that can be traced."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from sk_calex.branches._as_branch import as_torch_branch
from sk_calex.branches._base import BaseBranch
from sk_calex.cascade._last_stage import LastStage

__all__ = ["AnswerModule", "answer_module", "last_answer_module"]

_N_CHECKED = 5


class AnswerModule(nn.Module):
    """Base: the features of a stage to logits, the method's own gate, and memory.

    Attributes
    ----------
    classes : ndarray of intp, shape (n_logits,), or None
        Class code of each logit; None: all classes in their order.
    columns : ndarray of intp, shape (n_classes,), or None
        Logit of each class, where there are others, too.
    """

    classes: NDArray[np.intp] | None = None
    columns: NDArray[np.intp] | None = None

    def forward(
        self, features: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Answer; `memory` is that of the branch before, and for the one after."""
        raise NotImplementedError


class _HeadAnswer(AnswerModule):
    """The head of a torch branch, in a copy that nothing was folded or packed in."""

    def __init__(self, branch: BaseBranch) -> None:
        super().__init__()
        head = copy.deepcopy(branch.head_).cpu().eval().requires_grad_(False)
        # Full-batch training leaves float64, in which onnxruntime has no convolution.
        self.head = head.float()
        self._shape = branch.feature_shape_

    def forward(
        self, features: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, None, None]:
        features = features.reshape(-1, *self._shape).float()
        return self.head(features), None, None


class _LinearAnswer(AnswerModule):
    """A linear classifier, in float64 as scikit-learn computes it."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: NDArray[np.float64], bias: NDArray[np.float64]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.from_numpy(weight.copy()))
        self.register_buffer("bias", torch.from_numpy(bias.copy()))

    def forward(
        self, features: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, None, None]:
        rows = features.flatten(1).double()
        return nn.functional.linear(rows, self.weight, self.bias), None, None


class _OutputsAnswer(AnswerModule):
    """The outputs of the backbone are the logits."""

    def forward(
        self, features: Tensor, memory: Tensor | None
    ) -> tuple[Tensor, None, None]:
        return features, None, None


def answer_module(estimator: Any, where: str) -> AnswerModule:
    """Turn a fitted branch or final estimator into a module.

    Parameters
    ----------
    estimator : classifier
        A torch branch, a logistic regression, or a pipeline of standard scalers and
        one; fitted on class codes.
    where : str
        What it is, for the message.

    Returns
    -------
    module : AnswerModule
        The module; `classes` are those of the estimator.

    Raises
    ------
    TypeError
        If it is something else.
    """
    branch = as_torch_branch(estimator)
    if branch is not None:
        module: AnswerModule = _HeadAnswer(branch)
    else:
        linear = _linear_form(estimator)
        if linear is None or not _gives_the_same(estimator, *linear):
            raise TypeError(
                f"{where} is {estimator!r}, which has no form as a graph here. What "
                "can be exported: BranchClassifier, PrototypePoolingClassifier, "
                "LogisticRegression, and pipelines of StandardScaler and that. Fit "
                "with one of them, or serve the cascade itself."
            )
        module = _LinearAnswer(*linear)
    module.classes = np.asarray(estimator.classes_, dtype=np.intp)
    return module


def last_answer_module(last: LastStage) -> AnswerModule:
    """Turn a last stage into a module.

    Raises
    ------
    TypeError
        If its estimator has no form as a graph.
    """
    if last.estimator is None:
        module: AnswerModule = _OutputsAnswer()
        module.columns = last.columns
        return module
    fitted = last.estimator
    while isinstance(fitted, FrozenEstimator):
        fitted = fitted.estimator
    linear = _linear_form(fitted)
    if linear is None or not _gives_the_same(fitted, *linear):
        raise TypeError(
            f"final_estimator is {fitted!r}, which has no form as a graph here. What "
            "can be exported: LogisticRegression, and pipelines of StandardScaler and "
            "that. Fit with one of them, or serve the cascade itself."
        )
    module = _LinearAnswer(*linear)
    module.classes = last.columns
    return module


def _linear_form(
    estimator: Any,
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return weights and bias of the logits; None where there are none."""
    scalers: list[Any] = []
    if isinstance(estimator, Pipeline):
        *scalers, estimator = (step for _, step in estimator.steps)
    if not isinstance(estimator, LogisticRegression):
        return None
    weight = np.asarray(estimator.coef_, dtype=np.float64)
    bias = np.asarray(estimator.intercept_, dtype=np.float64)
    bias = np.broadcast_to(bias, len(weight))
    if len(weight) == 1:  # of two classes: the logit of the second
        weight = np.concatenate([np.zeros_like(weight), weight])
        bias = np.concatenate([np.zeros(1), bias])
    for scaler in reversed(scalers):
        if not isinstance(scaler, StandardScaler):
            return None
        if scaler.scale_ is not None:
            weight = weight / scaler.scale_
        if scaler.with_mean:
            bias = bias - weight @ scaler.mean_
    return weight, bias


def _gives_the_same(
    estimator: Any, weight: NDArray[np.float64], bias: NDArray[np.float64]
) -> bool:
    """Tell whether softmax of the linear form is what the classifier gives.

    It is not where classes are told one from the rest, and a subclass may do anything.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((_N_CHECKED, weight.shape[1]))
    logits = torch.from_numpy(rows @ weight.T + bias)
    found = logits.softmax(1).numpy()
    return np.allclose(found, estimator.predict_proba(rows), rtol=1e-6, atol=1e-9)
