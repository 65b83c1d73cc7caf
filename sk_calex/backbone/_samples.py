"""Samples in any accepted form, read batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from sk_calex.backbone._image_files import ImageFiles, are_paths
from sk_calex.backbone._prepare import NamedBatch

__all__ = ["SampleShape", "Samples", "is_dataset"]

SampleShape = tuple[int | None, ...] | dict[str, tuple[int, ...]]
"""Shape of a sample: by name where it is several arrays; None for sizes that differ."""

# The answers, which Datasets often give beside the inputs: no module may see them.
_LABELS = frozenset({"label", "labels", "label_ids"})


class Samples:
    """Samples in any accepted form, as one thing that is read batch by batch.

    What is free to check (shape, dtype) is checked at once, finiteness by `prepare`
    batch by batch, so that a memory map is never read as a whole.

    Parameters
    ----------
    X : object
        - an array, a tensor, a numeric data frame, or a list of such samples;
        - a dict of arrays or tensors with one first axis, for modules called with
          keywords; or a data frame whose cells are arrays;
        - a map-style Dataset, or a list of its items: samples, tuples that begin with
          one, or dicts, whose entries named label, labels or label_ids are left out;
        - paths of image files.
    name : str, default="X"
        Of the parameter, for error messages.
    prepared_shape : tuple of int, default=None
        What image files must be after preprocessing, where it is known.
    """

    def __init__(
        self, X: Any, name: str = "X", prepared_shape: tuple[int, ...] | None = None
    ) -> None:
        self.name = name
        if hasattr(X, "__array__") and not isinstance(X, Tensor | Mapping):
            # A series of paths, and array-likes of other libraries.
            X = X if hasattr(X, "columns") else np.asarray(X)
        self._is_files = are_paths(X)
        self._is_dataset = not self._is_files and is_dataset(X, name)
        self._data: Any = X
        if self._is_files:
            # Not as an array, where each path would be as long as the longest.
            self._data = ImageFiles(X, name, prepared_shape)
        elif not self._is_dataset:
            columns = _columns(X)
            if columns is None:
                self._data = _as_array(X, name)
            else:
                self._data = {
                    key: _as_array(column, f"{name}[{key!r}]", least_ndim=1)
                    for key, column in columns.items()
                }
                self._check_columns()
        if len(self) == 0:
            raise ValueError(f"{name} is empty: give at least one sample.")

    def _check_columns(self) -> None:
        lengths = {key: len(column) for key, column in self._data.items()}
        if not lengths:
            raise ValueError(f"{self.name} holds no input: give at least one array.")
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"the arrays of {self.name} have different lengths ({lengths}). Give "
                "each one row a sample."
            )

    def __len__(self) -> int:
        if isinstance(self._data, dict):
            return len(next(iter(self._data.values())))
        return len(self._data)

    @cached_property
    def _first(self) -> Any:
        return self._data.first() if self._is_files else self._read(slice(0, 1))

    @property
    def sample_shape(self) -> SampleShape:
        """Shape of the first sample, and so of all unless they are files."""
        return _shape_of(self._first)

    def shape_before(self, preprocess: Any) -> SampleShape:
        """Return the shape of every sample; files may have any size if preprocessed."""
        if self._is_files and preprocess is not None:
            return (3, None, None)
        return self.sample_shape

    @property
    def sample_bytes(self) -> int | None:
        """Size of a sample as it is given; None for files, each of its own size."""
        return None if self._is_files else int(self._first.nbytes)

    @property
    def on_demand(self) -> bool:
        """Whether samples are read on demand, which any process may do."""
        return self._is_dataset or self._is_files

    def raw(self, rows: slice) -> Any:
        """Return rows as they were given: a tensor, a `NamedBatch`, or `EncodedImages`.

        Always a copy: what is done to it in place does not reach the caller's data,
        and torch never sees a read-only memory map.
        """
        if self._is_files:
            return self._data.read(rows)
        batch = self._read(rows)
        if self._is_dataset and _shape_of(batch) != self.sample_shape:
            raise ValueError(
                f"{self.name} has samples of shape {_shape_of(batch)} from row "
                f"{rows.start} on, but the first has shape {self.sample_shape}. Give "
                "samples of one shape."
            )
        return batch

    def _read(self, rows: slice) -> Tensor | NamedBatch:
        if self._is_dataset:
            return self._collate(
                [self._read_item(i) for i in range(rows.start, rows.stop)]
            )
        if isinstance(self._data, dict):
            return NamedBatch({k: _tensor(c[rows]) for k, c in self._data.items()})
        return _tensor(self._data[rows])

    def _read_item(self, i: int) -> Any:
        """Give an item of a Dataset; what its transform refuses is said by name."""
        try:
            return self._data[i]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.name}[{i}] cannot be read: {type(self._data).__name__} raised "
                f"{type(error).__name__}: {error}. Check its transform, which gets one "
                "item at a time; what takes whole batches is `preprocess`."
            ) from error

    def _collate(self, items: Sequence[Any]) -> Tensor | NamedBatch:
        # An item is a sample or a (sample, label, ...) tuple, as in torchvision.
        samples = [
            item[0] if isinstance(item, tuple | list) else item for item in items
        ]
        if not isinstance(samples[0], Mapping):
            return self._stack(samples, self.name)
        names = [name for name in samples[0] if name not in _LABELS]
        if not names:
            raise ValueError(
                f"the items of {self.name} hold nothing but labels: {list(samples[0])}."
            )
        missing = [name for sample in samples for name in names if name not in sample]
        if missing:
            raise ValueError(
                f"some items of {self.name} have no {missing[0]!r}, but the first has. "
                "Give all of them the same entries."
            )
        return NamedBatch(
            {
                name: self._stack(
                    [sample[name] for sample in samples], f"{self.name}[{name!r}]"
                )
                for name in names
            }
        )

    def _stack(self, samples: Sequence[Any], name: str) -> Tensor:
        try:
            if isinstance(samples[0], Tensor):
                return _tensor(torch.stack([torch.as_tensor(s) for s in samples]))
            stacked = np.stack([np.asarray(sample) for sample in samples])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the items of {name} cannot be stacked into a batch: {error}. Give "
                "the Dataset a transform that returns tensors of one shape; pad texts "
                "to one length."
            ) from error
        if stacked.dtype.kind not in "buif":
            raise ValueError(
                f"the items of {name} cannot be stacked into a batch: they are of type "
                f"{type(samples[0]).__name__}. Give the Dataset a transform that "
                "returns tensors, or leave that entry out."
            )
        return _tensor(stacked)

    def batches(self, size: int) -> Iterator[tuple[slice, Any]]:
        """Yield successive (rows, raw batch) of at most `size` samples."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.raw(rows)


