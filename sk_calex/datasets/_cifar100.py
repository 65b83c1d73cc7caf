"""CIFAR-100 with its 20 coarse classes."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch

from sk_calex.datasets._base import (
    check_md5,
    check_split,
    fetch,
    get_data_home,
    read_indices,
    read_rgb,
)

_URL = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz"
_MD5 = "03b5dce01913d631647c71ecec9e9cb8"
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


class _Part(NamedTuple):
    """Number of records of a part, and SHA-256 of its official binary file."""

    n: int
    sha256: str


_PARTS = {
    "train": _Part(
        50_000, "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"
    ),
    "test": _Part(
        10_000, "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"
    ),
}
_PIXELS = 3 * 32 * 32
_RECORD = 2 + _PIXELS  # coarse label, fine label, pixels (channel, row, column)
_STRIP = 500  # images per packed strip

_COARSE_NAMES = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables "
    "household_electrical_devices household_furniture insects large_carnivores "
    "large_man-made_outdoor_things large_natural_outdoor_scenes "
    "large_omnivores_and_herbivores medium_mammals non-insect_invertebrates people "
    "reptiles small_mammals trees vehicles_1 vehicles_2"
)
_FINE_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy "
    "bridge bus butterfly camel can castle caterpillar cattle chair chimpanzee clock "
    "cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish "
    "forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion "
    "lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange "
    "orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine "
    "possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone "
    "television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf "
    "woman worm"
)
_COARSE, _FINE = _COARSE_NAMES.split(), _FINE_NAMES.split()

_DESCR = """CIFAR-100
---------
60,000 colour images of 32x32 pixels: 50,000 train and 10,000 test, in 100 fine classes
grouped into 20 coarse ones. A. Krizhevsky, "Learning Multiple Layers of Features from
Tiny Images", 2009. No formal licence is attached to the data; cite the report.
Ten images occur in both train and test, as published.
"""


def load_cifar100_coarse(
    *,
    data_home: str | os.PathLike[str] | None = None,
    split: str | Sequence[str] = ("train", "test"),
    fine: bool = False,
    download_if_missing: bool = True,
) -> Bunch:
    """Load CIFAR-100 with its 20 coarse classes (or the 100 fine ones).

    The first of these that `data_home` holds is read:

    1. ``cifar100/labels.npz`` with lossless strips of 500 images,
       ``cifar100/train-000.webp`` and so on;
    2. the official binary version, ``cifar-100-binary/train.bin`` and ``test.bin``;
    3. its archive, ``cifar-100-binary.tar.gz``, which is also what is downloaded
       (161 MB, through pooch: ``pip install "sk-calex[datasets]"``).

    The official python version (``cifar-100-python``) holds pickles, which can run
    code when opened: it is never read.

    Parameters
    ----------
    data_home : str or path-like, default=None
        Where the data lies; see :func:`get_data_home`.
    split : {"train", "test"} or tuple of them, default=("train", "test")
        The official parts to load.
    fine : bool, default=False
        Whether `target` is the 100 fine classes rather than the 20 coarse ones.
    download_if_missing : bool, default=True
        If False, raise an error where the data is not on disk.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        data : ndarray of shape (n_images, 3, 32, 32), uint8
            The images in the official order, those of train before those of test.
        target : ndarray of shape (n_images,), int64
            The classes.
        target_names : ndarray of shape (20,) or (100,), str
            The names of the classes.
        train, val, test : ndarray of int64
            Row numbers. `train` (45,000) and `val` (5,000) share the official train
            part, stratified over the fine classes and always in the same way;
            `test` is the official test part. Empty for a part that is not loaded.
        DESCR : str
            Description of the data.

    Raises
    ------
    FileNotFoundError
        If the data, or a file of it, is missing and may not be downloaded.
    ImportError
        If pooch is needed and not installed.
    OSError
        If the download fails.
    ValueError
        If `split` is unknown, or a file is not what was published (wrong size, label
        out of range, wrong checksum).

    Notes
    -----
    Where ``backbones/split.npz`` exists in `data_home`, its arrays ``train`` and
    ``val`` are the split: that of a backbone trained elsewhere, which has not seen
    ``val``. Otherwise the split is drawn with a fixed seed.

    Examples
    --------
    >>> from sk_calex.datasets import load_cifar100_coarse
    >>> cifar = load_cifar100_coarse()  # doctest: +SKIP
    >>> cifar.data.shape  # doctest: +SKIP
    (60000, 3, 32, 32)
    """
    home = get_data_home(data_home)
    parts = check_split(split, tuple(_PARTS))
    counts = [_PARTS[part].n for part in parts]

    data = np.empty((sum(counts), 3, 32, 32), dtype=np.uint8)
    labels = np.empty((len(data), 2), dtype=np.int64)
    start = 0
    for records in _read(home, parts, download_if_missing).values():
        rows = slice(start, start + len(records))
        labels[rows] = records[:, :2]
        data[rows] = records[:, 2:].reshape(-1, 3, 32, 32)
        start = rows.stop

    empty = np.empty(0, dtype=np.int64)
    train = val = test = empty
    if "train" in parts:
        train, val = _validation_split(home, labels[: counts[0], 1])
    if "test" in parts:
        test = np.arange(len(data) - counts[-1], len(data))
    return Bunch(
        data=data,
        target=np.ascontiguousarray(labels[:, int(fine)]),
        target_names=np.array(_FINE if fine else _COARSE),
        train=train,
        val=val,
        test=test,
        DESCR=_DESCR,
    )


def _read(
    home: Path, parts: tuple[str, ...], download: bool
) -> dict[str, NDArray[np.uint8]]:
    """Read the parts from the first layout on disk, as (n, 3074) official records."""
    strips = home / "cifar100"
    folder = home / "cifar-100-binary"
    archive = home / "cifar-100-binary.tar.gz"
    if (strips / "labels.npz").is_file():
        return {part: _read_strips(strips, part) for part in parts}
    if all((folder / f"{part}.bin").is_file() for part in parts):
        return {part: _read_binary(folder / f"{part}.bin", part) for part in parts}
    if not archive.is_file():
        tried = [strips / "labels.npz", *(folder / f"{p}.bin" for p in parts), archive]
        pickles = (home / "cifar-100-python").exists()
        note = " cifar-100-python holds pickles and is never read." if pickles else ""
        fetch(
            _URL,
            _MD5,
            archive,
            tried=tried,
            download=download,
            page=_PAGE,
            note=note,
        )
    return _read_archive(archive, parts)


def _read_strips(folder: Path, part: str) -> NDArray[np.uint8]:
    n = _PARTS[part].n
    path = folder / "labels.npz"
    names = [f"y_{part}_coarse", f"y_{part}_fine"]
    arrays = read_indices(path, dict.fromkeys(names, n))
    sizes = {len(labels) for labels in arrays.values()}
    if sizes != {n}:
        raise ValueError(f"{path} must hold {n} labels in {names}; found {sizes}.")
    labels = np.stack([arrays[name] for name in names], axis=1)
    _check_labels(labels, path)

    records = np.empty((n, _RECORD), dtype=np.uint8)
    records[:, :2] = labels
    for number, start in enumerate(range(0, n, _STRIP)):
        strip = folder / f"{part}-{number:03d}.webp"
        rows = records[start : start + _STRIP]
        pixels = read_rgb(
            strip, name=str(strip), kind="WEBP", size=(32, 32 * len(rows))
        )
        images = pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
        rows[:, 2:] = images.reshape(-1, _PIXELS)
    return _check_records(records, part, folder)


def _read_binary(path: Path, part: str) -> NDArray[np.uint8]:
    _check_size(path.stat().st_size, part, path)
    with path.open("rb") as stream:
        content = stream.read(_PARTS[part].n * _RECORD)
    return _parse(content, part, path)


def _read_archive(path: Path, parts: tuple[str, ...]) -> dict[str, NDArray[np.uint8]]:
    """Read the parts out of the archive, in memory: nothing is extracted."""
    check_md5(path, _MD5)
    found = {}
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            folder, _, name = member.name.removeprefix("./").partition("/")
            part = name.removesuffix(".bin")
            if folder != "cifar-100-binary" or part not in parts:
                continue
            _check_size(member.size, part, path)
            stream = archive.extractfile(member)
            found[part] = _parse(stream.read() if stream else b"", part, path)
    missing = [f"{part}.bin" for part in parts if part not in found]
    if missing:
        raise ValueError(f"{path} lacks {missing}. Delete it and load again.")
    return {part: found[part] for part in parts}


def _parse(content: bytes, part: str, path: Path) -> NDArray[np.uint8]:
    _check_size(len(content), part, path)
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, _RECORD)
    _check_labels(records[:, :2], path)
    return _check_records(records, part, path)


def _check_size(size: int, part: str, path: Path) -> None:
    expected = _PARTS[part].n * _RECORD
    if size != expected:
        raise ValueError(
            f"{path}: the {part} part has {size} bytes, expected {expected}. Delete it "
            "and load again."
        )


def _check_labels(labels: NDArray[np.integer], path: Path) -> None:
    """Refuse (n, 2) coarse and fine labels outside 0..19 and 0..99."""
    for column, names in ((labels[:, 0], _COARSE), (labels[:, 1], _FINE)):
        if column.min() < 0 or column.max() >= len(names):
            raise ValueError(
                f"{path}: labels must lie between 0 and {len(names) - 1}; found "
                f"{column.min()} to {column.max()}. Delete it and load again."
            )


def _check_records(
    records: NDArray[np.uint8], part: str, path: Path
) -> NDArray[np.uint8]:
    digest = hashlib.sha256(records.data).hexdigest()
    if digest != _PARTS[part].sha256:
        raise ValueError(
            f"{path}: the {part} part differs from the published data (SHA-256 "
            f"{digest}, expected {_PARTS[part].sha256}). Delete it and load again."
        )
    return records


def _validation_split(
    home: Path, fine: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    path = home / "backbones" / "split.npz"
    rows = np.arange(len(fine))
    if not path.is_file():
        train, val = train_test_split(
            rows, test_size=0.1, stratify=fine, random_state=0
        )
        return np.sort(train), np.sort(val)
    split = read_indices(path, {"train": len(fine), "val": len(fine)})
    if not np.array_equal(np.sort(np.r_[split["train"], split["val"]]), rows):
        raise ValueError(
            f"{path}: train and val together must hold each row from 0 to "
            f"{len(fine) - 1} once. Restore it, or delete it to draw a new split."
        )
    return split["train"], split["val"]
