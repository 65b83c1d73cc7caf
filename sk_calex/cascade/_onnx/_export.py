"""Write a fitted cascade as graphs and numbers."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.backbone._runner import Runner
from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import CalibrationSet, ExitPolicy
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._inputs import check_precision, check_same_taps
from sk_calex.cascade._onnx._answer_modules import AnswerModule, last_answer_module
from sk_calex.cascade._onnx._graphs import check_graph, import_onnx_tools, write_graph
from sk_calex.cascade._onnx._manifest import (
    FORMAT,
    KIND,
    SCHEMA,
    InputSpec,
    Manifest,
    StageSpec,
    classes_to_json,
    stage_file,
)
from sk_calex.cascade._onnx._numeric_rule import NumericRule
from sk_calex.cascade._onnx._plain import plain_numbers
from sk_calex.cascade._onnx._quantize import quantize_graphs, tabulate_answers
from sk_calex.cascade._onnx._stage_modules import (
    BackboneStage,
    ColumnsStage,
    Preparation,
    StageModule,
)
from sk_calex.utils._checked_folder import write_folder
from sk_calex.utils._modes import inference_mode_for
from sk_calex.utils._saving import library_versions, model_card
from sk_calex.utils._validation import check_labels

__all__ = ["export_onnx"]

_N_ROWS = 3


def export_onnx(
    cascade: Any,
    folder: str | os.PathLike[str],
    *,
    backbone: FrozenBackbone | None = None,
    include_preprocess: bool = True,
    quantize: str | None = None,
    calibration_data: tuple[Any, Any] | None = None,
) -> None:
    """Write a fitted cascade as ONNX graphs, to be served without torch.

    One graph a stage holds the stage, the pooling of its tap, and its head; the first
    one the preprocessing, too. Thresholds, classes and costs go to ``manifest.json``.
    Each graph is compared with torch on a few random samples before it is written.

    Parameters
    ----------
    cascade : CascadeClassifier or a baseline
        Fitted.
    folder : str or path-like
        Where to write. An earlier export there is replaced, once the new one is on
        disk.
    backbone : FrozenBackbone, default=None
        The fitted backbone of a cascade that was fitted on its features, to export
        graphs that take samples. None: that of the cascade; without one, the graphs
        take the features.
    include_preprocess : bool, default=True
        Whether `preprocess` of the backbone becomes a part of the first graph. False
        where it cannot be traced, as one that reads files or resizes: `OnnxCascade`
        then takes what it returns.
    quantize : {"int8"} or None, default=None
        Precision of the graphs.

        - None: as in torch.
        - "int8": weights and values as 8-bit integers, by the static quantisation of
          onnxruntime; faster on most processors. Answers change, so the exit rule is
          fitted again, on what the new graphs answer to `calibration_data`.
    calibration_data : tuple (X, y), default=None
        Samples and labels for `quantize`, which trained neither backbone nor branches;
        256 of them set the ranges of the integers, and all of them the thresholds.

    Raises
    ------
    ImportError
        If the extra ``onnx`` is not installed, or torch is older than 2.9.
    TypeError
        If `cascade` is no cascade of sk_calex, or a branch, the last stage or the exit
        rule has no form that can be exported.
    ValueError
        If torch cannot write a stage as a graph, or a graph gives other values than
        torch; if a parameter is not accepted.
    FileExistsError
        If something else lies at `folder`.

    See Also
    --------
    OnnxCascade : Runs what was written.

    Notes
    -----
    The graphs are those of the module in float precision; features stored as float16
    are rounded in them as well. A cascade that runs under ``amp`` is refused: its
    thresholds were chosen on other numbers. Labels and depths equal those of torch but
    where a score lies within rounding of its threshold, or two classes tie.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sk_calex import CascadeClassifier, OnnxCascade, export_onnx
    >>> from sk_calex.policies import SharedThreshold
    >>> X, y = load_iris(return_X_y=True)
    >>> cascade = CascadeClassifier(calibrator=SharedThreshold(0.9), random_state=0)
    >>> export_onnx(cascade.fit(X, y), "iris")  # doctest: +SKIP
    >>> served = OnnxCascade("iris")  # doctest: +SKIP
    >>> labels, depth = served.predict(X, return_depth=True)  # doctest: +SKIP
    >>> bool((labels == cascade.predict(X)).all())  # doctest: +SKIP
    True
    """
    import_onnx_tools()
    if not isinstance(cascade, BaseCascade):
        raise TypeError(
            f"cascade must be a fitted cascade of sk_calex, got "
            f"{type(cascade).__name__}. Of a search or a controller give the cascade "
            "in it: best_estimator_ or cascade_."
        )
    check_is_fitted(cascade)
    if cascade.backbone_ is not None:
        check_precision(cascade)
    _check_quantize(quantize, calibration_data)
    classes = classes_to_json(cascade.classes_)
    rule = _rule_to_json(cascade.calibrator_)
    modules = [*cascade._answer_modules(), last_answer_module(cascade._last_stage_)]
    parts = _parts_of(cascade, backbone, modules, include_preprocess)
    graphs, specs = parts.write()
    ensembles = getattr(cascade, "ensembles_", None)
    try:
        costs = plain_numbers(cascade.depth_costs_)
    except ValueError:  # of a kind that cannot be counted
        costs = None
    content = {
        "classes": classes,
        "named": parts.named,
        "inputs": [spec.to_json() for spec in parts.inputs],
        "stages": [spec.to_json() for spec in specs],
        "rule": rule,
        "exponents": None if ensembles is None else plain_numbers(ensembles.exponents),
        "depth_costs": costs,
        "quantized": quantize,
    }
    manifest = Manifest.from_json(content)
    if calibration_data is not None:
        X, y = calibration_data
        with tempfile.TemporaryDirectory() as empty:
            graphs = quantize_graphs(manifest, graphs, X, Path(empty))
            answers, reference = tabulate_answers(manifest, graphs, X, Path(empty))
            content["rule"] = _recalibrated(cascade, answers, reference, y)
    write_folder(
        folder,
        {
            "format": FORMAT,
            "kind": KIND,
            "schema": SCHEMA,
            "written_by": library_versions(),
            "content": content,
        },
        {stage_file(k): graph for k, graph in enumerate(graphs)},
        _readme(cascade, quantize),
    )


class _Parts:
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
            memory = [f"stage_{k}.memory"] if stage.gives_memory else []
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


def _parts_of(
    cascade: BaseCascade,
    backbone: FrozenBackbone | None,
    answers: Sequence[AnswerModule],
    include_preprocess: bool,
) -> _Parts:
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
    return _Parts(
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
) -> _Parts:
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
    return _Parts(
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


def _rule_to_json(rule: ExitPolicy) -> Any:
    scores = rule._scores_as_data()
    if scores is None:
        raise TypeError(
            f"the exit rule {rule!r} has no form in numbers: it computes scores of its "
            "own. Give the cascade a rule of sk_calex.policies by set_calibrator, or "
            "let yours set thresholds of the confidence only."
        )
    return NumericRule.to_json(scores, rule.thresholds_)


def _recalibrated(
    cascade: BaseCascade, answers: StageTable, reference: NDArray[np.intp], y: Any
) -> Any:
    """Fit the exit rule on what the graphs answer; the cascade keeps its own."""
    labels = check_labels(y, "y of calibration_data")
    check_consistent_length(reference, labels)
    unknown = np.setdiff1d(labels, cascade.classes_)
    if len(unknown):
        raise ValueError(
            f"calibration_data holds labels that fit did not see: "
            f"{unknown.tolist()[:5]}. Leave them out."
        )
    codes = np.searchsorted(cascade.classes_, labels)
    moved = copy.copy(cascade)
    moved.calibration_ = CalibrationSet(
        answers, codes, np.ones(len(codes)), reference=reference
    )
    return _rule_to_json(moved._fit_rule(moved._exit_rule()))


def _check_quantize(quantize: str | None, calibration_data: Any) -> None:
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be None or 'int8', got {quantize!r}.")
    if (quantize is None) != (calibration_data is None):
        raise ValueError(
            "quantize='int8' and calibration_data=(X, y) belong together: the ranges "
            "of the integers and the thresholds are found on held-out samples. "
            f"Got quantize={quantize!r} and "
            f"{'no' if calibration_data is None else 'some'} calibration_data."
        )
    if calibration_data is not None and len(calibration_data) != 2:
        raise ValueError("calibration_data must be a pair (X, y).")


def _readme(cascade: BaseCascade, quantize: str | None) -> str:
    facts = {
        "classes": f"{len(cascade.classes_)}",
        "taps": ", ".join(cascade.layout_.names),
        "exit rule": f"`{cascade._exit_rule()!r}`",
        "precision": quantize or "float",
    }
    name = type(cascade).__name__
    text = (
        f"A `{name}` of sk_calex as ONNX graphs, one a stage. Run it without torch by "
        "`sk_calex.OnnxCascade(folder)`."
    )
    return model_card(name, facts, text)
