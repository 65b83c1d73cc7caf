"""Samples in any accepted form, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from sk_calex._validation import check_finite

__all__: list[str] = []


class Samples:
    """An array, a tensor or a map-style Dataset behind one interface.

    Arrays are validated as a whole where that is free (shape, dtype) and batch by
    batch where it is not (finiteness), so that a memory map is never read at once.
    """

    def __init__(self, X: Any, name: str = "X") -> None:
        self.name = name
        if isinstance(X, Dataset):
            if not hasattr(X, "__len__"):
                raise TypeError(
                    f"{name} is a torch Dataset without a length. Give a map-style "
                    "Dataset (with __len__ and __getitem__), not an iterable one."
                )
            self._data: Any = X
        elif isinstance(X, Tensor):
            self._data = X.detach()
        else:
            self._data = np.asarray(X)
            if self._data.dtype.kind not in "buif":
                raise ValueError(
                    f"{name} has dtype {self._data.dtype}; samples must be numbers: "
                    "uint8 or float images, tensors, or a torch Dataset."
                )
        self._is_dataset = isinstance(X, Dataset)
        if len(self) == 0:
            raise ValueError(f"{name} is empty: give at least one sample.")
        if not self._is_dataset and self._data.ndim < 2:
            raise ValueError(
                f"{name} has shape {tuple(self._data.shape)}; expected samples along "
                "the first axis, such as images of shape (n, C, H, W). Reshape a "
                "single sample to (1, C, H, W)."
            )

    def __len__(self) -> int:
        return len(self._data)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the first sample."""
        return tuple(self.raw(slice(0, 1)).shape[1:])

    def raw(self, rows: slice | NDArray[np.intp]) -> Tensor:
        """Rows as they were given, on the CPU or the tensor's own device."""
        if self._is_dataset:
            if isinstance(rows, slice):
                indices = list(range(rows.start, rows.stop))
            else:
                indices = rows.tolist()
            items = [self._data[i] for i in indices]
            # An item is a sample or a (sample, label, ...) tuple, as in torchvision.
            images = [item[0] if isinstance(item, tuple | list) else item for item in items]
            try:
                batch = default_collate(images)
            except (TypeError, RuntimeError) as error:
                raise ValueError(
                    f"the items of {self.name} cannot be stacked into a batch: {error}. "
                    "Give the Dataset a transform that returns tensors of one shape."
                ) from error
            return torch.as_tensor(batch)
        part = self._data[rows]
        if isinstance(part, Tensor):
            return part
        # Copies: memory maps and read-only arrays must not reach torch as writable.
        return torch.from_numpy(np.array(part, order="C"))

    def batches(self, size: int) -> Iterator[tuple[slice, Tensor]]:
        """Successive (rows, raw batch) of at most `size` samples."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.raw(rows)


def prepare(batch: Tensor, preprocess: Any, device: torch.device, name: str) -> Tensor:
    """A raw batch as the module wants it: on the device, float, preprocessed.

    Integers are scaled from 0..255 to 0..1 where there is no `preprocess`; where there
    is one, it sees the batch as given.
    """
    if batch.is_floating_point():
        check_finite(batch, name, "Remove or replace the samples concerned.")
    x = batch.to(device)
    if preprocess is None:
        return x.float() if x.is_floating_point() else x.float() / 255
    x = preprocess(x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"preprocess must return a floating point tensor, got {found}. Convert "
            "uint8 images with torchvision.transforms.v2.ToDtype(torch.float32, "
            "scale=True) before normalising."
        )
    return x
