"""The graphs of an exported cascade, run by onnxruntime on samples still under way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.cascade._onnx._manifest import (
    MEMORY,
    InputSpec,
    Manifest,
    StageSpec,
    stage_file,
)
from sk_calex.utils._stage_answer import StageAnswer, softmax_in_float64

__all__ = ["OnnxEngine"]

# A classifier may give a class no probability at all; logarithms must stay finite.
_LEAST = 1e-12
# Earlier ones read weights of a graph from any file that it names.
_LEAST_RUNTIME = (1, 24)


class OnnxEngine:
    """The graphs of a cascade, run one by one on the samples still under way.

    Parameters
    ----------
    manifest : Manifest
        What the graphs take and give.
    graphs : sequence of bytes
        The graphs.
    folder : Path
        Where weights may lie that are not in the graphs.
    n_threads, providers
        As of `OnnxCascade`.
    """

    def __init__(
        self,
        manifest: Manifest,
        graphs: Sequence[bytes],
        folder: Path,
        n_threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        self._manifest, self.rule = manifest, manifest.rule
        self.n_stages = len(manifest.stages)
        self._n_classes = len(manifest.classes)
        self._stages = [
            _Graph(k, spec, data, folder, n_threads, list(providers))
            for k, (spec, data) in enumerate(zip(manifest.stages, graphs, strict=True))
        ]
        self._done_with = manifest.last_uses()

    def every_answer(
        self, values: dict[str, NDArray[Any]]
    ) -> Iterator[tuple[int, StageAnswer]]:
        """Run every stage on all samples of a batch; give the stage and its answer."""
        said = None
        for k in range(self.n_stages):
            said = self.answer(k, values, said)
            yield k, said

    def skip(self, k: int, values: dict[str, NDArray[Any]]) -> None:
        """Run a stage on the samples under way, but not its head."""
        values.update(self._stages[k].run_without_head(values))
        for name in self._done_with[k] & values.keys():
            del values[name]

    def answer(
        self, k: int, values: dict[str, NDArray[Any]], before: StageAnswer | None
    ) -> StageAnswer:
        """Run a stage on the samples under way, and keep the values that it makes."""
        stage = self._stages[k]
        values.update(stage.run(values))
        logits, gate = values.pop("logits"), values.pop("gate", None)
        for name in self._done_with[k] & values.keys():
            del values[name]
        stage.check_logits(logits, self._n_classes)
        _check_finite(logits, f"the logits of stage {k}", "Scale the samples.")
        proba = stage.spec.spread(softmax_in_float64(logits), self._n_classes)
        exponents = self._manifest.exponents
        if exponents is None:
            return StageAnswer(proba, before, gate=gate)
        memory = np.log(np.maximum(proba, _LEAST))[:, None]
        if before is not None:
            memory = np.concatenate([before.memory, memory], axis=1)
        weight = np.exp(exponents[k, : k + 1]) / (k + 1)
        mean = np.einsum("nkc,k->nc", memory, weight)
        return StageAnswer(softmax_in_float64(mean), before, gate=gate, memory=memory)

    def batches(
        self, X: Any, size: int
    ) -> tuple[Iterator[tuple[slice, dict[str, NDArray[Any]]]], int]:
        """Check samples; return batches of them by name, and the number of samples."""
        arrays = self._check(X)
        n = len(next(iter(arrays.values())))

        def batches() -> Iterator[tuple[slice, dict[str, NDArray[Any]]]]:
            for start in range(0, n, size):
                rows = slice(start, min(start + size, n))
                yield rows, {name: array[rows] for name, array in arrays.items()}

        return batches(), n

    def _check(self, X: Any) -> dict[str, NDArray[Any]]:
        """Return the arrays of X by the names of the graphs' inputs."""
        specs = self._manifest.inputs
        if not self._manifest.named:
            return {specs[0].name: _as_input(X, specs[0], "X")}
        names = [spec.name for spec in specs]
        if not isinstance(X, Mapping) or set(X) != set(names):
            given = sorted(map(str, X)) if isinstance(X, Mapping) else type(X).__name__
            raise ValueError(
                f"X must be a mapping from {names} to arrays, got {given}."
            )
        arrays = {s.name: _as_input(X[s.name], s, f"X[{s.name!r}]") for s in specs}
        lengths = {name: len(array) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the arrays of X differ in length: {lengths}.")
        return arrays


class _Graph:
    """One stage in onnxruntime."""

    def __init__(
        self,
        stage: int,
        spec: StageSpec,
        data: bytes,
        folder: Path,
        n_threads: int | None,
        providers: list[str],
    ) -> None:
        runtime = _import_onnxruntime()
        options = runtime.SessionOptions()
        options.intra_op_num_threads = n_threads or 0
        # There is a session for each stage: threads of those that wait must not spin.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Of a graph that keeps weights in other files, none outside of the folder.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(folder)
        )
        self.spec = spec
        # Without it, onnxruntime computes all outputs whatever it is asked for.
        self._to_outputs = runtime.RunOptions()
        self._to_outputs.only_execute_path_to_fetches = True
        self._path = folder / stage_file(stage)
        try:
            session = runtime.InferenceSession(data, options, providers=providers)
        except Exception as error:  # onnxruntime's own classes, one for each code
            raise ValueError(
                f"{self._path} is no graph that onnxruntime "
                f"{runtime.__version__} runs: {error}"
            ) from error
        inputs = {value.name for value in session.get_inputs()}
        outputs = {value.name for value in session.get_outputs()}
        if inputs != set(spec.inputs) or not outputs >= set(spec.outputs):
            raise ValueError(
                f"{self._path} takes {sorted(inputs)} and gives "
                f"{sorted(outputs)}, which is not what the manifest says."
            )
        self._session = session
        self._blanks = {
            value.name: partial(_blank, value)
            for value in session.get_inputs()
            if value.name.endswith(MEMORY)
        }

    def run(self, values: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return self._run(self.spec.outputs, values)

    def run_without_head(
        self, values: Mapping[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Compute what later stages need, and nothing else."""
        wanted = self.spec.without_head
        if not wanted:
            return {}
        n = len(values[self.spec.inputs[0]])
        # A graph insists on all inputs; what only its head takes may not be there.
        rest = {name: blank(n) for name, blank in self._blanks.items()}
        return self._run(wanted, {**rest, **values}, self._to_outputs)

    def _run(
        self,
        outputs: Sequence[str],
        values: Mapping[str, NDArray[Any]],
        options: Any = None,
    ) -> dict[str, NDArray[Any]]:
        given = {name: values[name] for name in self.spec.inputs}
        found = self._session.run(outputs, given, options)
        n = len(given[self.spec.inputs[0]])
        if any(value.shape[:1] != (n,) for value in found):
            raise ValueError(f"{self._path} does not give one row for each sample.")
        return dict(zip(outputs, found, strict=True))

    def check_logits(self, logits: NDArray[Any], n_classes: int) -> None:
        """Refuse logits that are not those of the classes in the manifest."""
        spec, width = self.spec, logits.shape[1] if logits.ndim == 2 else -1
        if spec.columns is not None:
            fits = width > spec.columns.max()
        else:
            fits = width == (n_classes if spec.classes is None else len(spec.classes))
        if not fits or logits.dtype.kind != "f":
            raise ValueError(
                f"{self._path} gives logits of shape {logits.shape} and dtype "
                f"{logits.dtype}, which are not those of the {n_classes} classes in "
                "the manifest."
            )


def _blank(value: Any, n: int) -> NDArray[Any]:
    """Make zeros in the place of a value that a graph takes."""
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[value.type]
    return np.zeros((n, *value.shape[1:]), dtype)


def _import_onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError(
            "OnnxCascade runs its graphs by onnxruntime, which is not installed: "
            "pip install onnxruntime, or pip install 'sk-calex[onnx]' to export, too."
        ) from error
    found = onnxruntime.__version__
    if tuple(map(int, found.split(".")[:2])) < _LEAST_RUNTIME:
        raise ImportError(
            f"OnnxCascade needs onnxruntime {'.'.join(map(str, _LEAST_RUNTIME))} or "
            f"later; this is {found}, which reads weights from any file that a forged "
            "graph names. Run: pip install --upgrade onnxruntime."
        )
    return onnxruntime


def _as_input(given: Any, spec: InputSpec, name: str) -> NDArray[Any]:
    """Check samples, and convert them where no value is changed by it."""
    array, wanted = np.asarray(given), np.dtype(spec.dtype)
    if array.ndim == 0 or array.shape[1:] != spec.shape:
        raise ValueError(
            f"{name} has the shape {array.shape}; expected (n_samples, "
            f"{', '.join(map(str, spec.shape))})."
        )
    # Images of bytes are scaled by a graph for bytes; other integers may be features.
    floats = wanted.kind == "f" and (array.dtype.kind == "f" or wanted.itemsize == 8)
    fits = floats and array.dtype.kind in "fiub"
    if not fits and (wanted.kind == "f" or not np.can_cast(array.dtype, wanted)):
        raise ValueError(
            f"{name} has the dtype {array.dtype}, but the cascade was exported for "
            f"{wanted}, as in its fit. Give samples of that dtype."
        )
    if array.dtype.kind == "f":
        _check_finite(array, name, "Remove or replace the samples concerned.")
    with np.errstate(over="ignore"):
        converted = array.astype(wanted, copy=False)
    if converted is not array and wanted.kind == "f":
        _check_finite(converted, f"{name} as {wanted}", "Scale the samples.")
    return converted


def _check_finite(values: NDArray[Any], what: str, advice: str) -> None:
    """Refuse NaN and infinity: no exit may ever come from either."""
    with np.errstate(over="ignore", invalid="ignore"):
        finite = bool(np.isfinite(values.sum())) or bool(np.isfinite(values).all())
    if not finite:
        raise ValueError(f"{what} contains NaN or infinity. {advice}")
