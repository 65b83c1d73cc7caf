"""The frozen module as a scikit-learn transformer."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import _check_feature_names, check_is_fitted
from torch import nn

from sk_calex.backbone._archive import check_same_network, given_network
from sk_calex.backbone._extraction import (
    extract,
    extract_cached,
    rows_in_piece,
    warn_without_memory,
)
from sk_calex.backbone._layout import FeatureArray
from sk_calex.backbone._maps import DEFAULT_POOL, LAYOUTS
from sk_calex.backbone._outputs import OUTPUTS
from sk_calex.backbone._runner import Runner, RunSettings
from sk_calex.backbone._samples import Samples
from sk_calex.backbone._stored_features import StoredFeatures
from sk_calex.backbone._stored_taps import StoredTaps
from sk_calex.backbone._summary import backbone_summary
from sk_calex.backbone._whole import check_module
from sk_calex.store import FeatureStore, StoredRows
from sk_calex.utils._callbacks import CallbackSupportMixin, Task, with_callbacks
from sk_calex.utils._codec import savable
from sk_calex.utils._fitted_state import all_or_nothing
from sk_calex.utils._html import SummaryMixin, named
from sk_calex.utils._int8 import Int8Features
from sk_calex.utils._progress import bar
from sk_calex.utils._saving import SavableMixin
from sk_calex.utils._validation import softmax64

__all__ = ["FrozenBackbone"]

# What fit sets, and drops first: a fit that fails leaves nothing of the one before.
_FITTED = frozenset(
    {
        *("n_features_in_", "feature_names_in_", "sample_shape_", "stage_macs_"),
        *("layout_", "_runner"),
    }
)

# What is made anew where the backbone is loaded.
_LIVE = frozenset({"_runner"})

_FILES = " (None stands for image files of any size)"


@savable
class FrozenBackbone(
    SummaryMixin,
    CallbackSupportMixin,
    SavableMixin,
    TransformerMixin,
    BaseEstimator,
):
    """A frozen torch classifier as a transformer: samples in, tap features out.

    The module is cut at its taps into stages, so that a cascade can stop at one and go
    on from it with fewer samples. It is run in eval and inference mode; its weights,
    buffers and training flags are never changed, and clones share it. Fit again after
    training it further or replacing its layers.

    Parameters
    ----------
    module : torch.nn.Module
        The classifier. It is cut at its taps by `torch.fx` or `torch.export`; one that
        neither can follow is given as a ``torch.nn.Sequential`` of stages.
    taps : sequence of str, or "auto"
        Names of the submodules whose outputs are tapped, in the order of execution,
        such as ``["layer1", "layer2"]`` or ``["layer2.0"]``. "auto": three that
        `suggest_taps` proposes, spread over the MACs; `layout_` names them.
    pool : int, tuple of int, dict or None, default=8
        Grid to which feature maps (C, H, W) are averaged:

        - an int: at most ``pool`` by ``pool``;
        - ``(height, width)``: for maps that are not square;
        - a dict of those: for each tap by name;
        - None: maps stay as they are.

        Token and vector features are never pooled. Frames of videos and slices of
        volumes, (C, T, H, W), are averaged always.
    layout : {"NCHW", "NHWC", "NCL", "NLC"}, dict or None, default=None
        Which axis of a tap holds the channels; heads get maps with channels first.

        - None: found from the module and the shape; a warning where that is not
          possible;
        - "NCHW" or "NHWC": channels first or last in maps, videos and volumes;
        - "NCL" or "NLC": channels first or last in sequences;
        - a dict of those: for each tap by name.
    preprocess : callable, default=None
        Called with each raw batch on the device, a tensor or a dict of tensors; returns
        a tensor for the module, or a dict for one that is called with keywords. Fit
        checks that it is neither random nor dependent on the batch. None: uint8 images
        are divided by 255, all else passes. Floats are then cast to the module's
        dtype, integers never.
    output : str or int, default=None
        Which part of what the module returns are the logits:

        - None: it returns one tensor;
        - a str: a key or an attribute, such as "logits" for Hugging Face models;
        - an int: an index into a tuple.
    outputs : {"logits", "probabilities"} or None, default=None
        What the logits are.

        - "logits": any numbers; a single one, z, is that of the second of two classes
          (as with `torch.nn.BCEWithLogitsLoss`) and becomes [0, z];
        - "probabilities": the module ends in a softmax or sigmoid; their logarithms
          are taken, so that softmax is not applied twice;
        - None: logits, with a warning if they look like probabilities.
    classes : array-like of shape (n_outputs,), default=None
        Label of each output of the module. None: the sorted labels seen by the cascade.
    batch_size : int, default=256
        Samples run at once.
    device : str, default="auto"
        Torch device; "auto" is the first of CUDA, XPU and MPS that torch sees, XPU and
        MPS only where a small trial comes out right, else the CPU. On another device
        than the module's, a copy is made there and the module itself stays.
    dtype : {"float32", "float16", "int8"}, default="float32"
        Type of the features, in memory and in the cache. The module runs in its own.

        - "float32": as most modules compute them;
        - "float16": half the space, rounded to about 3 decimal digits;
        - "int8": about a quarter, in 255 steps. Each row has a scale for each channel
          of a tap, the outputs stay float32. Samples on their way through a cascade
          are rounded alike.
    amp : {"bfloat16", "float16"} or None, default=None
        Precision to which `torch.autocast` lowers operations while the module runs.
        None: full precision, also where the caller has switched autocast on.
    n_jobs : int, default=None
        Processes that extract, by joblib; None means 1 unless in a
        ``joblib.parallel_config`` context. With its Dask backend, whose workers all
        take part, they may be on many machines.
    cache : path-like or FeatureStore, default=None
        A store, or its folder: rows seen before are read, not computed, and large
        results are memory maps. Several processes may fill one store at once. Clones
        share a store, like the module.
    on_demand : bool, default=False
        How a `cache` gives results of more than 32 MiB.

        - False: as a memory map of a copy on the same disk, which is an array and is
          read fastest;
        - True: as a matrix that reads from the store what is asked for, with no second
          copy. It is no array, but `np.asarray` makes one of it. For features that
          fill the disk.
    verbose : int, default=0
        1 shows a progress bar, on stderr. A cascade with ``verbose=1`` shows it while
        it is fitted, whatever is set here.

    Attributes
    ----------
    layout_ : TapLayout
        Which columns of the output are which tap, and the MACs of each stage.
    stage_macs_ : tuple of int
        Multiply-accumulates of each stage for one sample, counted by torch (1 MAC = 2
        FLOPs): one entry a tap, one for the rest.
    sample_shape_ : tuple of int, or dict of tuple
        Shape of one sample, by name where it is several arrays; (3, None, None) for
        image files with a `preprocess`, which may differ in size.
    n_features_in_ : int
        Size of the samples' first axis, the channels of an image; the number of inputs
        where they have names.
    feature_names_in_ : ndarray of str, shape (n_features_in_,)
        Names of the columns, where X was a data frame.

    See Also
    --------
    CascadeClassifier : Puts branches on the taps.
    suggest_taps : Lists where a module can be tapped.

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
        "taps": [StrOptions({"auto"}), list, tuple],
        "layout": [StrOptions(set(LAYOUTS)), dict, None],
        "pool": [Interval(Integral, 1, None, closed="left"), tuple, list, dict, None],
        "preprocess": [callable, None],
        "output": [str, Integral, None],
        "outputs": [StrOptions(set(OUTPUTS)), None],
        "classes": ["array-like", None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "dtype": [StrOptions({"float32", "float16", "int8"})],
        "amp": [StrOptions({"bfloat16", "float16"}), None],
        "n_jobs": [Integral, None],
        "cache": [str, os.PathLike, FeatureStore, None],
        "on_demand": ["boolean"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        module: nn.Module,
        taps: Sequence[str] | str,
        *,
        pool: int | tuple[int, int] | Mapping[str, Any] | None = DEFAULT_POOL,
        layout: str | Mapping[str, str] | None = None,
        preprocess: Any = None,
        output: str | int | None = None,
        outputs: str | None = None,
        classes: ArrayLike | None = None,
        batch_size: int = 256,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        amp: str | None = None,
        n_jobs: int | None = None,
        cache: Any = None,
        on_demand: bool = False,
        verbose: int = 0,
    ) -> None:
        self.module = module
        self.taps = taps
        self.pool = pool
        self.layout = layout
        self.preprocess = preprocess
        self.output = output
        self.outputs = outputs
        self.classes = classes
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.amp = amp
        self.n_jobs = n_jobs
        self.cache = cache
        self.on_demand = on_demand
        self.verbose = verbose

    @with_callbacks
    def fit(self, X: Any, y: Any = None) -> FrozenBackbone:
        """Run one batch to learn the layout of the taps; nothing is trained.

        A fit that fails or is interrupted leaves the backbone unfitted.

        Parameters
        ----------
        X : array, tensor, Dataset or paths of shape (n_samples, C, H, W)
            Samples, as in `transform`; only the first two are run.
        y : object, default=None
            Ignored.

        Returns
        -------
        self : FrozenBackbone
            The fitted backbone.

        Raises
        ------
        ValueError
            If a tap is unknown, repeated or out of order, a setting does not fit the
            module, or the module refuses the samples.
        OSError
            If one of the first two files cannot be read.
        """
        self.__dict__.pop("_runner", None)
        with all_or_nothing(self), Task.root(self, 0, X, y):
            check_module(self.module)
            self._validate_params()
            if self.on_demand and self.cache is None:
                raise ValueError(
                    "on_demand=True reads rows from a store, but cache=None keeps "
                    "none. Set cache to a folder, or on_demand=False."
                )
            samples = Samples(X)
            sample_shape = samples.shape_before(self.preprocess)
            if sample_shape == ():
                raise ValueError(
                    "X has numbers for samples; expected images or vectors."
                )
            runner = Runner(
                self._settings(),
                samples.raw(slice(0, min(2, len(samples)))),
                sample_shape,
                taps=self.taps,
                pool=self.pool,
                layout=self.layout,
                output=self.output,
                outputs=self.outputs,
            )
            self._check_classes(runner.layout.n_outputs)
            _check_feature_names(self, X, reset=True)
            if isinstance(sample_shape, dict):
                self.n_features_in_ = len(sample_shape)
            else:
                self.n_features_in_ = cast(int, sample_shape[0])
            self.sample_shape_ = sample_shape
            self.stage_macs_ = runner.layout.stage_macs
            self._runner = runner
            self.layout_ = runner.layout
        return self

    def _settings(self) -> RunSettings:
        return RunSettings(
            module=self.module,
            preprocess=self.preprocess,
            batch_size=self.batch_size,
            device=self.device,
            dtype=self.dtype,
            amp=self.amp,
            cached=self.cache is not None,
        )

    def runner(self) -> Runner:
        """Get what runs the module, stage by stage, with the parameters as they are.

        Returns
        -------
        runner : Runner
            Prepares raw batches, runs one stage after another, keeps some of the rows.

        Raises
        ------
        NotFittedError
            If the backbone is not fitted.
        """
        check_is_fitted(self)
        settings = self._settings()
        if not self._runner.settings.same_as(settings):
            self._runner = self._runner.with_settings(settings)
        return self._runner

    def _check_classes(self, n_outputs: int) -> None:
        if self.classes is None:
            return
        classes = np.asarray(self.classes)
        if classes.shape != (n_outputs,) or len(np.unique(classes)) < n_outputs:
            raise ValueError(
                f"classes must be {n_outputs} different labels, one for each output of "
                f"the module, got {len(np.unique(classes))} in shape {classes.shape}."
            )

    @property
    def fingerprint_(self) -> str:
        """Digest of the module as it is now and of all settings that shape features.

        Rows are stored under it. It is the same for clones and in other processes, and
        does not depend on the device; see `sk_calex.backbone._fingerprint`.
        """
        runner = self.runner()
        runner.stages()
        return runner.fingerprint()

    def transform(self, X: Any) -> Any:
        """Compute the features of the taps and the outputs of the module.

        Parameters
        ----------
        X : array, tensor, Dataset or paths of shape (n_samples, C, H, W)
            Samples of the shape seen in fit:

            - an array, a tensor, a data frame of numbers, or a list of samples;
            - a dict of arrays with one first axis, for a module that is called with
              keywords, or a data frame whose cells are arrays;
            - a map-style Dataset, or a list of its items: samples, tuples that begin
              with one, or dicts. Entries named label, labels and label_ids are left
              out;
            - a list or 1-D array of paths to image files (str or pathlib.Path), read as
              RGB, uint8: with `preprocess`, which then gets each as a batch of one,
              they may differ in size.

        Returns
        -------
        features : array-like of shape (n_samples, layout_.width)
            Columns as in `layout_`, of type `dtype`. With `cache`, a read-only memory
            map where it is large. With ``dtype="int8"`` a matrix that decodes the rows
            that are read: cascades and branches take it as it is, selecting rows keeps
            it, and ``np.asarray`` makes it float32.

        Raises
        ------
        ValueError
            If samples have another shape than in fit, they or the features are not
            finite, or a file is no image.
        OSError
            If a file cannot be read, or rows that were stored cannot be read back, as
            where workers on other machines do not share the store's folder.

        Warns
        -----
        UserWarning
            If the features will not fit into the free memory or, with `cache`, on the
            disk; with the number of bytes.
        """
        check_is_fitted(self)
        samples = self._check_samples(X)
        # Of int8 features rows are bytes, in a format of their own.
        form = self.runner().row_format if self.dtype == "int8" else None
        width = self.layout_.width if form is None else form.row_bytes
        dtype: Any = self.dtype if form is None else "uint8"
        n_bytes = width * np.dtype(dtype).itemsize
        piece = self.batch_size
        if samples.sample_bytes is not None:
            piece = rows_in_piece(self.batch_size, max(n_bytes, samples.sample_bytes))
        rows = bar(unit="row", total=len(samples), verbose=self.verbose)
        # Flags are set here and for long, so that worker threads do not reset them
        # under each other; inference mode is not for the code that reads samples.
        runner = self.runner()
        with rows, runner.inference_mode(), torch.inference_mode(False):
            if self.cache is None:
                warn_without_memory(len(samples) * n_bytes)
                out: Any = np.empty((len(samples), width), dtype=dtype)
                extract(
                    runner,
                    samples,
                    out,
                    piece=piece,
                    n_jobs=self.n_jobs,
                    bar=rows,
                )
            else:
                is_store = isinstance(self.cache, FeatureStore)
                store = self.cache if is_store else FeatureStore(self.cache)
                section = store.section(runner.fingerprint_of_stages(), width, dtype)
                out = extract_cached(
                    StoredTaps(store, runner),
                    samples,
                    section,
                    piece=piece,
                    n_jobs=self.n_jobs,
                    bar=rows,
                    on_demand=self.on_demand,
                )
        if form is not None:
            return Int8Features(out, form, self.layout_)
        if isinstance(out, StoredRows):
            return StoredFeatures(out, self.layout_, self.layout_)
        return FeatureArray.wrap(out, self.layout_)

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Compute the probabilities of the plain backbone.

        Parameters
        ----------
        X : array, tensor, Dataset or paths of shape (n_samples, C, H, W)
            Samples, as in `transform`.

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
        samples, runner = self._check_samples(X), self.runner()
        # Samples are read outside of inference mode: a Dataset may keep its tensors.
        batches = samples.batches(self.batch_size)
        return np.concatenate([softmax64(runner.outputs(raw)) for _, raw in batches])

    def predict(self, X: Any) -> NDArray[Any]:
        """Predict the labels with the plain backbone.

        Parameters
        ----------
        X : array, tensor, Dataset or paths of shape (n_samples, C, H, W)
            Samples, as in `transform`.

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
        """Return the names of the columns.

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
        samples = Samples(X, prepared_shape=self._runner.example_shape)
        _check_feature_names(self, X, reset=False)
        shape = samples.shape_before(self.preprocess)
        if shape != self.sample_shape_:
            either = (*shape, *self.sample_shape_)
            raise ValueError(
                f"X has samples of shape {shape}, but {type(self).__name__} was fitted "
                f"with {self.sample_shape_}{_FILES * (None in either)}. Give samples "
                "of that shape, or fit again."
            )
        return samples

    def __sklearn_clone__(self) -> FrozenBackbone:
        # The module is frozen: clones share it, and its preprocessing, as they are. A
        # store is made for several users, who all profit from its index.
        shared = {"module", "preprocess", "cache"}
        params = {
            name: value if name in shared else clone(value, safe=False)
            for name, value in self.get_params(deep=False).items()
        }
        new = type(self)(**params)
        for attribute in ("_metadata_request", "_sklearn_output_config"):
            if hasattr(self, attribute):
                setattr(new, attribute, copy.deepcopy(getattr(self, attribute)))
        if hasattr(self, "_skl_callbacks"):
            new._skl_callbacks = self._skl_callbacks  # shared, as by scikit-learn
        return new

    def __repr__(self, N_CHAR_MAX: int = 700) -> str:
        # Torch would print every layer of the module.
        shown = copy.copy(self)
        shown.__dict__.update(named({"module": self.module}))
        return BaseEstimator.__repr__(shown, N_CHAR_MAX)

    # -- saving ------------------------------------------------------------------

    def _archive_state(self) -> dict[str, Any]:
        """Return all but the network, its preprocessing and the store."""
        check_is_fitted(self)
        params = self.get_params(deep=False)
        shared = ("module", "preprocess", "cache")
        running = self.runner().__getstate__()
        del running["settings"]  # the parameters
        return {
            "params": {k: v for k, v in params.items() if k not in shared},
            "module": type(self.module).__name__,
            "fingerprint": self.fingerprint_,
            "fitted": {k: v for k, v in vars(self).items() if k in _FITTED - _LIVE},
            "runner": running,
        }

    def _archive_weights(self) -> dict[str, Any]:
        """Return parameters and buffers, for a network of the same code."""
        # A plain dict: that of torch holds versions as an attribute, too.
        return dict(self.module.state_dict())

    def _restore_archive(self, state: dict[str, Any], backbone: Any) -> None:
        given = given_network(backbone, FrozenBackbone, state)
        self.__init__(**given, **state["params"])  # type: ignore[misc]
        self.__dict__.update(state["fitted"])
        runner = object.__new__(Runner)
        vars(runner).update(state["runner"])
        runner.settings = self._settings()
        self._runner = runner
        check_same_network(self.fingerprint_, state)

    def _summary(self) -> str:
        return backbone_summary(self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.requires_fit = True
        return tags
