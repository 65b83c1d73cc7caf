"""Raw batches, and what makes module inputs of them: preprocessing, device, dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_calex.backbone._image_files import EncodedImages
from sk_calex.utils._validation import check_finite

__all__ = [
    "Batch",
    "NamedBatch",
    "check_preprocess",
    "dtype_of",
    "prepare",
    "scrambled",
]

Batch = Tensor | dict[str, Tensor]
"""What a module is given: one tensor, or tensors by the names of its keywords."""


class NamedBatch:
    """Raw samples that are several tensors each, by name, with one first axis.

    Like a tensor's, its rows are counted, picked and joined.

    Parameters
    ----------
    tensors : dict of str to Tensor
        At least one; all of the same length.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> NamedBatch:
        return NamedBatch({name: t[rows] for name, t in self.tensors.items()})

    def __add__(self, other: NamedBatch) -> NamedBatch:
        return NamedBatch(
            {name: torch.cat([t, other.tensors[name]]) for name, t in self.items()}
        )

    def items(self) -> list[tuple[str, Tensor]]:
        """Return names and tensors."""
        return list(self.tensors.items())

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        """Shape of one sample, by name."""
        return {name: tuple(t.shape[1:]) for name, t in self.items()}

    @property
    def nbytes(self) -> int:
        """Size of all tensors."""
        return sum(t.nbytes for t in self.tensors.values())


def dtype_of(
    batch: Tensor | NamedBatch | EncodedImages,
) -> torch.dtype | dict[str, torch.dtype]:
    """Tell the dtype of raw samples; of each tensor where they are named."""
    if isinstance(batch, NamedBatch):
        return {name: tensor.dtype for name, tensor in batch.items()}
    return torch.uint8 if isinstance(batch, EncodedImages) else batch.dtype


def prepare(
    batch: Tensor | NamedBatch | EncodedImages,
    preprocess: Callable[..., Any] | None,
    device: torch.device,
    dtype: torch.dtype,
    name: str = "X",
) -> Batch:
    """Make a module's input of a raw batch.

    Parameters
    ----------
    batch : Tensor, NamedBatch or EncodedImages
        From `Samples.raw`.
    preprocess : callable or None
        Called with the batch on the device, as given: a tensor, a dict of tensors, or
        one decoded image after another as batches of one. None: a tensor of uint8 is
        scaled to 0..1; everything else passes as it is.
    device : torch.device
        Where the module is.
    dtype : torch.dtype
        Of the module's weights; floating point inputs are cast to it, integers never.
    name : str, default="X"
        Of the samples, for error messages.

    Returns
    -------
    batch : Tensor or dict of Tensor
        One row a sample.

    Raises
    ------
    ValueError
        If a value is not finite, or not in `dtype`; if there is not one row a sample.
    TypeError
        If `preprocess` returns something else than tensors.
    """
    if isinstance(batch, EncodedImages):
        return _prepare_images(batch, preprocess, device, dtype)
    given: Batch
    if isinstance(batch, NamedBatch):
        for key, tensor in batch.items():
            _check_finite(tensor, f"{name}[{key!r}]")
        given = {key: tensor.to(device) for key, tensor in batch.items()}
    else:
        _check_finite(batch, name)
        given = batch.to(device)
    if preprocess is not None:
        given = _preprocessed(preprocess(given), len(batch))
    elif isinstance(given, Tensor) and given.dtype == torch.uint8:
        given = given.float() / 255
    if isinstance(given, Tensor):
        return _cast(given, dtype, name)
    return {key: _cast(t, dtype, f"{name}[{key!r}]") for key, t in given.items()}


def _check_finite(tensor: Tensor, name: str) -> None:
    if tensor.is_floating_point():
        check_finite(tensor, name, "Remove or replace the samples concerned.")


def _preprocessed(result: Any, n_rows: int) -> Batch:
    """Check what `preprocess` has returned."""
    by_name = isinstance(result, Mapping)
    tensors = dict(result) if by_name else {"": result}
    for key, tensor in tensors.items():
        what = f"preprocess()[{key!r}]" if by_name else "preprocess"
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{what} must return a tensor, or a dict of tensors for a module that "
                f"is called with keywords; got {type(tensor).__name__}."
            )
        if tensor.ndim == 0 or len(tensor) != n_rows:
            raise ValueError(
                f"{what} made a tensor of shape {tuple(tensor.shape)} from a batch of "
                f"{n_rows} samples. It is called with whole batches and must return "
                "one row a sample."
            )
    return tensors if by_name else tensors[""]


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """Cast floating point to the module's dtype; integers stay, tokens above all."""
    if not tensor.is_floating_point() or tensor.dtype == dtype:
        return tensor
    cast = tensor.to(dtype)
    if torch.finfo(dtype).max < torch.finfo(tensor.dtype).max:
        lost = cast.isinf() & tensor.isfinite()
        if bool(lost.any()):
            raise ValueError(
                f"{name} holds {float(tensor[lost][0]):.4g}, which is infinite in "
                f"{dtype}, the dtype of the module. Scale the samples, or give a "
                "module of a wider dtype."
            )
    if torch.finfo(dtype).eps > torch.finfo(tensor.dtype).eps:
        lost = cast.to(tensor.dtype) != tensor
        # As large as ids may be; every larger float is a whole number.
        are_ids = torch.equal(tensor, tensor.round()) and bool(
            tensor.abs().max() < 2**31
        )
        if are_ids and bool(lost.any()):
            raise ValueError(
                f"{name} holds whole numbers, such as {float(tensor[lost][0]):g}, that "
                f"{dtype}, the dtype of the module, cannot hold. Give token ids and "
                "the like as integers, which are never cast; `preprocess` may return "
                "them."
            )
    return cast


