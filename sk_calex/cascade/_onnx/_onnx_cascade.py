"""An exported cascade at work, with numpy and onnxruntime alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.cascade._cascade_prediction import CascadePrediction
from sk_calex.cascade._onnx._engine import OnnxEngine
from sk_calex.cascade._onnx._manifest import (
    FORMAT,
    KIND,
    SCHEMA,
    Manifest,
    stage_file,
)
from sk_calex.utils._checked_folder import read_folder

__all__ = ["OnnxCascade"]

# The largest message that protocol buffers hold.
_MAX_GRAPH_BYTES = 2**31 - 1


class OnnxCascade:
    """Run a cascade that `export_onnx` wrote, without torch and scikit-learn.

    Samples run through one graph after the other; those that exit leave, and only the
    others go on. The rules decide in float64, by the same code as in the cascade that
    was exported.

    Parameters
    ----------
    folder : str or path-like
        What `export_onnx` wrote.
    n_threads : int, default=None
        Threads that onnxruntime uses within an operation. 1 where many processes or
        requests share a machine; None for as many as there are cores.
    providers : sequence of str, default=("CPUExecutionProvider",)
        What onnxruntime runs on, in the order of preference.
    batch_size : int, default=256
        Samples run at once.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels.
    depth_costs_ : ndarray of float64, shape (n_branches + 1,), or None
        Cost of an answer at each depth, as of the cascade; None where it was not known.
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Thresholds of the exit rule.

    Raises
    ------
    ImportError
        If onnxruntime is not installed, or is older than 1.24.
    FileNotFoundError
        If there is no such folder, or a file of it is missing.
    ValueError
        If a file is damaged, or was written by a later version; if a parameter is out
        of range.

    See Also
    --------
    export_onnx : Writes the folder.

    Notes
    -----
    Every byte is compared with its digest before it is used, entries of the manifest
    are checked one by one, and graphs cannot refer to files outside of the folder. A
    digest tells damage, not forgery: whoever can write to the folder can change what is
    answered.

    Examples
    --------
    See `export_onnx`.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        batch_size: int = 256,
    ) -> None:
        for name, value in {"n_threads": n_threads, "batch_size": batch_size}.items():
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}={value!r} must be a positive integer.")
        self._arguments = (os.fspath(folder), n_threads, tuple(providers), batch_size)
        self._batch_size = batch_size
        manifest, graphs = _read(Path(folder))
        self.classes_ = manifest.classes
        self.depth_costs_ = manifest.depth_costs
        self._running_heads = manifest.running_heads
        self.thresholds_ = manifest.rule.thresholds
        self._engine = OnnxEngine(
            manifest, graphs, Path(folder), n_threads, tuple(providers)
        )

    def predict(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[Any] | tuple[NDArray[Any], NDArray[np.intp]]:
        """Answer every sample at the first branch whose exit rule is met.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or mapping of str to array-like
            Samples, as the exported cascade took them: of the same dtype, and by name
            where they are several arrays.
        return_depth : bool, default=False
            Also return where each sample was answered.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Labels as in `classes_`.
        depth : ndarray of intp, shape (n_samples,)
            Index of the branch that answered, the number of branches for the last
            stage; only with `return_depth`.

        Raises
        ------
        ValueError
            If `X` has another shape or dtype, or a value or a logit is not finite.
        """
        said = self.predict_details(X)
        return (said.labels, said.depth) if return_depth else said.labels

    def predict_proba(
        self, X: Any, return_depth: bool = False
    ) -> NDArray[np.float64] | tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Compute probabilities by the branch that answers each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or mapping of str to array-like
            Samples, as of `predict`.
        return_depth : bool, default=False
            Also return where each sample was answered.

        Returns
        -------
        proba : ndarray of float64, shape (n_samples, n_classes)
            Columns as in `classes_`.
        depth : ndarray of intp, shape (n_samples,)
            As of `predict`; only with `return_depth`.

        Raises
        ------
        ValueError
            If `X` has another shape or dtype, or a value or a logit is not finite.
        """
        said = self.predict_details(X)
        return (said.probabilities, said.depth) if return_depth else said.probabilities

    def predict_details(self, X: Any) -> CascadePrediction:
        """Run once, and return all that it says.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or mapping of str to array-like
            Samples, as of `predict`.

        Returns
        -------
        said : CascadePrediction
            Labels, probabilities, depths and costs. An `ExitMonitor` of the cascade
            that was exported takes it, too.

        Raises
        ------
        ValueError
            If `X` has another shape or dtype, or a value or a logit is not finite.
        """
        engine = self._engine
        batches, n = engine.batches(X, self._batch_size)
        proba = np.empty((n, len(self.classes_)))
        depth, predicted = np.empty((2, n), dtype=np.intp)
        confidence = np.empty(n)
        runs = [*self._running_heads.tolist(), True]
        first = runs.index(True)
        for rows, values in batches:
            alive = np.arange(rows.start, rows.stop)
            said = None
            for k in range(engine.n_stages):
                if not runs[k]:
                    engine.skip(k, values)
                    continue
                said = engine.answer(k, values, said)
                if k == first:
                    predicted[rows], confidence[rows] = said.predicted, said.confidence
                if k == engine.n_stages - 1:
                    proba[alive], depth[alive] = said.proba, k
                    break
                exits = engine.rule.exits(k, said)
                if not exits.any():
                    continue
                out = alive[exits]
                proba[out], depth[out] = said.proba[exits], k
                on = np.flatnonzero(~exits)
                if len(on) == 0:
                    break
                alive, said = alive[on], said.keep(on)
                for name in values:
                    values[name] = values[name][on]
        labels = self.classes_[proba.argmax(axis=1)]
        costs = self.depth_costs_
        cost = None if costs is None else costs[depth]
        return CascadePrediction(
            labels, proba, depth, cost, predicted, confidence, first
        )

    def exit_depth(self, X: Any) -> NDArray[np.intp]:
        """Compute where each sample is answered.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or mapping of str to array-like
            Samples, as of `predict`.

        Returns
        -------
        depth : ndarray of intp, shape (n_samples,)
            Index of the branch, the number of branches for the last stage.

        Raises
        ------
        ValueError
            If `X` has another shape or dtype, or a value or a logit is not finite.
        """
        return self.predict_details(X).depth

    def cost(self, X: Any) -> NDArray[np.float64]:
        """Compute what is spent on each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or mapping of str to array-like
            Samples, as of `predict`.

        Returns
        -------
        cost : ndarray of float64, shape (n_samples,)
            In the unit of `depth_costs_`: MACs, or as the cascade's `costs`.

        Raises
        ------
        ValueError
            If the costs were not known, or `X` is not as `predict` takes it.
        """
        if self.depth_costs_ is None:
            raise ValueError(
                "the costs of the depths were not known when the cascade was exported. "
                "Set its parameter costs, and export it again."
            )
        return self.depth_costs_[self.exit_depth(X)]

    def stage_probabilities(self, X: Any) -> NDArray[np.float64]:
        """Compute the probabilities of every stage for every sample, without exits.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...), or mapping of str to array-like
            Samples, as of `predict`.

        Returns
        -------
        proba : ndarray of float64, shape (n_stages, n_samples, n_classes)
            Of the branches in cascade order and of the last stage.

        Raises
        ------
        ValueError
            If `X` has another shape or dtype, or a value or a logit is not finite.
        """
        batches, n = self._engine.batches(X, self._batch_size)
        proba = np.empty((len(self.thresholds_) + 1, n, len(self.classes_)))
        for rows, values in batches:
            for k, said in self._engine.every_answer(values):
                proba[k, rows] = said.proba
        return proba

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, self._arguments

    def __repr__(self) -> str:
        return f"OnnxCascade({self._arguments[0]!r})"


def _read(folder: Path) -> tuple[Manifest, list[bytes]]:
    manifest, files = read_folder(folder, FORMAT, _MAX_GRAPH_BYTES)
    wrote = ", ".join(f"{k} {v}" for k, v in manifest["written_by"].items())
    if manifest["schema"] > SCHEMA:
        raise ValueError(
            f"{str(folder)!r} was written with schema {manifest['schema']} by {wrote}; "
            f"this version reads schemas up to {SCHEMA}. Update sk_calex."
        )
    try:
        if manifest["kind"] != KIND:
            raise ValueError(f"it holds a {manifest['kind']!r:.50}.")
        content = Manifest.from_json(manifest.get("content"))
    except ValueError as error:
        raise ValueError(
            f"{str(folder)!r} cannot be read: {error} It was written by {wrote}."
        ) from error
    missing = [stage_file(k) for k in range(len(content.stages))]
    missing = [name for name in missing if name not in files]
    if missing:
        raise ValueError(f"the manifest of {str(folder)!r} does not list {missing}.")
    return content, [files[stage_file(k)] for k in range(len(content.stages))]


def _open(
    folder: str, n_threads: int | None, providers: tuple[str, ...], batch_size: int
) -> OnnxCascade:
    """Open a folder again, where an `OnnxCascade` is unpickled."""
    return OnnxCascade(
        folder, n_threads=n_threads, providers=providers, batch_size=batch_size
    )
