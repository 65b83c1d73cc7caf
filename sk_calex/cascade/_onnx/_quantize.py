"""Graphs that compute with 8-bit integers, and what they answer."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._onnx._engine import OnnxEngine
from sk_calex.cascade._onnx._graphs import import_onnx_tools
from sk_calex.cascade._onnx._manifest import Manifest

__all__ = ["quantize_graphs", "tabulate_answers"]

#: Samples that show in which range the values of a graph lie.
_N_RANGE_ROWS = 256
_BATCH = 32


def quantize_graphs(
    manifest: Manifest, graphs: Sequence[bytes], X: Any, folder: Path
) -> list[bytes]:
    """Quantise weights and values of all graphs to 8 bits.

    Parameters
    ----------
    manifest : Manifest
        Of the graphs.
    graphs : sequence of bytes
        In floating point.
    X : array-like or mapping of str to array-like
        Samples; 256 of them, evenly spaced, show the range of each value. They run
        through all stages, without exits.
    folder : Path
        For temporary files.

    Returns
    -------
    graphs : list of bytes
        Inputs and outputs as before.
    """
    onnx, _ = import_onnx_tools()
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        """Gives onnxruntime one batch of a stage's inputs after the other."""

        def __init__(self, batches: Sequence[Mapping[str, NDArray[Any]]]) -> None:
            self._batches: Iterator[Mapping[str, NDArray[Any]]] = iter(batches)

        def get_next(self) -> dict[str, NDArray[Any]] | None:
            batch = next(self._batches, None)
            return None if batch is None else dict(batch)

    engine = OnnxEngine(manifest, graphs, folder)
    batches, _ = engine.batches(_evenly_spaced(X), _BATCH)
    given = [values for _, values in batches]
    said: list[Any] = [None] * len(given)
    quantized = []
    level = logging.root.level
    try:
        logging.root.setLevel(logging.ERROR)  # it advises, on the root logger
        for k, graph in enumerate(graphs):
            names = manifest.stages[k].inputs
            reader = Reader([{name: v[name] for name in names} for v in given])
            with tempfile.TemporaryDirectory() as made:
                quantize_static(
                    onnx.load_from_string(graph),
                    f"{made}/graph.onnx",
                    reader,
                    quant_format=QuantFormat.QDQ,
                    per_channel=True,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                )
                quantized.append(Path(made, "graph.onnx").read_bytes())
            # The next stage sees the values that this one makes in floating point.
            said = [
                engine.answer(k, v, before)
                for v, before in zip(given, said, strict=True)
            ]
    finally:
        logging.root.setLevel(level)
    return quantized


def tabulate_answers(
    manifest: Manifest, graphs: Sequence[bytes], X: Any, folder: Path
) -> tuple[StageTable, NDArray[np.intp]]:
    """Tabulate what graphs answer to samples at every stage, without exits.

    Returns
    -------
    table : StageTable
        Of all stages.
    reference : ndarray of intp, shape (n_samples,)
        Class codes of the last stage by itself, also where ensembles answer.
    """
    engine = OnnxEngine(manifest, graphs, folder)
    batches, n = engine.batches(X, _BATCH)
    table = StageTable.empty(engine.n_stages, n, len(manifest.classes))
    reference = np.empty(n, dtype=np.intp)
    for rows, values in batches:
        for k, said in engine.every_answer(values):
            table.put(k, rows, said)
            if k == engine.n_stages - 1:
                alone = said.predicted
                if manifest.exponents is not None:  # logarithms of all answers so far
                    alone = said.memory[:, -1].argmax(axis=1)
                reference[rows] = alone
    return table, reference


def _evenly_spaced(X: Any) -> Any:
    if isinstance(X, Mapping):
        return {name: _evenly_spaced(array) for name, array in X.items()}
    array = np.asarray(X)
    n = min(len(array), _N_RANGE_ROWS)
    return array[np.linspace(0, len(array) - 1, n).astype(np.intp)]