def _prepare_images(
    batch: EncodedImages,
    preprocess: Callable[..., Any] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Decode files and prepare each as a batch of one: they may differ in size."""
    rows: list[Tensor] = []
    shape = batch.shape
    for label, image in batch.decoded():
        row = prepare(image[None], preprocess, device, dtype, label)
        if not isinstance(row, Tensor):
            raise TypeError(
                "preprocess must return one tensor for an image file; got a dict. Wrap "
                "the module in one that takes a tensor."
            )
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


def check_preprocess(
    batch: Tensor | NamedBatch | EncodedImages,
    preprocess: Callable[..., Any] | None,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Refuse a `preprocess` that is random or lets samples of a batch mix.

    It is run twice on the batch, and once on the first sample beside a scrambled one.

    Parameters
    ----------
    batch : Tensor, NamedBatch or EncodedImages
        One or two raw samples.
    preprocess, device, dtype
        As of `prepare`.

    Raises
    ------
    ValueError
        If `preprocess` fails, or the first sample comes out differently.
    """
    if preprocess is None:
        return

    def run(given: Any) -> Any:
        try:
            return preprocess(given)
        except Exception as error:
            raise ValueError(
                f"preprocess={preprocess!r} failed on a batch of raw samples "
                f"({type(error).__name__}: {error}). It is called with whole batches "
                "as tensors, or dicts of tensors: transforms of "
                "torchvision.transforms.v2 take those."
            ) from error

    def first_row(raw: Any) -> Batch:
        copy = raw if isinstance(raw, EncodedImages) else _each(raw, torch.clone)
        made = prepare(copy, run, device, dtype)
        return _each(made, lambda tensor: tensor[:1])

    expected = first_row(batch)
    if not _close(first_row(batch), expected):
        raise ValueError(
            "preprocess gives another result when it is called again with the same "
            "samples, so stored features could not be trusted. Take random "
            "augmentation out of it; to augment, extract augmented copies of X."
        )
    others = [batch[:1]]
    if not isinstance(batch, EncodedImages):  # those are preprocessed one by one
        others.append(_join(batch[:1], _each(batch[:1], scrambled)))
    for other in others:
        if not _close(first_row(other), expected):
            raise ValueError(
                "preprocess gives another result for a sample when the other samples "
                "of its batch change (as where it takes means over the batch), but "
                "batches change while samples leave. Take constants, such as the "
                "means of the training data, instead."
            )


def scrambled(tensor: Tensor) -> Tensor:
    """Make other samples of the same kind: random ones in the range of the given.

    Integers are drawn from those of the same sample, as token ids and masks must be.
    """
    generator = torch.Generator().manual_seed(0)
    if not tensor.is_floating_point():
        flat = tensor.reshape(len(tensor), -1)
        drawn = torch.randint(flat.shape[1], (flat.shape[1],), generator=generator)
        return flat[:, drawn.to(tensor.device)].reshape(tensor.shape)
    low, high = tensor.min(), tensor.max()
    if low == high:
        high = low + 1
    return low + (high - low) * torch.rand(tensor.shape, generator=generator).to(tensor)


def _each(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, NamedBatch):
        return NamedBatch({name: function(t) for name, t in batch.items()})
    return {name: function(t) for name, t in batch.items()}


def _join(a: Tensor | NamedBatch, b: Any) -> Any:
    return torch.cat([a, b]) if isinstance(a, Tensor) else a + b


def _close(a: Batch, b: Batch) -> bool:
    """Compare up to rounding, which may differ with the size of a batch."""
    ours = [a] if isinstance(a, Tensor) else list(a.values())
    theirs = [b] if isinstance(b, Tensor) else list(b.values())
    for x, y in zip(ours, theirs, strict=True):
        if x.shape != y.shape:
            return False
        if not x.is_floating_point():
            if not torch.equal(x, y):
                return False
            continue
        scale = float(y.abs().max()) if y.numel() else 0.0
        atol = torch.finfo(y.dtype).eps ** 0.5 * scale
        if not torch.allclose(x, y, rtol=0.0, atol=atol):
            return False
    return True
