"""Image files as samples: opened with care, read once, decoded where they are run."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["EncodedImages", "ImageFiles", "are_paths"]

# Those of torchvision's ImageFolder. Pillow knows others, and runs programs for some.
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_MAX_BYTES = 2**30  # no image is larger, and what is might fill the memory
_DO_NOT_WAIT = getattr(os, "O_NONBLOCK", 0)  # as opening a FIFO would, for its writer


def are_paths(X: Any) -> bool:
    """Tell whether X is a sequence of paths, by its first item."""
    if isinstance(X, np.ndarray):
        may_be = X.ndim == 1 and X.dtype.kind in "OTU"
    else:
        may_be = isinstance(X, list | tuple)
    return may_be and len(X) > 0 and isinstance(X[0], str | os.PathLike)


class EncodedImages:
    """Contents of some image files: the raw batch of samples that are given as paths.

    Like a tensor's, its rows are counted and picked. `shape` is what every image must
    be after preprocessing; None where the first one decides.
    """

    def __init__(
        self,
        contents: Sequence[bytes],
        labels: Sequence[str],
        shape: tuple[int, ...] | None,
    ) -> None:
        self.contents, self.labels, self.shape = contents, labels, shape

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> EncodedImages:
        picked = np.arange(len(self))[rows]
        return EncodedImages(
            [self.contents[i] for i in picked],
            [self.labels[i] for i in picked],
            self.shape,
        )

    def __add__(self, other: EncodedImages) -> EncodedImages:
        return EncodedImages(
            [*self.contents, *other.contents],
            [*self.labels, *other.labels],
            self.shape,
        )

    def decoded(self) -> Iterator[tuple[str, Tensor]]:
        """Decode each image into uint8 of shape (3, h, w), with its name for messages.

        On as many threads as torch uses; at most twice as many images wait.
        """
        n_threads = torch.get_num_threads()
        if n_threads == 1 or len(self) == 1:
            for content, label in zip(self.contents, self.labels, strict=True):
                yield label, _decode(content, label)
            return
        with ThreadPoolExecutor(n_threads) as pool:
            waiting: deque[tuple[str, Future[Tensor]]] = deque()
            try:
                for content, label in zip(self.contents, self.labels, strict=True):
                    waiting.append((label, pool.submit(_decode, content, label)))
                    if len(waiting) > 2 * n_threads:
                        first, future = waiting.popleft()
                        yield first, future.result()
                for first, future in waiting:
                    yield first, future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


class ImageFiles:
    """Files by their paths; relative paths start at the folder that is current now."""

    def __init__(
        self, paths: Sequence[Any], name: str, shape: tuple[int, ...] | None
    ) -> None:
        for i, path in enumerate(paths):
            if not isinstance(path, str | os.PathLike):
                raise ValueError(
                    f"{name}[{i}] is of type {type(path).__name__}, but {name}[0] is "
                    "a path. Give a path (str or pathlib.Path) for every sample."
                )
        self._paths, self._name, self._shape = paths, name, shape
        self._folder = os.getcwd()  # a worker process may have another one
        self._first: bytes | None = None

    def __len__(self) -> int:
        return len(self._paths)

    def first(self) -> Tensor:
        """Return the first image, of shape (1, 3, h, w); its file is not read again."""
        batch = self.read(slice(0, 1))
        self._first = batch.contents[0]
        ((_, image),) = batch.decoded()
        return image[None]

    def read(self, rows: slice) -> EncodedImages:
        """Read the contents of some files.

        Raises
        ------
        OSError
            If one cannot be read, or is not a regular file.
        """
        indices = range(rows.start, rows.stop)
        paths = [os.path.join(self._folder, self._paths[i]) for i in indices]
        labels = [
            f"{self._name}[{i}] ({path!r})"
            for i, path in zip(indices, paths, strict=True)
        ]
        contents = [
            self._first
            if i == 0 and self._first is not None
            else _read(path, f"{self._name}[{i}]")
            for i, path in zip(indices, paths, strict=True)
        ]
        return EncodedImages(contents, labels, self._shape)


def _read(path: str, label: str) -> bytes:
    try:
        with open(path, "rb", buffering=0, opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "Not a regular file", path)
            if status.st_size > _MAX_BYTES:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
            return file.read()
    except OSError as error:
        raise type(error)(
            error.errno, f"{label} cannot be read: {error.strerror}", path
        ) from error
    except ValueError as error:
        raise ValueError(f"{label} is {path!r}, which is no path: {error}.") from error


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | _DO_NOT_WAIT)


def _check_pixels(n_pixels: int, size: tuple[int, int]) -> None:
    """Refuse what would fill the memory: a small file may hold a very large image."""
    from PIL import Image

    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and n_pixels > limit:
        raise ValueError(
            f"it has {size[0]} x {size[1]} pixels, more than the {limit} that are "
            "taken to be safe (PIL.Image.MAX_IMAGE_PIXELS, which you can set); "
            f"decoding takes about {n_pixels * 6 / 1e9:.1f} GB"
        )


def _decode(content: bytes, label: str) -> Tensor:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            _check_pixels(image.width * image.height, image.size)
            if image.mode.startswith(("I", "F")):
                raise ValueError("it has more than 8 bits a channel")
            if image.mode == "P" and "transparency" in image.info:
                pixels = np.array(image.convert("RGBA"))[..., :3]
            else:
                pixels = np.array(image.convert("RGB"))
    except Exception as error:  # Pillow raises nearly anything for a damaged file
        raise ValueError(
            f"{label} cannot be decoded as an image: {error}. Give files of type "
            f"{', '.join(_FORMATS)} with 8 bits a channel."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)
