"""Samples in any accepted form, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, default_collate

from sk_calex.backbone._image_files import EncodedImages, ImageFiles, are_paths
from sk_calex.utils._validation import check_finite

__all__: list[str] = []


class Samples:
    """An array, a list, a tensor, a map-style Dataset or image files as one thing.

    What is free to check (shape, dtype) is checked at once, finiteness by `prepare`
    batch by batch, so that a memory map is never read as a whole.

    `prepared_shape`, where known, is what image files must be after preprocessing.
    """

    def __init__(
        self, X: Any, name: str = "X", prepared_shape: tuple[int, ...] | None = None
    ) -> None:
        self.name = name
        self._is_dataset = isinstance(X, Dataset)
        # Lists of paths as they are: in an array each would be as long as the longest.
        if not self._is_dataset and not are_paths(X):
            X = self._as_array(X)
        self._is_files = are_paths(X)
        self._data: Any = X
        if self._is_files:
            self._data = ImageFiles(X, name, prepared_shape)
        if self._is_dataset:
            if isinstance(X, IterableDataset) or not hasattr(X, "__len__"):
                raise TypeError(
                    f"{name} is a {type(X).__name__} that cannot be indexed. Give a "
                    "map-style Dataset (with __len__ and __getitem__)."
                )
        elif not self._is_files:
            self._check_array()
        if len(self) == 0:
            raise ValueError(f"{name} is empty: give at least one sample.")

    def _as_array(self, X: Any) -> Any:
        try:
            if isinstance(X, list | tuple) and X and isinstance(X[0], Tensor):
                X = torch.stack([torch.as_tensor(item) for item in X])
            return X.detach() if isinstance(X, Tensor) else np.asarray(X)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"the samples of {self.name} cannot be stacked into one array: "
                f"{error}. They must all have one shape."
            ) from error

    def _check_array(self) -> None:
        data = self._data
        if isinstance(data, Tensor):
            is_number = not data.is_complex() and not data.is_quantized
        else:
            is_number = data.dtype.kind in "buif"
        if not is_number:
            raise ValueError(
                f"{self.name} has dtype {data.dtype}; samples must be real numbers "
                "(uint8 or float images, tensors), a torch Dataset, or a list or 1-D "
                "array of paths to image files."
            )
        if data.ndim < 2:
            raise ValueError(
                f"{self.name} has shape {tuple(data.shape)}; expected samples along "
                "the first axis, such as images of shape (n, C, H, W). Reshape a "
                f"single sample by {self.name}[None]."
            )

    def __len__(self) -> int:
        return len(self._data)

    @cached_property
    def _first(self) -> Any:
        if self._is_files:
            return self._data.first()
        return self._collate(slice(0, 1)) if self._is_dataset else self._data[:1]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of the first sample, and so of all unless they are files."""
        return tuple(self._first.shape[1:])

    def shape_before(self, preprocess: Any) -> tuple[int | None, ...]:
        """Shape of every sample; files may have any size where it is preprocessed."""
        if self._is_files and preprocess is not None:
            return (3, None, None)
        return self.sample_shape

    @property
    def sample_bytes(self) -> int | None:
        """Size of a sample as it is given; None for files, each of its own size."""
        return None if self._is_files else int(self._first.nbytes)

    @property
    def on_demand(self) -> bool:
        """Whether samples are read when they are asked for, so anybody may do it."""
        return self._is_dataset or self._is_files

    def raw(self, rows: slice) -> Any:
        """Rows as they were given: a tensor on the CPU or its own device, or files.

        Always a copy: what is done to it in place does not reach the caller's data,
        and torch never sees a read-only memory map.
        """
        if self._is_files:
            return self._data.read(rows)
        if self._is_dataset:
            batch = self._collate(rows)
            shape = tuple(batch.shape[1:])
            if shape != self.sample_shape:
                raise ValueError(
                    f"{self.name} has samples of shape {shape} from row {rows.start} "
                    f"on, but the first has shape {self.sample_shape}. Give samples of "
                    "one shape."
                )
        elif isinstance(self._data, Tensor):
            batch = self._data[rows].clone()
        else:
            native = self._data.dtype.newbyteorder("=")
            batch = torch.from_numpy(np.array(self._data[rows], native, order="C"))
        # The same values in a type that numpy, which makes the keys, has too.
        return batch.float() if batch.dtype == torch.bfloat16 else batch

    def _collate(self, rows: slice) -> Tensor:
        items = [self._data[i] for i in range(rows.start, rows.stop)]
        # An item is a sample or a (sample, label, ...) tuple, as in torchvision.
        samples = [
            item[0] if isinstance(item, tuple | list) else item for item in items
        ]
        try:
            return torch.as_tensor(default_collate(samples)).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the items of {self.name} cannot be stacked into a batch: {error}. "
                "Give the Dataset a transform that returns tensors of one shape."
            ) from error

    def batches(self, size: int) -> Iterator[tuple[slice, Any]]:
        """Successive (rows, raw batch) of at most `size` samples."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.raw(rows)


def prepare(
    batch: Tensor | EncodedImages, preprocess: Any, device: torch.device, name: str
) -> Tensor:
    """A raw batch as the module wants it: on the device, floating point, preprocessed.

    Without `preprocess`, uint8 is scaled to 0..1 and floats pass; with one, it sees the
    batch as given, image files one by one.
    """
    if isinstance(batch, EncodedImages):
        return _prepare_images(batch, preprocess, device)
    if batch.is_floating_point():
        check_finite(batch, name, "Remove or replace the samples concerned.")
    x = batch.to(device)
    if preprocess is None:
        if x.dtype == torch.uint8:
            return x.float() / 255
        if not x.is_floating_point():
            raise ValueError(
                f"{name} has dtype {x.dtype}, and what its values mean is not known. "
                "Give uint8 images, floats, or a `preprocess` that makes floats of it."
            )
        return x
    x = preprocess(x)
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"preprocess must return a floating point tensor, got {found}. Convert "
            "uint8 images with torchvision.transforms.v2.ToDtype(torch.float32, "
            "scale=True) before normalising."
        )
    if x.ndim == 0 or len(x) != len(batch):
        raise ValueError(
            f"preprocess made a tensor of shape {tuple(x.shape)} from a batch of "
            f"{len(batch)} samples. It is called with whole batches and must return "
            "one row a sample."
        )
    return x


def _prepare_images(
    batch: EncodedImages, preprocess: Any, device: torch.device
) -> Tensor:
    """Decode files and prepare each as a batch of one: they may differ in size."""
    rows: list[Tensor] = []
    shape = batch.shape
    for label, image in batch.decoded():
        row = prepare(image[None], preprocess, device, label)
        if shape is None:
            shape = tuple(row.shape[1:])
        if tuple(row.shape[1:]) != shape:
            how = "" if preprocess is None else "preprocessed to "
            raise ValueError(
                f"{label} is {how}an image of shape {tuple(row.shape[1:])}, but others "
                f"are of shape {shape}. The module needs one shape: give a "
                "`preprocess` that resizes and crops every image to it."
            )
        rows.append(row)
    return torch.cat(rows)