def is_dataset(X: Any, name: str = "X") -> bool:
    """Tell whether X gives samples one by one: a Dataset, or a list of its items."""
    if isinstance(X, list | tuple):
        return len(X) > 0 and _is_item(X[0])
    is_array = hasattr(X, "__array__") or hasattr(X, "columns") or np.isscalar(X)
    if X is None or is_array or isinstance(X, Mapping):
        return False
    if isinstance(X, IterableDataset) or not (
        hasattr(X, "__len__") and hasattr(X, "__getitem__")
    ):
        raise TypeError(
            f"{name} is a {type(X).__name__}, which cannot be indexed. Give a "
            "map-style Dataset (with __len__ and __getitem__), such as the `dataset` "
            "of a DataLoader."
        )
    return isinstance(X, Dataset) or hasattr(X, "column_names")


def _is_item(item: Any) -> bool:
    """Tell whether the first entry of a list is a Dataset's item, not a sample."""
    if isinstance(item, Mapping):
        return True
    if not isinstance(item, tuple) or len(item) < 2:
        return False
    sample, label = item[:2]
    if isinstance(sample, Mapping):
        return True
    return isinstance(sample, Tensor | np.ndarray) and np.shape(sample) != np.shape(
        label
    )


def _columns(X: Any) -> dict[str, Any] | None:
    """Give the inputs by name of a dict, or of a data frame whose cells are arrays."""
    if isinstance(X, Mapping):
        return {str(name): X[name] for name in X if name not in _LABELS}
    if not hasattr(X, "columns") or not len(X) or not len(X.columns):
        return None
    cells = [X[name].to_numpy()[0] for name in X.columns if name not in _LABELS]
    if not any(isinstance(cell, list | tuple | np.ndarray | Tensor) for cell in cells):
        return None
    return {str(c): list(X[c].to_numpy()) for c in X.columns if c not in _LABELS}


