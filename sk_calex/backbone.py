"""The frozen module as a scikit-learn transformer."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from joblib import Parallel, delayed, effective_n_jobs
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from tqdm import tqdm

from sk_calex._frozen import frozen
from sk_calex._inputs import Samples, prepare
from sk_calex._validation import check_finite, resolve_device, softmax64
from sk_calex.fingerprint import module_fingerprint
from sk_calex.layout import FeatureArray, TapLayout
from sk_calex.stages import Stages
from sk_calex.store import FeatureStore, row_keys

__all__ = ["FrozenBackbone"]

# Rows extracted at a time when they go to a store: one shard, a bounded piece of memory.
_CHUNK_BYTES = 64 * 2**20
_SCHEMA = 1


class FrozenBackbone(TransformerMixin, BaseEstimator):
    """A frozen torch classifier as a transformer: samples in, tap features out.

    The module is cut at its taps into stages, so that a cascade can stop at one and go
    on from it with fewer samples. It is run in eval and inference mode; its weights,
    buffers and training flags are never changed, and clones share it.

    Parameters
    ----------
    module : torch.nn.Module
        The classifier, logits out. Modules that `torch.fx` cannot trace are given as a
        ``torch.nn.Sequential`` of stages.
    taps : sequence of str
        Names of the submodules whose outputs are tapped, in the order of execution,
        such as ``["layer1", "layer2"]`` or ``["layer2.0"]``.
    pool : int, tuple of int, dict or None, default=8
        Grid to which feature maps (C, H, W) are averaged: at most ``pool`` by ``pool``,
        or ``(height, width)``. A dict gives it for each tap by name; None keeps the
        maps as they are. Token and vector features are never pooled.
    preprocess : callable, default=None
        Called with each raw batch as a tensor on the device; returns a floating point
        tensor for the module. None: floats pass as they are, uint8 is divided by 255.
    classes : array-like of shape (n_outputs,), default=None
        Label of each output of the module. None: the sorted labels seen by the cascade.
    batch_size : int, default=256
        Samples run at once.
    device : str, default="auto"
        Torch device; "auto" is CUDA where there is one, else the CPU. On another device
        than the module's, a copy is made there and the module itself stays.
    dtype : {"float32", "float16"}, default="float32"
        Type of the features, in memory and in the cache. The module runs in its own.
    n_jobs : int, default=None
        Processes that extract, by joblib; None means 1 unless in a
        ``joblib.parallel_config`` context.
    cache : path-like, default=None
        Folder of a `FeatureStore`: rows seen before are read, not computed, and large
        results are memory maps.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    layout_ : TapLayout
        Which columns of the output are which tap, and the MACs of each stage.
    stage_macs_ : tuple of int
        Multiply-accumulates of each stage for one sample, counted by torch (1 MAC = 2
        FLOPs): one entry a tap, one for the rest.
    sample_shape_ : tuple of int
        Shape of one sample.
    fingerprint_ : str
        Digest of weights, taps, pooling, preprocessing and dtype, under which rows are
        stored; only with `cache`.
    n_features_in_ : int
        Size of the samples' first axis, the channels of an image.

    See Also
    --------
    CascadeClassifier : Puts branches on the taps.

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from sk_calex import FrozenBackbone
    >>> module = nn.Sequential(
    ...     nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(),
    ...     nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2),
    ... )
    >>> X = np.zeros((5, 3, 16, 16), dtype=np.uint8)
    >>> backbone = FrozenBackbone(module, taps=["1"]).fit(X)
    >>> backbone.transform(X).shape  # 4 channels on an 8 x 8 grid, and 2 logits
    (5, 258)
    >>> backbone.stage_macs_
    (27648, 8)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "module": [nn.Module],
        "taps": [list, tuple],
        "pool": [Interval(Integral, 1, None, closed="left"), tuple, list, dict, None],
        "preprocess": [callable, None],
        "classes": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "dtype": [StrOptions({"float32", "float16"})],
        "n_jobs": [Integral, None],
        "cache": "no_validation",  # type: ignore[dict-item]
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        module: nn.Module,
        taps: Sequence[str],
        *,
        pool: int | tuple[int, int] | Mapping[str, Any] | None = 8,
        preprocess: Any = None,
        classes: ArrayLike | None = None,
        batch_size: int = 256,
        device: str = "auto",
        dtype: str = "float32",
        n_jobs: int | None = None,
        cache: Any = None,
        verbose: int = 0,
    ) -> None:
        self.module = module
        self.taps = taps
        self.pool = pool
        self.preprocess = preprocess
        self.classes = classes
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.cache = cache
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> FrozenBackbone:
        """Run one batch to learn the layout of the taps; nothing is trained.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, C, H, W)
            Samples; only the first two are run. uint8 or float.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : FrozenBackbone
            The fitted backbone.

        Raises
        ------
        ValueError
            If a tap is unknown, repeated or out of order, or if the module refuses the
            samples.
        """
        self._validate_params()
        samples = Samples(X)
        self._device = resolve_device(self.device)
        raw = samples.raw(slice(0, min(2, len(samples))))
        self.sample_shape_ = tuple(raw.shape[1:])
        example = prepare(raw, self.preprocess, self._device, "X")
        self._example_shape = tuple(example.shape[1:])
        self._stages = self._split(example)
        self._grids = self._pool_grids(self._stages.output_shapes[:-1])
        shapes = [
            (shape[0], *grid) if grid else shape
            for shape, grid in zip(
                self._stages.output_shapes[:-1], self._grids, strict=True
            )
        ]
        outputs = self._stages.output_shapes[-1]
        if len(outputs) != 1:
            raise ValueError(
                f"module gives outputs of shape {outputs} for one sample; a backbone "
                "must give one vector (logits or features). Flatten its output."
            )
        self.stage_macs_ = tuple(self._stages.macs)
        self.layout_ = TapLayout(
            tuple(self.taps), tuple(shapes), outputs[0], self.stage_macs_
        )
        self.n_features_in_ = self.sample_shape_[0]
        if self.classes is not None and len(np.asarray(self.classes)) != outputs[0]:
            raise ValueError(
                f"classes has {len(np.asarray(self.classes))} labels but the module "
                f"has {outputs[0]} outputs. Give one label an output."
            )
        if self.cache is not None:
            self.fingerprint_ = module_fingerprint(
                self.module,
                taps=tuple(self.taps),
                pool=self._grids,
                preprocess=self.preprocess,
                dtype=self.dtype,
                sample_shape=self.sample_shape_,
                schema=_SCHEMA,
            )
        return self

    def _split(self, example: Tensor) -> Stages:
        try:
            self._run = self._module_on(self._device)
            return Stages.split(self._run, self.taps, example)
        except RuntimeError as error:
            raise ValueError(
                f"the module refused a batch of shape {tuple(example.shape)}: {error}. "
                "Check the number of channels, the size and `preprocess`."
            ) from error

    def _module_on(self, device: torch.device) -> nn.Module:
        tensors = [*self.module.parameters(), *self.module.buffers()]
        if all(tensor.device.type == device.type for tensor in tensors):
            return self.module
        # The user's module stays where it is.
        return copy.deepcopy(self.module).to(device)

    def _pool_grids(
        self, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[tuple[int, int] | None, ...]:
        per_tap = self.pool if isinstance(self.pool, Mapping) else None
        if per_tap is not None and (unknown := set(per_tap) - set(self.taps)):
            raise ValueError(
                f"pool names {sorted(unknown)}, which are not among the taps "
                f"{list(self.taps)}."
            )
        grids: list[tuple[int, int] | None] = []
        for tap, shape in zip(self.taps, shapes, strict=True):
            pool = per_tap.get(tap, 8) if per_tap is not None else self.pool
            if pool is None or len(shape) != 3:
                grids.append(None)
                continue
            try:
                height, width = (pool, pool) if isinstance(pool, Integral) else pool
                grid = (min(int(height), shape[1]), min(int(width), shape[2]))
            except (TypeError, ValueError):
                grid = (0, 0)
            if min(grid) < 1:
                raise ValueError(
                    f"pool={pool!r} for tap {tap!r} is not usable: give a positive "
                    "size, (height, width), a dict of those by tap, or None."
                )
            grids.append(None if grid == shape[1:] else grid)
        return tuple(grids)

    def transform(self, X: Any) -> NDArray:
        """Features of the taps and the outputs of the module.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, C, H, W)
            Samples of the shape seen in fit, uint8 or float.

        Returns
        -------
        features : FeatureArray of shape (n_samples, layout_.width)
            Columns as in `layout_`, of type `dtype`. With `cache`, a read-only memory
            map where it is large.

        Raises
        ------
        ValueError
            If samples have another shape than in fit, or they or the features are not
            finite.
        """
        check_is_fitted(self)
        samples = self._check_samples(X)
        if self.cache is None:
            out = np.empty((len(samples), self.layout_.width), dtype=self.dtype)
            pieces = (
                (rows, samples.raw(rows)) for rows in _slices(len(samples), self._chunk)
            )
            for rows, features in self._extract(pieces, len(samples)):
                out[rows] = features
        else:
            out = self._transform_cached(samples)
        return FeatureArray.wrap(out, self.layout_)

    @property
    def _chunk(self) -> int:
        """Rows of a piece: whole batches, of bounded size in memory."""
        row = self.layout_.width * np.dtype(self.dtype).itemsize
        return self.batch_size * max(1, _CHUNK_BYTES // (row * self.batch_size))

    def _transform_cached(self, samples: Samples) -> NDArray:
        section = FeatureStore(self.cache).section(
            self.fingerprint_, self.layout_.width, self.dtype
        )
        keys = np.empty((len(samples), 16), dtype=np.uint8)

        def missing() -> Iterator[tuple[Any, Tensor]]:
            for rows in _slices(len(samples), self._chunk):
                raw = samples.raw(rows)
                keys[rows] = row_keys(raw.cpu().numpy())
                _, first = np.unique(keys[rows], axis=0, return_index=True)
                wanted = np.sort(first)
                wanted = wanted[~section.find(keys[rows][wanted])]
                if len(wanted):
                    picked = keys[rows][wanted]
                    yield picked, raw if len(wanted) == len(raw) else raw[wanted]

        # A shard that turns out damaged while it is read is computed again, once.
        for attempt in range(2):
            for new_keys, features in self._extract(missing(), len(samples)):
                section.write(new_keys, features)
            try:
                return section.gather(keys)
            except KeyError:
                if attempt:
                    raise
        raise AssertionError("unreachable")  # pragma: no cover

    def _extract(
        self, pieces: Iterator[tuple[Any, Tensor]], total: int
    ) -> Iterator[tuple[Any, NDArray]]:
        """Features of each (tag, raw rows), in order, on one process or several."""
        with tqdm(total=total, unit="row", disable=not self.verbose) as bar:
            if effective_n_jobs(self.n_jobs) == 1:
                results = ((tag, self._features(raw)) for tag, raw in pieces)
            else:
                results = Parallel(n_jobs=self.n_jobs, return_as="generator")(
                    delayed(_extract_piece)(self, tag, raw) for tag, raw in pieces
                )
            for tag, features in results:
                yield tag, features
                bar.update(len(features))

    def _features(self, raw: Tensor) -> NDArray:
        out = np.empty((len(raw), self.layout_.width), dtype=self.dtype)
        stages = self.stages()
        with self.frozen():
            for rows in _slices(len(raw), self.batch_size):
                state = stages.start(self.prepare(raw[rows]))
                for k in range(stages.n_taps + 1):
                    output, state = stages.advance(k, state)
                    if k < stages.n_taps:
                        output = self.pool_tap(k, output)
                    out[rows, self.layout_.columns(k)] = output.flatten(1).cpu().numpy()
        check_finite(
            out,
            "the features of the module",
            "Check the samples, `preprocess` and the weights; float16 features "
            "overflow above 65504: use dtype='float32'.",
        )
        return out

    def prepare(self, raw: Tensor) -> Tensor:
        """A raw batch as the module wants it.

        Parameters
        ----------
        raw : Tensor of shape (n_samples, *sample_shape_)
            Samples, uint8 or float.

        Returns
        -------
        batch : Tensor
            Preprocessed floating point batch on the device, in the module's dtype.

        Raises
        ------
        ValueError
            If a sample is not finite.
        """
        x = prepare(raw, self.preprocess, self._device, "X")
        dtype = next(
            (p.dtype for p in self.module.parameters() if p.is_floating_point()),
            torch.float32,
        )
        return x.to(dtype)

    def pool_tap(self, tap: int, output: Tensor) -> Tensor:
        """A tap's output as the branches see it: pooled and rounded to `dtype`.

        Parameters
        ----------
        tap : int
            Index of the tap.
        output : Tensor of shape (n_samples, *shape)
            Output of the tapped module.

        Returns
        -------
        features : Tensor of float32, shape (n_samples, *layout_.shapes[tap])
            Pooled features.
        """
        grid = self._grids[tap]
        if grid is not None:
            output = F.adaptive_avg_pool2d(output, grid)
        return self.round_features(output)

    def round_features(self, output: Tensor) -> Tensor:
        """Round to the stored `dtype`, so that cached and live features agree.

        Parameters
        ----------
        output : Tensor
            Features or logits.

        Returns
        -------
        rounded : Tensor of float32
            The same values as `transform` gives.
        """
        if self.dtype == "float16":
            output = output.half()
        return output.float()

    def stages(self) -> Stages:
        """The module cut at its taps.

        Returns
        -------
        stages : Stages
            The stages, on the device; they share the module's weights there.
        """
        if not hasattr(self, "_stages"):
            # Not pickled: cut again, on an example of the shape seen in fit.
            self._device = resolve_device(self.device)
            generator = torch.Generator().manual_seed(0)
            example = torch.rand(2, *self._example_shape, generator=generator)
            dtype = next((p.dtype for p in self.module.parameters()), torch.float32)
            self._stages = self._split(example.to(self._device, dtype))
        return self._stages

    def frozen(self) -> AbstractContextManager[None]:
        """Context in which the stages may run: eval mode and inference mode.

        Returns
        -------
        context : context manager
            Gives every submodule its training flag back when it ends.
        """
        self.stages()
        return frozen(self._run)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Probabilities of the plain backbone.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, C, H, W)
            Samples.

        Returns
        -------
        proba : ndarray of float64, shape (n_samples, n_outputs)
            Softmax of the module's outputs.

        Raises
        ------
        ValueError
            If samples have another shape than in fit, or they or the outputs are not
            finite.
        """
        check_is_fitted(self)
        samples = self._check_samples(X)
        self.stages()
        module, parts = self._run, []
        with self.frozen():
            for _, raw in samples.batches(self.batch_size):
                logits = self.round_features(module(self.prepare(raw)))
                check_finite(logits, "the logits of the module", "Check the weights.")
                parts.append(softmax64(logits))
        return np.concatenate(parts)

    def predict(self, X: Any) -> NDArray:
        """Answers of the plain backbone.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, C, H, W)
            Samples.

        Returns
        -------
        labels : ndarray of shape (n_samples,)
            Label of the largest output, by `classes`; its index where that is None.

        Raises
        ------
        ValueError
            If samples have another shape than in fit, or they or the outputs are not
            finite.
        """
        winners = self.predict_proba(X).argmax(axis=1)
        return winners if self.classes is None else np.asarray(self.classes)[winners]

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Names of the columns.

        Parameters
        ----------
        input_features : object, default=None
            Ignored: the names come from the taps.

        Returns
        -------
        names : ndarray of object, shape (layout_.width,)
            Such as ``layer1[0,3,7]`` and ``output[2]``.
        """
        check_is_fitted(self)
        return self.layout_.feature_names()

    def _check_samples(self, X: Any) -> Samples:
        samples = Samples(X)
        if samples.sample_shape != self.sample_shape_:
            raise ValueError(
                f"X has samples of shape {samples.sample_shape}, but "
                f"{type(self).__name__} was fitted with {self.sample_shape_}. Give "
                "samples of that shape, or fit again."
            )
        return samples

    def __sklearn_clone__(self) -> FrozenBackbone:
        # The module is frozen: clones share it, and its preprocessing, as they are.
        shared = {"module", "preprocess"}
        params = {
            name: value if name in shared else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        new = type(self)(**params)
        for attribute in ("_metadata_request", "_sklearn_output_config"):
            if hasattr(self, attribute):
                setattr(new, attribute, copy.deepcopy(getattr(self, attribute)))
        return new

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        for derived in ("_stages", "_run", "_device"):
            state.pop(derived, None)
        return state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        return tags


def _slices(n: int, size: int) -> Iterator[slice]:
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def _extract_piece(
    backbone: FrozenBackbone, tag: Any, raw: Tensor
) -> tuple[Any, NDArray]:
    return tag, backbone._features(raw)
