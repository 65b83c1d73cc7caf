"""CINIC-10: CIFAR-10 extended with downsampled ImageNet images."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from sklearn.utils import Bunch
from tqdm import tqdm

from sk_calex.datasets._base import (
    check_md5,
    check_split,
    fetch,
    get_data_home,
    read_rgb,
)

# Address: README of https://github.com/BayesWatch/cinic-10, which gives no checksum.
# The MD5 is the one that public loaders of the data set agree on.
_URL = "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz"
_MD5 = "6ee4d0c996905fe93221de577967a372"
_PAGE = "https://doi.org/10.7488/ds/2448"

_PARTS = ("train", "valid", "test")
_CLASSES = (  # the official, alphabetical order
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_PER_CLASS = 9_000  # images of each class in each part
_MAX_BYTES = 65_536  # of one PNG of 32x32 pixels, with room to spare
_MEMBER = re.compile(
    rf"(?:\./)?(?:CINIC-10/)?({'|'.join(_PARTS)})/({'|'.join(_CLASSES)})/([^/]+\.png)"
)

# (part, class, file name): their sorted order is the order of the images
_Key = tuple[int, int, str]

_DESCR = """CINIC-10
--------
270,000 colour images of 32x32 pixels in the ten classes of CIFAR-10: 90,000 each in
train, valid and test, 9,000 per class. 60,000 are CIFAR-10's own, the others are
downsampled from ImageNet. L. N. Darlow, E. J. Crowley, A. Antoniou and A. J. Storkey,
"CINIC-10 is not ImageNet or CIFAR-10", arXiv:1810.03505, 2018.
"""


def load_cinic10(
    *,
    data_home: str | os.PathLike[str] | None = None,
    split: str | Sequence[str] = ("train", "valid", "test"),
    download_if_missing: bool = True,
    verbose: int = 0,
) -> Bunch:
    """Load CINIC-10, 270,000 images in ten classes.

    The first of these that exists is read:

    1. the official folders ``train``, ``valid`` and ``test`` with one folder of PNG
       files per class, in ``data_home/CINIC-10`` or in `data_home` itself;
    2. the official archive ``data_home/CINIC-10.tar.gz``, which is also what is
       downloaded (688 MB, through pooch: ``pip install "sk-calex[datasets]"``). It
       is read in place, never extracted.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Where the data lies; see :func:`get_data_home`.
    split : {"train", "valid", "test"} or tuple, default=("train", "valid", "test")
        The official parts to load.
    download_if_missing : bool, default=True
        If False, raise an error where the data is not on disk.
    verbose : int, default=0
        If positive, show a progress bar while the images are decoded.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        data : ndarray of shape (n_images, 3, 32, 32), uint8
            The images, by part (train, valid, test), class and file name; 830 MB for
            all three parts.
        target : ndarray of shape (n_images,), int64
            The classes.
        target_names : ndarray of shape (10,), str
            The names of the classes.
        train, val, test : ndarray of int64
            Row numbers of the official parts; empty for a part that is not loaded.
        DESCR : str
            Description of the data.

    Raises
    ------
    FileNotFoundError
        If the data, or a folder of it, is missing and may not be downloaded.
    ImportError
        If pooch is needed and not installed.
    OSError
        If the download fails.
    ValueError
        If `split` is unknown, a class does not have 9,000 images, a file is not a PNG
        image of 32x32 pixels, or the archive has the wrong checksum.

    Examples
    --------
    >>> from sk_calex.datasets import load_cinic10
    >>> cinic = load_cinic10(split="test")  # doctest: +SKIP
    >>> cinic.data.shape  # doctest: +SKIP
    (90000, 3, 32, 32)
    """
    home = get_data_home(data_home)
    parts = check_split(split, _PARTS)
    origin = _find(home, parts, download_if_missing)
    if origin.is_dir():
        keys = _list_folder(origin, parts)
    else:
        check_md5(origin, _MD5)
        keys = {key for key, _ in _walk_archive(origin, parts)}
    _check_counts(keys, parts, origin)

    order = sorted(keys)
    rows = {key: row for row, key in enumerate(order)}
    data = np.empty((len(order), 3, 32, 32), dtype=np.uint8)
    files: Iterable[tuple[_Key, Path | IO[bytes]]]
    if origin.is_dir():
        files = ((key, origin / _name(key)) for key in order)
    else:
        files = _walk_archive(origin, parts)
    for key, file in tqdm(files, "CINIC-10", len(order), disable=verbose <= 0):
        name = f"{origin}: {_name(key)}"
        pixels = read_rgb(file, name=name, kind="PNG", size=(32, 32))
        data[rows[key]] = pixels.transpose(2, 0, 1)

    position = np.array([part for part, _, _ in order])
    train, val, test = (np.flatnonzero(position == part) for part in range(3))
    return Bunch(
        data=data,
        target=np.array([label for _, label, _ in order], dtype=np.int64),
        target_names=np.array(_CLASSES),
        train=train,
        val=val,
        test=test,
        DESCR=_DESCR,
    )


def _find(home: Path, parts: tuple[str, ...], download: bool) -> Path:
    """Return the folder, or else the archive, that holds the data."""
    for folder in (home / "CINIC-10", home):
        if any((folder / part / _CLASSES[0]).is_dir() for part in _PARTS):
            return folder
    archive = home / "CINIC-10.tar.gz"
    if not archive.is_file():
        tried = [home / "CINIC-10" / parts[0], home / parts[0], archive]
        fetch(_URL, _MD5, archive, tried=tried, download=download, page=_PAGE)
    return archive


def _name(key: _Key) -> str:
    return f"{_PARTS[key[0]]}/{_CLASSES[key[1]]}/{key[2]}"


def _list_folder(folder: Path, parts: tuple[str, ...]) -> set[_Key]:
    keys: set[_Key] = set()
    for part in parts:
        for label, name in enumerate(_CLASSES):
            path = folder / part / name
            if not path.is_dir():
                raise FileNotFoundError(
                    f"{folder} lacks the folder {part}/{name}. Restore it, or give a "
                    "data_home without CINIC-10 to download it."
                )
            files = (file for file in os.listdir(path) if file.endswith(".png"))
            keys.update((_PARTS.index(part), label, file) for file in files)
    return keys


def _walk_archive(
    path: Path, parts: tuple[str, ...]
) -> Iterator[tuple[_Key, IO[bytes]]]:
    """Read the images of the parts in the archive's own order, one at a time."""
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            match = _MEMBER.fullmatch(member.name)
            if match is None or match[1] not in parts or not member.isfile():
                continue
            if member.size > _MAX_BYTES:
                raise ValueError(
                    f"{path}: {member.name} has {member.size} bytes; expected at most "
                    f"{_MAX_BYTES}. Delete the archive and load again."
                )
            stream = archive.extractfile(member)
            key = (_PARTS.index(match[1]), _CLASSES.index(match[2]), match[3])
            yield key, io.BytesIO(stream.read() if stream else b"")


def _check_counts(keys: set[_Key], parts: tuple[str, ...], origin: Path) -> None:
    counts = Counter(key[:2] for key in keys)
    for part in parts:
        for label, name in enumerate(_CLASSES):
            n = counts[_PARTS.index(part), label]
            if n != _PER_CLASS:
                raise ValueError(
                    f"{origin}: {part}/{name} holds {n} PNG files, expected "
                    f"{_PER_CLASS}. Restore it from {_PAGE}."
                )
