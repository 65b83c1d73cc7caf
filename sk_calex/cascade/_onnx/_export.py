"""Write a fitted cascade as graphs and numbers."""

from __future__ import annotations

import copy
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sk_calex.backbone._frozen_backbone import FrozenBackbone
from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import CalibrationSet, ExitPolicy
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._costs import depth_prices
from sk_calex.cascade._inputs import check_precision
from sk_calex.cascade._onnx._answer_modules import last_answer_module
from sk_calex.cascade._onnx._graphs import import_onnx_tools
from sk_calex.cascade._onnx._manifest import (
    FORMAT,
    KIND,
    SCHEMA,
    Manifest,
    classes_to_json,
    stage_file,
)
from sk_calex.cascade._onnx._numeric_rule import NumericRule
from sk_calex.cascade._onnx._parts import parts_of
from sk_calex.cascade._onnx._plain import plain_numbers
from sk_calex.cascade._onnx._quantize import quantize_graphs, tabulate_answers
from sk_calex.utils._checked_folder import write_folder
from sk_calex.utils._saving import library_versions, model_card
from sk_calex.utils._validation import check_labels

__all__ = ["export_onnx"]


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
    The graphs are those of the module in float precision; features stored as float16 or
    int8 are rounded in them as well. A cascade that runs under ``amp`` is refused: its
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
    exits = _exits_to_json(cascade, cascade.calibrator_)
    modules = [*cascade._answer_modules(), last_answer_module(cascade._last_stage_)]
    parts = parts_of(cascade, backbone, modules, include_preprocess)
    graphs, specs = parts.write()
    ensembles = getattr(cascade, "ensembles_", None)
    content = {
        "classes": classes,
        "named": parts.named,
        "inputs": [spec.to_json() for spec in parts.inputs],
        "stages": [spec.to_json() for spec in specs],
        **exits,
        "exponents": None if ensembles is None else plain_numbers(ensembles.exponents),
        "quantized": quantize,
    }
    manifest = Manifest.from_json(content)
    if calibration_data is not None:
        X, y = calibration_data
        with tempfile.TemporaryDirectory() as empty:
            graphs = quantize_graphs(manifest, graphs, X, Path(empty))
            answers, reference = tabulate_answers(manifest, graphs, X, Path(empty))
            content |= _recalibrated(cascade, answers, reference, y)
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


def _exits_to_json(cascade: BaseCascade, rule: ExitPolicy) -> dict[str, Any]:
    """Describe a fitted rule, which heads run under it, and what that costs."""
    try:
        costs = plain_numbers(depth_prices(cascade, rule)[0])
    except ValueError:  # of a kind that cannot be counted
        costs = None
    return {
        "rule": _rule_to_json(rule),
        "running_heads": cascade._running_heads(rule).tolist(),
        "depth_costs": costs,
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
) -> dict[str, Any]:
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
    return _exits_to_json(cascade, moved._fit_rule(moved._exit_rule()))


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