def _as_array(X: Any, name: str, least_ndim: int = 2) -> Any:
    """Make an array or a detached tensor of what is no Dataset; refuse the rest."""
    given = X
    try:
        if isinstance(X, list | tuple) and X and isinstance(X[0], Tensor):
            X = torch.stack([torch.as_tensor(item) for item in X])
        if hasattr(X, "columns"):
            X = _numbers_of_frame(X)
        data = X.detach() if isinstance(X, Tensor) else np.asarray(X)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"the samples of {name} cannot be stacked into one array: {error}. They "
            "must all have one shape."
        ) from error
    if isinstance(data, Tensor):
        kinds = [data.is_complex(), data.is_quantized, data.is_meta, data.is_nested]
        is_number = not any(kinds) and data.layout == torch.strided
        nested = "nested, " if data.is_nested else ""
        kind = f"{data.dtype}, {nested}layout {data.layout}, device {data.device}"
    else:
        is_number = data.dtype.kind in "buif" and data.dtype.itemsize <= 8
        kind = str(data.dtype)
    if not is_number:
        raise ValueError(
            f"{name} has dtype {kind}; samples must be real numbers of at most 64 bits "
            "(uint8 or float images, dense tensors), a torch Dataset, a dict of "
            "arrays, or a list or 1-D array of paths to image files."
            f"{_how_to_convert(given, data, name)}"
        )
    if data.ndim < least_ndim:
        raise ValueError(
            f"{name} has shape {tuple(data.shape)}; expected samples along the first "
            "axis, such as images of shape (n, C, H, W). Reshape a single sample by "
            f"{name}[None]."
        )
    return data


def _how_to_convert(given: Any, data: Any, name: str) -> str:
    """Say how what is nearly an array of numbers becomes one; empty: not known."""
    if issparse(given):
        return f" Give {name}.toarray()."
    if hasattr(given, "columns"):
        columns = {
            str(column): str(given[column].dtype)
            for column in given.columns
            if getattr(given[column].dtype, "kind", "O") not in "buif"
        }
        return f" Encode the columns that are no numbers, {columns}, or leave them out."
    if not isinstance(data, Tensor):
        wide = data.dtype.kind in "iuf"
        return f" Give {name}.astype('float64')." if wide else ""
    if data.is_meta:
        return f" {name} is on the meta device, without values: load them."
    if data.is_nested:
        return f" Give torch.nested.to_padded_tensor({name}, padding=0)."
    if data.layout != torch.strided:
        return f" Give {name}.to_dense()."
    return f" Give {name}.dequantize()." if data.is_quantized else ""


def _numbers_of_frame(frame: Any) -> Any:
    """Make one array of a data frame; columns of bool or with missing values too."""
    plain = np.asarray(frame)
    if plain.dtype.kind in "uif" or not len(frame.columns):
        return plain
    columns = []
    for i in range(plain.shape[1]):
        column = frame[frame.columns[i]]
        values = np.asarray(column)
        if values.dtype.kind not in "buif" and hasattr(column.dtype, "numpy_dtype"):
            values = column.to_numpy(dtype=np.float64, na_value=np.nan)  # nullable
        columns.append(values)
    kinds = {values.dtype.kind for values in columns}
    if not kinds <= set("buif"):
        return plain  # refused by its dtype
    joined = np.column_stack(columns)
    return joined.astype(np.float32) if joined.dtype.kind == "b" else joined


def _tensor(rows: Any) -> Tensor:
    """Copy rows into a dense tensor of a type that numpy, which makes keys, has too."""
    if isinstance(rows, Tensor):
        rows = rows.detach().clone()
        return rows.float() if rows.dtype == torch.bfloat16 else rows
    native = rows.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(rows, native, order="C"))


def _shape_of(batch: Tensor | NamedBatch) -> SampleShape:
    shape = batch.shape
    return shape if isinstance(shape, dict) else tuple(shape[1:])
