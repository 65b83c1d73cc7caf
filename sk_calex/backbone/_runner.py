"""Run a module: place it, feed it, cut it into stages, pool what its taps give."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sk_calex.backbone._example import (
    check_kind,
    described,
    drawn,
    how_to_turn,
    spare,
)
from sk_calex.backbone._fingerprint import module_fingerprint, settings_fingerprint
from sk_calex.backbone._layout import TapLayout
from sk_calex.backbone._maps import tap_maps
from sk_calex.backbone._outputs import SigmoidWatch, find_form
from sk_calex.backbone._placed import CutModule, Placed, state_of
from sk_calex.backbone._prepare import check_preprocess, dtype_of, prepare
from sk_calex.backbone._samples import SampleShape
from sk_calex.backbone._stages import Batch, Stages, State
from sk_calex.backbone._suggest import suggest
from sk_calex.backbone._whole import WholeModule, amp_dtype, autocast_to
from sk_calex.utils._fork import fork_safe_lock
from sk_calex.utils._int8 import RowFormat, TapCodec
from sk_calex.utils._modes import inference_mode_for
from sk_calex.utils._validation import check_finite, sent_to

__all__ = ["KnownStages", "RunSettings", "Runner"]

# Part of the fingerprint: raised when the same module would give other features.
_SCHEMA = 8

# Of errors about features.
_FEATURES = "the features of the module"
_CHECK = (
    "Check the samples, `preprocess` and the weights; float16 features overflow above "
    "65504: use dtype='float32'."
)

# Number of taps with taps="auto".
_N_AUTO = 3

# Held while stages are cut, of any runner: rarely, and torch traces one at a time.
_cutting = fork_safe_lock()


@dataclass(frozen=True, eq=False)
class RunSettings:
    """Parameters of a `FrozenBackbone` that may change after it was fitted."""

    module: nn.Module
    preprocess: Any
    batch_size: int
    device: str | torch.device
    dtype: str
    amp: str | None
    cached: bool

    def same_as(self, other: RunSettings) -> bool:
        """Tell whether settings are the same objects, or equal names and numbers."""
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return all(
            a is b or (isinstance(a, str | int) and type(a) is type(b) and a == b)
            for a, b in pairs
        )


class KnownStages(NamedTuple):
    """What some taps and the last stage gave for some samples, as stored rows.

    Parameters
    ----------
    taps : tuple of int
        Which taps, in depth order.
    rows : ndarray of shape (n_samples, width)
        As `Runner.features` of a backbone with these taps alone.
    """

    taps: tuple[int, ...]
    rows: NDArray[Any]


class Runner:
    """A module at work: raw samples in, features of its taps and its outputs out.

    The device, the module there and its stages are derived: they are not pickled but
    found again when they are needed.

    Parameters
    ----------
    settings : RunSettings
        How to run which module.
    raw : Tensor, NamedBatch or EncodedImages
        One or two raw samples, from which the shapes of the taps are learned.
    sample_shape : tuple of int or None, or dict of tuple
        Shape of a raw sample, for the fingerprint.
    taps : sequence of str, or "auto"
        Names of the taps.
    pool, layout, output, outputs
        As of `FrozenBackbone`.

    Attributes
    ----------
    settings : RunSettings
        As given.
    layout : TapLayout
        Columns of the features, and the MACs of each stage.
    example_shape : tuple of int or None
        Shape of one sample after preprocessing, where it is one tensor.
    sample_dtype : torch.dtype, or dict of torch.dtype
        Of the raw samples that it was made with; by name where they are named.
    """

    # In one attribute, so that no thread sees a part of it.
    _DERIVED = ("_cut",)

    def __init__(
        self,
        settings: RunSettings,
        raw: Any,
        sample_shape: SampleShape,
        *,
        taps: Sequence[str] | str,
        pool: Any,
        layout: Any = None,
        output: str | int | None = None,
        outputs: str | None = None,
    ) -> None:
        self.settings = settings
        self._sample_shape = sample_shape
        self.sample_dtype = dtype_of(raw)
        self._output = output
        placed = self._place()
        check_preprocess(raw, settings.preprocess, placed.device, placed.dtype)
        example = prepare(raw, settings.preprocess, placed.device, placed.dtype)
        if isinstance(taps, str):
            self._try(placed, example)
            taps = suggest(placed.module, example, _N_AUTO, output).taps
        self._example = spare(example)
        stages = self._split(placed, taps, example)
        self._maps = tap_maps(
            settings.module,
            stages.names,
            stages.output_shapes[:-1],
            pool=pool,
            layout=layout,
        )
        with self._inference_mode(placed), SigmoidWatch() as watch:
            raw_outputs = self._whole(placed, example)
        self._form = find_form(raw_outputs, outputs, watch.has_made(raw_outputs))
        n_outputs = self._form(raw_outputs).shape[1]
        self.example_shape = (
            tuple(example.shape[1:]) if isinstance(example, Tensor) else None
        )
        shapes = tuple(tap.shape for tap in self._maps)
        self.layout = TapLayout(stages.names, shapes, n_outputs, stages.macs)
        self._cut = self._note(placed, stages)

    def with_settings(self, settings: RunSettings) -> Runner:
        """Return a runner of the same layout, with other settings."""
        new = copy.copy(self)
        new.settings = settings
        return new

    # -- the module ---------------------------------------------------------------

    def _place(self) -> Placed:
        return Placed.of(self.settings.module, self.settings.device)

    @contextmanager
    def _inference_mode(
        self, placed: Placed, parts: Sequence[nn.Module] | None = None
    ) -> Iterator[None]:
        amp = amp_dtype(self.settings.amp)
        with (
            inference_mode_for(placed.module, placed.parts if parts is None else parts),
            autocast_to(placed.device, amp),
        ):
            yield

    def _try(self, placed: Placed, example: Batch) -> None:
        """Run the module once, to say in our words what it refuses."""
        try:
            with self._inference_mode(placed):
                self._whole(placed, example, picked=False)
        except Exception as error:
            raise ValueError(
                f"the module refused {described(example)}: {error}. Check the number "
                "of channels, the size, the dtype (integers stay integers, for token "
                f"ids) and `preprocess`.{how_to_turn(example)}"
            ) from error

    def _split(self, placed: Placed, taps: Sequence[str], example: Batch) -> Stages:
        self._try(placed, example)
        return Stages.split(
            placed.module,
            taps,
            example,
            output=self._output,
            amp=amp_dtype(self.settings.amp),
            fast=True,
        )

    def _note(self, placed: Placed, stages: Stages) -> CutModule:
        """Note from what stages were made, by fingerprint too where rows are stored."""
        made_from = state_of(placed.parts)
        fingerprint = self._digest(placed) if self.settings.cached else None
        return CutModule(placed, stages, made_from, fingerprint)

    def stages(self) -> Stages:
        """Return the module cut at its taps, on the device.

        Batch normalisation is folded into the convolutions before it; all other weights
        are shared with the module. Cut again where weights were written to meanwhile,
        which the folded copies do not see.
        """
        return self._current_cut().stages

    def cut_plain(self) -> tuple[nn.Module, Stages, Batch]:
        """Cut anew, on the CPU, into the module's own layers: none folded or packed.

        Returns
        -------
        module : torch.nn.Module
            The module on the CPU: itself, or a copy.
        stages : Stages
            Its stages.
        example : Tensor or dict of Tensor
            Two prepared samples.
        """
        runner = self.with_settings(replace(self.settings, device="cpu"))
        placed = runner._place()
        example = drawn(self._example, placed.device, placed.dtype)
        stages = Stages.split(
            placed.module, self.layout.names, example, output=self._output
        )
        return placed.module, stages, example

    def shape_outputs(self, stage: int, output: Tensor) -> Tensor:
        """Make of what a stage gives what `advance` returns: features, or logits."""
        return self._round(self._shape(stage, output), stage)

    def _shape(self, stage: int, output: Tensor) -> Tensor:
        shape = self._maps[stage] if stage < self.layout.n_taps else self._form
        return shape(output)

    def _current_cut(self) -> CutModule:
        cut: CutModule | None = getattr(self, "_cut", None)
        if cut is not None and cut.is_current():
            return cut
        with _cutting:  # one thread cuts, the others wait for it
            cut = getattr(self, "_cut", None)
            if cut is None or not cut.is_current():
                cut = self._cut_again()
        return cut

    def _cut_again(self) -> CutModule:
        """Cut on an example of the shape seen in fit."""
        placed = self._place()
        example = drawn(self._example, placed.device, placed.dtype)
        stages = self._split(placed, self.layout.names, example)
        self._cut = self._note(placed, stages)
        return self._cut

    def fingerprint(self) -> str:
        """Digest of the module as it is now and of all settings that shape features."""
        return self._digest(self._current_cut().placed)

    def _digest(self, placed: Placed) -> str:
        return self._digest_with_taps(self._digest_without_taps(placed))

    def _digest_with_taps(self, rest: str, taps: Sequence[int] | None = None) -> str:
        every = range(self.layout.n_taps) if taps is None else taps
        return settings_fingerprint(
            rest=rest,
            taps=tuple(self.layout.names[k] for k in every),
            maps=[self._maps[k].key() for k in every],
        )

    def _digest_without_taps(self, placed: Placed) -> str:
        return module_fingerprint(
            placed.module,
            output=self._output,
            form=self._form.key(),
            preprocess=self.settings.preprocess,
            dtype=self.settings.dtype,
            amp=self.settings.amp,
            sample_shape=self._sample_shape,
            schema=_SCHEMA,
        )

    def fingerprint_of_stages(self) -> str:
        """Return the fingerprint, after cutting again if the stages are outdated."""
        cut = self._current_cut()
        fingerprint = self._digest(cut.placed)
        if fingerprint != cut.fingerprint:
            # Weights were written where torch does not count it.
            with _cutting:
                cut = self._cut_again()
            fingerprint = self._digest(cut.placed)
        return fingerprint

    def fingerprints_of_fewer_taps(self) -> dict[tuple[int, ...], str]:
        """Return the fingerprints of the same network with some of the taps alone."""
        rest = self._digest_without_taps(self._current_cut().placed)
        n_taps = self.layout.n_taps
        return {
            taps: self._digest_with_taps(rest, taps)
            for n in range(n_taps - 1, 0, -1)
            for taps in combinations(range(n_taps), n)
        }

    @contextmanager
    def inference_mode(self) -> Iterator[None]:
        """Enter eval and inference mode, and autocast as set, in which stages run.

        Not for the module as a whole, of which stages need not call all parts. The one
        place that looks whether the stages are still those of the module: once for each
        call of a public method. Training flags and autocast are as before when it ends.
        """
        cut = self._current_cut()
        with self._inference_mode(cut.placed, cut.modules_in_use()):
            yield

    def _whole(self, placed: Placed, batch: Batch, picked: bool = True) -> Any:
        """Run the uncut module on copies, which it may write into."""
        if isinstance(batch, Mapping):
            keys, tensors = tuple(batch), list(batch.values())
        else:
            keys, tensors = None, [batch]
        whole = WholeModule(placed.module, keys, self._output)
        result = whole.call(*(tensor.clone() for tensor in tensors))
        return whole.pick(result) if picked else result

    # -- running ------------------------------------------------------------------

    def start(self, raw: Any) -> State:
        """Prepare a raw batch for stage 0, inside ``with inference_mode()``.

        Parameters
        ----------
        raw : Tensor, NamedBatch or EncodedImages
            From `Samples.raw`.

        Returns
        -------
        state : tuple of Tensor
            For `advance`.

        Raises
        ------
        ValueError
            If a sample is not finite.
        """
        return self._cut.stages.start(self._prepare(raw))

    def _prepare(self, raw: Any) -> Batch:
        placed = self._cut.placed
        batch = prepare(raw, self.settings.preprocess, placed.device, placed.dtype)
        check_kind(batch, self._example, "X")
        return batch

    def advance(self, stage: int, state: State) -> tuple[Tensor, State]:
        """Run one stage, inside ``with inference_mode()``.

        Parameters
        ----------
        stage : int
            Index of the stage.
        state : tuple of Tensor
            From `start` or the stage before, with rows taken by `keep` or not.

        Returns
        -------
        features : Tensor of float32, shape (n_samples, *shape)
            The tap's features, pooled and rounded as `transform` gives them, or the
            module's outputs after the last stage.
        state : tuple of Tensor
            What the stages after this one need.
        """
        output, state = self._cut.stages.advance(stage, state)
        return self.shape_outputs(stage, output), state

    def skip(self, stage: int, state: State) -> State:
        """Run one stage, inside ``with inference_mode()``, for those after it only.

        Parameters
        ----------
        stage, state
            As of `advance`.

        Returns
        -------
        state : tuple of Tensor
            What the stages after this one need.
        """
        return self._cut.stages.advance(stage, state)[1]

    def keep(self, state: State, rows: NDArray[np.intp]) -> State:
        """Keep some samples of a state.

        Parameters
        ----------
        state : tuple of Tensor
            From `advance`.
        rows : ndarray of intp
            Which.

        Returns
        -------
        state : tuple of Tensor
            Their state.
        """
        index = sent_to(torch.from_numpy(rows), self._cut.placed.device)
        return self._cut.stages.take(state, index)

    @property
    def row_format(self) -> RowFormat:
        """The bytes of a row of int8 features."""
        return RowFormat(self.layout.shapes, self.layout.n_outputs)

    def row_of_taps(self, taps: Sequence[int]) -> tuple[int, Any]:
        """Return the width and the dtype of stored rows with some of the taps."""
        layout = self.layout.select(self.layout.names[k] for k in taps)
        if self.settings.dtype == "int8":
            return RowFormat(layout.shapes, layout.n_outputs).row_bytes, "uint8"
        return layout.width, self.settings.dtype

    def _as_stored(self, output: Tensor) -> Tensor:
        """Convert to the stored dtype, or to float32 where that is coded."""
        return output.half() if self.settings.dtype == "float16" else output.float()

    def _round(self, output: Tensor, stage: int) -> Tensor:
        """Round to the stored dtype, so that cached and live features agree."""
        output = self._as_stored(output).float()
        if self.settings.dtype == "int8" and stage < self.layout.n_taps:
            output = TapCodec(self.layout.shapes[stage]).round_trip(output)
        return output

    def features(self, raw: Any, known: KnownStages | None = None) -> NDArray[Any]:
        """Compute the features of one piece of raw samples, batch by batch.

        Parameters
        ----------
        raw : Tensor, NamedBatch or EncodedImages
            From `Samples.raw`.
        known : KnownStages, default=None
            What some stages gave for these samples: no stage after the last of the
            others is run.

        Returns
        -------
        features : ndarray of shape (n_samples, layout.width)
            Of the settings' dtype. For int8, of uint8 and shape (n_samples, row_bytes):
            rows as of `row_format`.

        Raises
        ------
        ValueError
            If a sample or a feature is not finite.
        """
        layout = self.layout
        read = () if known is None else (*known.taps, layout.n_taps)
        wanted = [k for k in range(layout.n_taps + 1) if k not in read]
        with self.inference_mode():
            if self.settings.dtype == "int8":
                form = self.row_format
                out = form.empty(len(raw))
                for rows, stage, output in self._outputs_of(raw, wanted):
                    check_finite(output, _FEATURES, _CHECK)
                    form.put(out[rows], stage, output)
                if known is not None:
                    shapes = tuple(layout.shapes[k] for k in known.taps)
                    given = RowFormat(shapes, layout.n_outputs)
                    for k, stage in enumerate(read):
                        form.copy(out, stage, known.rows, given, k)
                return out
            out = np.empty((len(raw), layout.width), dtype=self.settings.dtype)
            for rows, stage, output in self._outputs_of(raw, wanted):
                # Rounded where it was made: what leaves a device is what is stored.
                block = self._as_stored(output).flatten(1).cpu().numpy()
                out[rows, layout.columns(stage)] = block
            if known is not None:
                names = [layout.names[k] for k in known.taps]
                out[:, layout.select_columns(names)] = known.rows
        check_finite(out, _FEATURES, _CHECK)
        return out

    def _outputs_of(
        self, raw: Any, wanted: Sequence[int]
    ) -> Iterator[tuple[slice, int, Tensor]]:
        """Yield rows, a stage and what it gives, not rounded, batch by batch."""
        size = self.settings.batch_size
        for start in range(0, len(raw), size):
            rows = slice(start, start + size)
            state = self.start(raw[rows])
            for stage in range(max(wanted) + 1):
                output, state = self._cut.stages.advance(stage, state)
                if stage in wanted:
                    yield rows, stage, self._shape(stage, output)

    def outputs(self, raw: Any) -> Tensor:
        """Compute the outputs of the plain module, uncut, for one batch.

        Parameters
        ----------
        raw : Tensor, NamedBatch or EncodedImages
            From `Samples.raw`.

        Returns
        -------
        outputs : Tensor of float32, shape (n_samples, layout.n_outputs)
            As `transform` gives them.
        """
        placed = self._current_cut().placed
        with self._inference_mode(placed):
            whole = self._whole(placed, self._prepare(raw))
            outputs = self._round(self._form(whole), self.layout.n_taps)
        check_finite(outputs, "the logits of the module", "Check the weights.")
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in self._DERIVED}

    def __copy__(self) -> Runner:
        new = object.__new__(type(self))
        vars(new).update(self.__getstate__())
        return new
