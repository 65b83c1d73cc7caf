"""The stages of a fitted cascade as modules, and their graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._runner import Runner
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._inputs import check_same_taps
from sk_calex.cascade._onnx._answer_modules import AnswerModule
from sk_calex.cascade._onnx._graphs import check_graph, write_graph
from sk_calex.cascade._onnx._manifest import MEMORY, InputSpec, StageSpec
from sk_calex.cascade._onnx._stage_modules import (
    BackboneStage,
    ColumnsStage,
    Preparation,
    StageModule,
)
from sk_calex.utils._modes import inference_mode_for

__all__ = ["StageParts", "parts_of"]

_N_ROWS = 3


class StageParts:
    """The stages of a cascade as modules, and an example of what they take."""

    def __init__(
        self,
        stages: Sequence[StageModule],
        names: Sequence[str],
        inputs: Sequence[InputSpec],
        example: Sequence[Tensor],
        named: bool,
        module: torch.nn.Module | None = None,
        preprocess: Any = None,
    ) -> None:
        self.stages, self.names, self.inputs = stages, names, inputs
        self.named, self._example, self._module = named, example, module
        self._preprocess = preprocess

    def write(self) -> tuple[list[bytes], list[StageSpec]]:
        """Write the graph of each stage, and compare it with torch."""
        if self._module is None:
            return self._write()
        with inference_mode_for(self._module):
            return self._write()

    def _write(self) -> tuple[list[bytes], list[StageSpec]]:
        values = list(self._example)
        names = [spec.name for spec in self.inputs]
        graphs, specs = [], []
        for k, stage in enumerate(self.stages):
            where = f"stage {k} ({self.names[k]})"
            with torch.inference_mode():
                outputs = list(stage(*(value.clone() for value in values)))
            made = [f"stage_{k}.{j}" for j in stage.new_values]
            memory = [f"stage_{k}{MEMORY}"] if stage.gives_memory else []
            given = ["logits", *["gate"] * stage.gives_gate, *made, *memory]
            try:
                graph = write_graph(stage, values, names, given, where)
            except ValueError as error:
                if k == 0 and self._preprocess is not None:
                    raise ValueError(
                        f"{error} If `preprocess` is the reason, give "
                        "include_preprocess=False and apply it to what you serve."
                    ) from error
                raise
            check_graph(graph, stage, values, names, where)
            answer = stage.answer
            spec = StageSpec(tuple(names), tuple(given), answer.classes, answer.columns)
            graphs.append(graph)
            specs.append(spec)
            if k + 1 == len(self.stages):
                break
            known = dict(zip(names, values, strict=True))
            known |= dict(zip(given, outputs, strict=True))
            names = [
                f"stage_{k}.{j}" if i is None else names[i]
                for j, i in enumerate(stage.passed_on or ())
            ]
            following = self.stages[k + 1]
            # The last stage builds on no branch.
            following.takes_memory = bool(memory) and k + 2 < len(self.stages)
            names += memory * following.takes_memory
            values = [known[name] for name in names]
        return graphs, specs


def parts_of(
    cascade: BaseCascade,
    backbone: FrozenBackbone | None,
    answers: Sequence[AnswerModule],
    include_preprocess: bool,
) -> StageParts:
    """Make modules of the stages, and an example of what the first one takes."""
    layout = cascade.layout_
    names = [*(f"up to the tap {name!r}" for name in layout.names), "the last one"]
    if backbone is not None:
        if not isinstance(backbone, FrozenBackbone):
            raise TypeError(
                f"backbone must be a fitted FrozenBackbone, got {backbone!r:.100}."
            )
        check_is_fitted(backbone)
        check_same_taps(backbone.layout_, layout, "the cascade was fitted on")
    backbone = cascade.backbone_ if backbone is None else backbone
    if backbone is not None:
        return _backbone_parts(backbone, names, answers, include_preprocess)
    generator = torch.Generator().manual_seed(0)
    shape = (_N_ROWS, layout.width)
    example = torch.randn(shape, generator=generator, dtype=torch.float64)
    return StageParts(
        [ColumnsStage(layout, k, answer) for k, answer in enumerate(answers)],
        names,
        [InputSpec("X", "float64", (layout.width,))],
        [example],
        named=False,
    )


def _backbone_parts(
    backbone: FrozenBackbone,
    names: Sequence[str],
    answers: Sequence[AnswerModule],
    include_preprocess: bool,
) -> StageParts:
    if backbone.amp is not None:
        raise ValueError(
            f"the backbone runs with amp={backbone.amp!r}, which has no form in the "
            "graphs: they would answer otherwise than the thresholds were chosen for. "
            "Set amp=None, recalibrate the cascade, and export it then."
        )
    runner = backbone.runner()
    module, stages, prepared = runner.cut_plain()
    preprocess = backbone.preprocess
    if preprocess is None or include_preprocess:
        example = _raw_example(backbone, runner, prepared)
    else:
        example, preprocess = prepared, _unchanged
    named = isinstance(example, Mapping)
    tensors = dict(example) if isinstance(example, Mapping) else {"X": example}
    inputs = [
        InputSpec(name, str(t.dtype).removeprefix("torch."), tuple(t.shape[1:]))
        for name, t in tensors.items()
    ]
    rows = torch.arange(_N_ROWS)
    floating = (p.dtype for p in module.parameters() if p.is_floating_point())
    preparation = Preparation(
        preprocess,
        tuple(tensors) if named else None,
        next(floating, torch.float32),
    )
    return StageParts(
        [
            BackboneStage(runner, module, stages, k, None if k else preparation, answer)
            for k, answer in enumerate(answers)
        ],
        names,
        inputs,
        [t[rows % len(t)] for t in tensors.values()],
        named,
        module,
        preprocess,
    )


def _unchanged(batch: Any) -> Any:
    """Stand for a preprocessing that is done outside of the graphs."""
    return batch


def _raw_example(backbone: FrozenBackbone, runner: Runner, prepared: Any) -> Any:
    """Make raw samples of the kind that the backbone was fitted on."""
    dtypes, shapes = getattr(runner, "sample_dtype", None), backbone.sample_shape_
    if dtypes is None:
        raise ValueError(
            "the backbone was fitted by a version that did not note the dtype of its "
            "samples. Fit it again."
        )
    generator = torch.Generator().manual_seed(0)

    def draw(dtype: torch.dtype, shape: tuple[Any, ...], ids: Tensor | None) -> Tensor:
        if None in shape:
            raise ValueError(
                "the backbone reads image files of any size, and `preprocess` makes "
                "them equal, which no graph does. Give include_preprocess=False: the "
                "graphs then take what it returns."
            )
        size = (_N_ROWS, *shape)
        if dtype.is_floating_point:
            return torch.rand(size, generator=generator).to(dtype)
        if ids is not None and ids.dtype == dtype:
            return ids  # seen in fit: of others it is not known what they may be
        high = 256 if dtype == torch.uint8 else 2
        return torch.randint(high, size, generator=generator).to(dtype)

    if not isinstance(dtypes, Mapping):
        ids = prepared if isinstance(prepared, Tensor) else None
        return draw(dtypes, tuple(shapes), ids)
    known = prepared if isinstance(prepared, Mapping) else {}
    by_name: Mapping[str, Any] = shapes  # type: ignore[assignment]
    return {
        name: draw(dtype, tuple(by_name[name]), known.get(name))
        for name, dtype in dtypes.items()
    }
