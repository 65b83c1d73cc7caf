"""Feature rows that stay in the store and are read when they are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sk_calex.backbone._layout import TapLayout
from sk_calex.store import StoredRows
from sk_calex.utils._decoded import DecodedFeatures, read_columns

__all__ = ["StoredFeatures"]


class StoredFeatures(DecodedFeatures):
    """A feature matrix in float that reads the rows that are asked for.

    ``np.asarray`` reads the whole matrix. Selecting rows selects their keys, and keeps
    the layout; selecting columns reads them. Of a stage's columns no others are read.
    ``FrozenBackbone(cache=..., on_demand=True).transform`` returns one.

    Parameters
    ----------
    rows : StoredRows of shape (n_samples, form.width)
        Where the rows are.
    form : TapLayout
        Which values of a stored row are which stage.
    layout : TapLayout, default=None
        Which columns of this matrix are which tap.
    stages : sequence of int, default=None
        Stages whose columns these are, the number of taps standing for the outputs;
        None: all.

    Attributes
    ----------
    shape : tuple of int
        Number of rows and of columns.
    dtype : dtype
        Of the stored values.
    """

    def __init__(
        self,
        rows: StoredRows,
        form: TapLayout,
        layout: TapLayout | None = None,
        stages: Sequence[int] | None = None,
    ) -> None:
        super().__init__(rows, layout, form.n_taps, stages)
        self.form, self.dtype = form, rows.dtype

    def part_of(self, rows: Any, layout: Any, stages: Sequence[int]) -> StoredFeatures:
        """Make the matrix of other rows or stages."""
        return StoredFeatures(rows, self.form, layout, stages)

    def size_of(self, stage: int) -> int:
        """Return the number of columns of a stage."""
        columns = self.form.columns(stage)
        return columns.stop - columns.start

    @property
    def outputs(self) -> StoredFeatures:
        """The columns of the backbone's outputs."""
        return self.part_of(self.rows, None, [self.form.n_taps])

    def decode(
        self, stages: Sequence[int], rows: Tensor | None, device: torch.device | None
    ) -> Tensor:
        """Read the columns of some stages, those of neighbours at once."""
        places = [self.form.columns(stage) for stage in stages]
        runs = [places[0]]
        for place in places[1:]:
            if runs[-1].stop == place.start:
                runs[-1] = slice(runs[-1].start, place.stop)
            else:
                runs.append(place)
        parts = [read_columns(self.rows, run, rows) for run in runs]
        values = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        return values if device is None else values.to(device)
