"""Stages as torch modules: preprocessing, backbone, pooling and head in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sk_calex.backbone._layout import TapLayout
from sk_calex.backbone._runner import Runner
from sk_calex.backbone._stages import Batch, Stages
from sk_calex.cascade._onnx._answer_modules import AnswerModule

__all__ = ["BackboneStage", "ColumnsStage", "Preparation", "StageModule"]


class Preparation(nn.Module):
    """Raw samples to what the module takes: preprocessing, and floats in its dtype.

    Parameters
    ----------
    preprocess : callable or None
        As of `FrozenBackbone`.
    keys : tuple of str or None
        Names of the raw arrays; None: they are one array.
    dtype : torch.dtype
        Of the module's weights.
    """

    def __init__(
        self,
        preprocess: Callable[..., Any] | None,
        keys: tuple[str, ...] | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        # As a child where it is a module, so that its constants are its own.
        self.preprocess = preprocess
        self._keys, self._dtype = keys, dtype

    def forward(self, *raw: Tensor) -> Batch:
        """Prepare the tensors of a batch."""
        keys = self._keys
        given: Any = raw[0] if keys is None else dict(zip(keys, raw, strict=True))
        if self.preprocess is not None:
            given = self.preprocess(given)
        elif isinstance(given, Tensor) and given.dtype == torch.uint8:
            given = given.float() / 255
        if isinstance(given, Mapping):
            return {key: self._cast(tensor) for key, tensor in given.items()}
        return self._cast(given)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor


class StageModule(nn.Module):
    """Base: a stage as a function of tensors.

    It takes the values that it needs, then the memory of the branch before if there is
    one. It returns logits, a gate if the method has one, the values that are new, then
    its memory if there is one.

    Parameters
    ----------
    answer : AnswerModule
        What answers here.

    Attributes
    ----------
    takes_memory : bool
        Whether the branch before gives memory; False until it is set.
    passed_on : tuple of int or None
        For each value after the stage the index of the input that it is, None for a new
        one. This and the next two are set by the first run.
    gives_gate, gives_memory : bool
        Whether the branch does.
    """

    def __init__(self, answer: AnswerModule) -> None:
        super().__init__()
        self.answer = answer
        self.takes_memory = self.gives_gate = self.gives_memory = False
        self.passed_on: tuple[int | None, ...] | None = None

    @property
    def new_values(self) -> list[int]:
        """Which of the values after the stage are no inputs of it."""
        return [j for j, i in enumerate(self.passed_on or ()) if i is None]

    def run(self, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute the features of the stage, and the values for later stages."""
        raise NotImplementedError

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the stage."""
        memory = tensors[-1] if self.takes_memory else None
        given = tensors[:-1] if self.takes_memory else tensors
        features, values = self.run(*given)
        logits, gate, memory = self.answer(features, memory)
        if self.passed_on is None:  # not traced yet: see what it is like
            self.gives_gate, self.gives_memory = gate is not None, memory is not None
            self.passed_on = tuple(
                next((i for i, g in enumerate(given) if v is g), None) for v in values
            )
        outputs = [logits, gate, *(values[j] for j in self.new_values), memory]
        return tuple(output for output in outputs if output is not None)


class BackboneStage(StageModule):
    """A stage of a backbone, from raw samples or the values of the stage before.

    Parameters
    ----------
    runner : Runner
        What shapes the features of a tap.
    module : torch.nn.Module
        The backbone; held so that errors can name its layers.
    stages : Stages
        Its stages.
    k : int
        Which of them.
    preparation : Preparation or None
        For the first stage.
    answer : AnswerModule
        What answers here.
    """

    def __init__(
        self,
        runner: Runner,
        module: nn.Module,
        stages: Stages,
        k: int,
        preparation: Preparation | None,
        answer: AnswerModule,
    ) -> None:
        super().__init__(answer)
        self.module, self.preparation = module, preparation
        self._runner, self._stages, self._k = runner, stages, k

    def run(self, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute features and values."""
        if self.preparation is not None:
            tensors = self._stages.start(self.preparation(*tensors))
        output, values = self._stages.advance(self._k, tensors)
        return self._runner.shape_outputs(self._k, output), values


class ColumnsStage(StageModule):
    """Columns of a feature matrix; every stage takes the whole matrix.

    Parameters
    ----------
    layout : TapLayout
        Which columns are which tap.
    k : int
        The stage.
    answer : AnswerModule
        What answers here.
    """

    def __init__(self, layout: TapLayout, k: int, answer: AnswerModule) -> None:
        super().__init__(answer)
        self._columns = layout.columns(k)
        self._shape = layout.shapes[k] if k < layout.n_taps else (-1,)

    def run(self, *tensors: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Compute features and values."""
        (matrix,) = tensors
        rows = matrix[:, self._columns]
        return rows.reshape(rows.shape[0], *self._shape), (matrix,)
