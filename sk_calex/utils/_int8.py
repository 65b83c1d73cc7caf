"""Feature rows held as int8, with a scale for each channel of each row.

The values of one channel of one row share a scale, the largest magnitude over 127. A
row's bytes depend on that row alone, so that no pass over the data comes first and rows
that are stored stay right whatever comes with them. There is no zero point: zeros, of
which rectified features are full, are exact.

Channels with few values share the scale of their neighbours: else scales would take as
much space as what they scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_calex.utils._decoded import DecodedFeatures, RowSource, read_columns

__all__ = ["Int8Features", "RowFormat", "TapCodec"]

# Values that share a scale, at least: so scales take an eighth of the codes, at most.
_LEAST_GROUP = 32
_LARGEST = 127
# 1 / 127, less by two units in the last place: what is decoded never overflows.
_STEP = float(np.float32((1 - 2.0**-22) / _LARGEST))
# A smallest scale: division is never by zero, and never by a number of few bits.
_LEAST_SCALE = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class TapCodec:
    """int8 codes for the features of one tap, and back.

    Parameters
    ----------
    shape : tuple of int
        Shape of one row's features: (C, H, W), (L, D) tokens or (D,).

    Notes
    -----
    Our definition: ``scale = max |x| / 127`` over the positions of a channel, of
    ``ceil(32 / positions)`` neighbouring channels where there are fewer than 32;
    ``code = round(x / scale)``, so that a value moves by half a scale at most.

    Examples
    --------
    >>> import torch
    >>> from sk_calex.utils._int8 import TapCodec
    >>> codec = TapCodec((2, 8, 8))
    >>> codes, scales = codec.encode(torch.full((5, 2, 8, 8), 25.4))
    >>> codes.dtype, scales.shape
    (torch.int8, torch.Size([5, 2]))
    >>> round(float(codec.decode(codes, scales).max()), 4)
    25.4
    """

    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of values in a row."""
        return math.prod(self.shape)

    @property
    def n_channels(self) -> int:
        """Number of channels: the first axis of maps, the last of all else."""
        return self.shape[0] if len(self.shape) == 3 else self.shape[-1]

    @property
    def n_shared(self) -> int:
        """Number of neighbouring channels that share a scale."""
        return -(-_LEAST_GROUP // (self.size // self.n_channels))

    @property
    def n_scales(self) -> int:
        """Number of scales in a row."""
        return -(-self.n_channels // self.n_shared)

    def encode(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Find codes and scales.

        Parameters
        ----------
        values : Tensor of float32, shape (n, *shape)
            Features, finite.

        Returns
        -------
        codes : Tensor of int8, shape (n, *shape)
            Their codes.
        scales : Tensor of float32, shape (n, n_scales)
            Their scales.
        """
        largest = values.abs()
        if len(self.shape) == 3:
            largest = largest.amax((2, 3))
        elif len(self.shape) == 2:
            largest = largest.amax(1)
        if self.n_shared > 1:
            missing = self.n_scales * self.n_shared - self.n_channels
            largest = torch.nn.functional.pad(largest, (0, missing))
            largest = largest.unflatten(1, (self.n_scales, self.n_shared)).amax(2)
        scales = (largest * _STEP).clamp_min(_LEAST_SCALE)
        codes = (values / self._spread(scales)).round()
        return codes.to(torch.int8), scales

    def decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Compute features from codes and scales, as of `encode`."""
        return codes.float() * self._spread(scales)

    def round_trip(self, values: Tensor) -> Tensor:
        """Compute what `decode` gives of `encode`."""
        return self.decode(*self.encode(values))

    def _spread(self, scales: Tensor) -> Tensor:
        """Give each channel its scale, in a shape that broadcasts over positions."""
        if self.n_shared > 1:
            scales = scales[:, :, None].expand(-1, -1, self.n_shared)
            scales = scales.flatten(1)[:, : self.n_channels]
        if len(self.shape) == 3:
            return scales[:, :, None, None]
        return scales[:, None] if len(self.shape) == 2 else scales


@dataclass(frozen=True)
class RowFormat:
    """Where the bytes of a row hold what: scales, outputs, then the codes of each tap.

    Numbers come first and rows are padded to whole numbers, so that a matrix of rows
    can be viewed as float32 without a copy. The outputs stay float32: they answer.

    Parameters
    ----------
    shapes : tuple of tuple of int
        Shape of one row's features at each tap.
    n_outputs : int
        Number of outputs.
    """

    shapes: tuple[tuple[int, ...], ...]
    n_outputs: int

    @property
    def codecs(self) -> tuple[TapCodec, ...]:
        """The codec of each tap."""
        return tuple(TapCodec(tuple(shape)) for shape in self.shapes)

    def numbers(self, stage: int) -> slice:
        """Return where a stage's scales lie among the numbers, or the outputs."""
        sizes = [*(codec.n_scales for codec in self.codecs), self.n_outputs]
        start = sum(sizes[:stage])
        return slice(start, start + sizes[stage])

    @property
    def n_numbers(self) -> int:
        """Number of float32 in a row."""
        return self.numbers(len(self.shapes)).stop

    def codes(self, tap: int) -> slice:
        """Return which bytes are a tap's codes."""
        sizes = [codec.size for codec in self.codecs]
        start = 4 * self.n_numbers + sum(sizes[:tap])
        return slice(start, start + sizes[tap])

    @property
    def row_bytes(self) -> int:
        """Number of bytes in a row."""
        return -(-self.codes(len(self.shapes) - 1).stop // 4) * 4

    def empty(self, n: int) -> NDArray[np.uint8]:
        """Make rows to be filled by `put`; padding is zero."""
        return np.zeros((n, self.row_bytes), dtype=np.uint8)

    def put(self, rows: NDArray[np.uint8], stage: int, values: Tensor) -> None:
        """Enter what one stage gave, features (n, *shape) or outputs, into rows."""
        numbers = rows[:, : 4 * self.n_numbers].view(np.float32)
        if stage == len(self.shapes):
            numbers[:, self.numbers(stage)] = values.float().cpu().numpy()
            return
        codes, scales = self.codecs[stage].encode(values.float())
        numbers[:, self.numbers(stage)] = scales.cpu().numpy()
        flat = codes.reshape(len(rows), -1).cpu().numpy()
        rows[:, self.codes(stage)] = flat.view(np.uint8)

    def copy(
        self,
        rows: NDArray[np.uint8],
        stage: int,
        source: NDArray[np.uint8],
        form: RowFormat,
        of: int,
    ) -> None:
        """Enter what a stage gave as rows of another format hold it, as stage `of`."""
        to, start = (
            slice(4 * place.start, 4 * place.stop)
            for place in (self.numbers(stage), form.numbers(of))
        )
        rows[:, to] = source[:, start]
        if stage < len(self.shapes):
            rows[:, self.codes(stage)] = source[:, form.codes(of)]


class Int8Features(DecodedFeatures):
    """A feature matrix in int8 that decodes the rows that are read.

    It is as wide as the float32 matrix that it stands for, and ``np.asarray`` makes
    that of it. Selecting rows selects codes, and keeps the layout; selecting columns
    decodes them. ``FrozenBackbone(dtype="int8").transform`` returns one.

    Parameters
    ----------
    rows : ndarray of uint8 or RowSource, shape (n_samples, row_bytes)
        Rows as of `RowFormat`.
    form : RowFormat
        What is where in a row.
    layout : TapLayout, default=None
        Which columns are which tap.
    stages : sequence of int, default=None
        Stages whose columns these are, the number of taps standing for the outputs;
        None: all.

    Attributes
    ----------
    shape : tuple of int
        Number of rows and of columns.
    dtype : dtype
        float32, of what is decoded.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from sk_calex.utils._int8 import Int8Features, RowFormat
    >>> form = RowFormat(((4, 8, 8),), n_outputs=2)
    >>> rows = form.empty(3)
    >>> form.put(rows, 0, torch.ones(3, 4, 8, 8))
    >>> form.put(rows, 1, torch.tensor([[0.5, -0.5]] * 3))
    >>> X = Int8Features(rows, form)
    >>> X.shape, X.nbytes
    ((3, 258), 840)
    >>> np.asarray(X[:2])[:, -2:]
    array([[ 0.5, -0.5],
           [ 0.5, -0.5]], dtype=float32)
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        rows: NDArray[np.uint8] | RowSource,
        form: RowFormat,
        layout: Any = None,
        stages: Sequence[int] | None = None,
    ) -> None:
        super().__init__(rows, layout, len(form.shapes), stages)
        self.form = form

    def part_of(self, rows: Any, layout: Any, stages: Sequence[int]) -> Int8Features:
        """Make the matrix of other rows or stages."""
        return Int8Features(rows, self.form, layout, stages)

    def size_of(self, stage: int) -> int:
        """Return the number of columns of a stage."""
        if stage == len(self.form.shapes):
            return self.form.n_outputs
        return math.prod(self.form.shapes[stage])

    @property
    def outputs(self) -> Any:
        """The outputs, (n_samples, n_outputs): a view where the rows are an array."""
        last = len(self.form.shapes)
        if not isinstance(self.rows, np.ndarray):
            return self.part_of(self.rows, None, [last])
        numbers = self.rows[:, : 4 * self.form.n_numbers].view(np.float32)
        return numbers[:, self.form.numbers(last)]

    def decode(
        self, stages: Sequence[int], rows: Tensor | None, device: torch.device | None
    ) -> Tensor:
        """Compute the columns of some stages; what is sent to a device is int8."""
        parts = [self._decoded(stage, rows, device) for stage in stages]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _decoded(
        self, stage: int, rows: Tensor | None, device: torch.device | None
    ) -> Tensor:
        def taken(columns: slice, dtype: torch.dtype) -> Tensor:
            tensor = read_columns(self.rows, columns, rows).view(dtype)
            return tensor if device is None else tensor.to(device)

        form = self.form
        place = form.numbers(stage)
        numbers = taken(slice(4 * place.start, 4 * place.stop), torch.float32)
        if stage == len(form.shapes):
            return numbers
        codec = form.codecs[stage]
        codes = taken(form.codes(stage), torch.int8)
        return codec.decode(codes.reshape(-1, *codec.shape), numbers).flatten(1)
