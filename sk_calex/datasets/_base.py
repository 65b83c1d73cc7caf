"""The data folder, checked reads and checked downloads of all loaders.

No file is trusted: nothing is unpickled or extracted to disk, and the size that a
file states for itself is checked before memory is reserved for it.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image

_ENVIRONMENT = "SK_CALEX_DATA"


def get_data_home(data_home: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder in which the loaders look for data and put downloads.

    Parameters
    ----------
    data_home : str or path-like, default=None
        The folder; ``~`` is expanded. None is the environment variable
        ``SK_CALEX_DATA`` where it is set, otherwise ``~/.cache/sk_calex``.

    Returns
    -------
    data_home : pathlib.Path
        The folder. It need not exist: a download creates it.

    Examples
    --------
    >>> from sk_calex.datasets import get_data_home
    >>> get_data_home("/data").name
    'data'
    """
    if data_home is None:
        data_home = os.environ.get(_ENVIRONMENT) or "~/.cache/sk_calex"
    return Path(data_home).expanduser()


def check_split(split: str | Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Return the wanted parts, each known and named once, in the official order."""
    wanted = (split,) if isinstance(split, str) else tuple(split)
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(known):
        raise ValueError(
            f"split must be one of {tuple(known)}, or a tuple of different ones of "
            f"them; got {split!r}."
        )
    return tuple(part for part in known if part in wanted)


def fetch(
    url: str,
    md5: str,
    path: Path,
    *,
    tried: Sequence[Path],
    download: bool,
    page: str,
    note: str = "",
) -> None:
    """Download `url` to `path`, or raise an error that names the missing paths."""
    missing = f"Data not found; looked for {', '.join(map(str, tried))}.{note}"
    by_hand = f"Or put {path.name} (MD5 {md5}, see {page}) at {path} by hand."
    if not download:
        raise FileNotFoundError(
            f"{missing} Pass download_if_missing=True or another data_home. {by_hand}"
        )
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f'{missing} Downloading needs pooch: pip install "sk-calex[datasets]". '
            f"{by_hand}"
        ) from error
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # pooch writes beside the path and moves into place once the hash agrees.
        pooch.retrieve(
            url,
            known_hash=f"md5:{md5}",
            fname=path.name,
            path=path.parent,
            progressbar=True,
        )
    except (OSError, ValueError) as error:
        raise OSError(f"Downloading {url} failed: {error} {by_hand}") from error


def check_md5(path: Path, md5: str) -> None:
    """Raise an error if a file differs from the published one."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(
            stream, lambda: hashlib.md5(usedforsecurity=False)
        ).hexdigest()
    if found != md5:
        raise ValueError(
            f"{path} has MD5 {found}, the official file has {md5}: it is incomplete or "
            "changed. Delete it and load again."
        )


def read_indices(
    path: Path, longest: Mapping[str, int]
) -> dict[str, NDArray[np.int64]]:
    """Read named 1-D integer arrays, each with its greatest length, from an npz."""
    with path.open("rb") as stream:
        try:
            archive = zipfile.ZipFile(stream)
            arrays = {}
            for name, length in longest.items():
                with archive.open(f"{name}.npy") as member:
                    arrays[name] = _read_vector(member, length)
            return arrays
        except Exception as error:  # a broken zip or header may raise anything
            raise ValueError(
                f"{path} must be an npz file with the 1-D integer arrays "
                f"{list(longest)} of at most {list(longest.values())} items: "
                f"{error!r}. Restore it or delete it."
            ) from error


def _read_vector(stream: IO[bytes], longest: int) -> NDArray[np.int64]:
    """Read one npy stream: numpy's own reader would reserve what the header says."""
    if npy.read_magic(stream) != (1, 0):
        raise ValueError("not an npy file of format version 1.0")
    shape, _, dtype = npy.read_array_header_1_0(stream)
    if len(shape) != 1 or not 0 <= shape[0] <= longest or dtype.kind not in "iu":
        raise ValueError(f"found shape {shape}, dtype {dtype}")
    size = shape[0] * dtype.itemsize
    content = stream.read(size + 1)
    if len(content) != size:
        raise ValueError(f"found {len(content)} bytes of data for shape {shape}")
    return np.frombuffer(content, dtype).astype(np.int64)


def read_rgb(
    source: Path | IO[bytes], *, name: str, kind: str, size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Decode one image of exactly this kind and (width, height) to (h, w, 3)."""
    try:
        with Image.open(source, formats=[kind]) as image:
            if image.size != size:
                raise ValueError(f"its size is {image.size}")
            return np.asarray(image.convert("RGB"))
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # a broken image may raise anything
        raise ValueError(
            f"{name} must be a {kind} image of {size[0]}x{size[1]} pixels: {error}. "
            "Restore the file, or delete the folder and load again."
        ) from error
