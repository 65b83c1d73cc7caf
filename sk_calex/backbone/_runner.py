"""How a frozen module is run: placed, fed, cut into stages, its taps pooled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from sk_calex.backbone._layout import TapLayout
from sk_calex.backbone._pooling import Grid
from sk_calex.backbone._samples import prepare
from sk_calex.backbone._stages import Stages, State
from sk_calex.utils._modes import frozen
from sk_calex.utils._validation import check_finite, resolve_device

__all__ = ["StagedEstimator"]

_CHANNELS_LAST_GRID = 16


class StagedEstimator(BaseEstimator):
    """Base of `FrozenBackbone`: all that touches the module.

    The device, the module there and its stages (`_device`, `_run`, `_stages`, and what
    they were cut from, `_cut_from` and `_cut_as`) are derived: they are not pickled but
    found again when they are needed.
    """

    module: nn.Module
    preprocess: Any
    batch_size: int
    device: str | torch.device
    dtype: str
    cache: Any
    layout_: TapLayout
    _example_shape: tuple[int, ...]
    _grids: tuple[Grid, ...]
    _cut_from: list[tuple[int, int, int]]
    _cut_as: str | None

    def _place(self) -> None:
        """Find the device, and the module there: itself, or a copy of it."""
        device = resolve_device(self.device)
        tensors = [*self.module.parameters(), *self.module.buffers()]
        places = {tensor.device for tensor in tensors}
        if len(places) == 1:
            (place,) = places
            if place.type == device.type and device.index in (None, place.index):
                device = place
        self._device = device
        self._run = self.module
        if not places <= {device}:
            # The user's module stays where it is.
            self._run = copy.deepcopy(self.module).to(device)

    def _split(self, taps: Sequence[str], example: Tensor) -> Stages:
        try:
            with frozen(self._run):
                self._run(example.clone())
        except Exception as error:
            raise ValueError(
                f"the module refused a batch of shape {tuple(example.shape)} and dtype "
                f"{example.dtype}: {error}. Check the number of channels, the size and "
                "`preprocess`."
            ) from error
        stages = Stages.split(self._run, taps, example, fold_norms=True)
        self._parts = list(self._run.modules())  # walking them takes longer
        self._cut_from = _state_of(self._parts)
        return stages

    def _features(self, raw: Tensor) -> NDArray[Any]:
        """Features of one piece, batch by batch."""
        out = np.empty((len(raw), self.layout_.width), dtype=self.dtype)
        stages = self.stages()
        with self.frozen():
            for start in range(0, len(raw), self.batch_size):
                rows = slice(start, start + self.batch_size)
                state = stages.start(self.prepare(raw[rows]))
                for k in range(stages.n_taps + 1):
                    output, state = self.advance(k, state)
                    if k < stages.n_taps:
                        output = self.pool_tap(k, output)
                    else:
                        output = self.round_features(output)
                    block = output.flatten(1).cpu().numpy()
                    out[rows, self.layout_.columns(k)] = block
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
        if not hasattr(self, "_device"):
            self.stages()
        return prepare(raw, self.preprocess, self._device, "X").to(self._module_dtype)

    @property
    def _module_dtype(self) -> torch.dtype:
        parameters = self.module.parameters()
        floating = (p.dtype for p in parameters if p.is_floating_point())
        return next(floating, torch.float32)

    def advance(self, stage: int, state: State) -> tuple[Tensor, State]:
        """Run one stage in the memory format that suits its maps.

        Parameters
        ----------
        stage : int
            Index of the stage.
        state : tuple of Tensor
            From ``stages().start`` or the stage before, inside ``frozen()``.

        Returns
        -------
        output : Tensor of shape (n_samples, *shape)
            Output of the tap, or of the module after the last stage.
        state : tuple of Tensor
            What the stages after this one need.
        """
        if self._device.type == "cpu" and not self._stages.packed:
            state = tuple(_in_format(value) for value in state)
        return self._stages.advance(stage, state)

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
            The stages, on the device, with batch normalisation folded into the
            convolutions before it; they share all other weights.
        """
        # Weights may have been written since, which folded copies do not see.
        if not hasattr(self, "_stages") or self._cut_from != _state_of(self._parts):
            self._cut_again()
        return self._stages

    def _cut_again(self) -> None:
        """Cut on an example of the shape seen in fit."""
        self._place()
        generator = torch.Generator().manual_seed(0)
        example = torch.rand(2, *self._example_shape, generator=generator)
        self._stages = self._split(
            self.layout_.names, example.to(self._device, self._module_dtype)
        )
        self._note_cut()

    def _note_cut(self) -> None:
        """Remember what a cache is told the stages are."""
        self._cut_as = None if self.cache is None else self.fingerprint_

    @property
    def fingerprint_(self) -> str:
        """Digest of the module and the settings; see `FrozenBackbone`."""
        raise NotImplementedError

    def frozen(self) -> AbstractContextManager[None]:
        """Context in which the stages may run: eval mode and inference mode.

        Returns
        -------
        context : context manager
            Gives every submodule its training flag back when it ends.
        """
        if not hasattr(self, "_run"):
            self.stages()
        return frozen(self._run)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__().copy()
        for derived in ("_device", "_run", "_stages", "_cut_from", "_parts", "_cut_as"):
            state.pop(derived, None)
        return state


def _in_format(value: Tensor) -> Tensor:
    """Channels last where it pays without packed weights: for maps of 16 x 16 on.

    Measured on a ResNet18: the first stage in half the time, the last in twice.
    """
    if value.ndim != 4:
        return value
    large = min(value.shape[2:]) >= _CHANNELS_LAST_GRID
    form = torch.channels_last if large else torch.contiguous_format
    return value.contiguous(memory_format=form)


def _state_of(modules: Sequence[nn.Module]) -> list[tuple[int, int, int]]:
    """Which tensors the modules hold, where, and how often each was written to.

    Cheap, but blind to writes through ``.data``, which torch does not count.
    """
    # Inference tensors cannot be written to outside of inference mode: no version.
    return [
        (id(tensor), tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version)
        for module in modules
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    ]
