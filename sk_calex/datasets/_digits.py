"""scikit-learn's bundled digits, made into noisy 3x32x32 images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch

_SIDE = 32
_GLYPH = 24  # each of the 8x8 cells becomes 3x3 pixels
_REAL = int | float | np.integer | np.floating
_PAPER, _INK = 0.3, 0.7  # grey levels: room on both sides before noise is clipped

_DESCR = """Noisy digit images
------------------
The 1,797 handwritten 8x8 digits bundled with scikit-learn (the test part of
"Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI
Machine Learning Repository), enlarged to 24x24 pixels, placed at random in a
3x32x32 frame (three equal channels) and covered with Gaussian noise whose
strength differs from image to image. The split into train, val and test is
stratified, is by source image, and never changes.
"""


def load_digits_images(
    *,
    noise: float | tuple[float, float] = (0.0, 0.7),
    shift: int = 4,
    copies: int | Sequence[int] = 4,
    random_state: int = 0,
) -> Bunch:
    """Load the bundled digits as noisy, shifted images: nothing is downloaded.

    Each 8x8 digit is enlarged three times by linear interpolation, placed near
    the middle of a 32x32 frame and covered with Gaussian noise. The noise level
    is drawn per image, so that some images are clean and some barely readable.

    Parameters
    ----------
    noise : float or (float, float), default=(0.0, 0.7)
        Standard deviation of the noise, in units of the difference between paper
        and full ink. A pair is the range from which each image draws its level
        uniformly; a number is the level of every image. 0 is no noise.
    shift : int, default=4
        Largest distance in pixels, in each direction, between the middle of the
        digit and the middle of the frame; between 0 and 4 (4 reaches the edge).
    copies : int or (int, int, int), default=4
        Noisy copies per source image. A number is for the training part, and the
        others get one each; three numbers are for train, val and test. Copies of
        one source image are not independent samples.
    random_state : int, default=0
        Seed of the noise and the shifts, at least 0. The split does not depend on
        it. Each part has its own random stream: the test images are the same
        whatever the number of training copies.

    Returns
    -------
    bunch : :class:`~sklearn.utils.Bunch`
        data : ndarray of shape (n_images, 3, 32, 32), uint8
            The images, first those of train, then val, then test.
        target : ndarray of shape (n_images,), int64
            The digit, 0 to 9.
        target_names : ndarray of shape (10,), str
            The names of the classes.
        train, val, test : ndarray of int64
            Row numbers of each part: about 50, 25 and 25 % of the source images.
        source : ndarray of shape (n_images,), int64
            Row of :func:`sklearn.datasets.load_digits` that the image shows.
        noise : ndarray of shape (n_images,), float64
            Noise level of the image.
        DESCR : str
            Description of the data.

    Raises
    ------
    ValueError
        If a parameter is outside its range.

    Notes
    -----
    The recipe is our definition. With the defaults, a ResNet of 80,000 weights trained
    for 14 epochs had 96 % of val and test right (one seed): 99 % of the quarter with
    the least noise, 90 % of the quarter with the most.

    Examples
    --------
    >>> from sk_calex.datasets import load_digits_images
    >>> digits = load_digits_images(copies=2)
    >>> digits.data.shape, digits.data.dtype
    ((2695, 3, 32, 32), dtype('uint8'))
    >>> len(digits.train), len(digits.val), len(digits.test)
    (1796, 449, 450)
    """
    low, high = _check_noise(noise)
    shift = _check_integer("shift", shift, 0, (_SIDE - _GLYPH) // 2)
    per_part = _check_copies(copies)
    seed = _check_integer("random_state", random_state, 0, None)

    digits = load_digits()
    glyphs = _enlarge(digits.images / 16.0)
    images, levels, sources = [], [], []
    for part, rows in enumerate(_split(digits.target)):
        rng = np.random.default_rng([seed, part])
        rows = np.tile(rows, per_part[part])
        level = rng.uniform(low, high, size=len(rows))
        images.append(_draw(glyphs[rows], level, shift, rng))
        levels.append(level)
        sources.append(rows)

    source = np.concatenate(sources)
    ends = np.cumsum([len(rows) for rows in sources])
    train, val, test = np.split(np.arange(len(source)), ends[:-1])
    grey = np.concatenate(images)[:, None]
    return Bunch(
        data=np.repeat(grey, 3, axis=1),
        target=digits.target[source].astype(np.int64),
        target_names=np.array([str(name) for name in digits.target_names]),
        train=train,
        val=val,
        test=test,
        source=source,
        noise=np.concatenate(levels),
        DESCR=_DESCR,
    )


def _split(target: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the source rows of train, val and test: always the same."""
    rows = np.arange(len(target))
    train, rest = train_test_split(rows, test_size=0.5, stratify=target, random_state=0)
    val, test = train_test_split(
        rest, test_size=0.5, stratify=target[rest], random_state=0
    )
    return [np.sort(train), np.sort(val), np.sort(test)]


def _enlarge(cells: NDArray[np.float64]) -> NDArray[np.float32]:
    """Interpolate (n, 8, 8) cells linearly to (n, 24, 24)."""
    n_cells = cells.shape[-1]
    centres = (np.arange(_GLYPH) + 0.5) * n_cells / _GLYPH - 0.5
    # Interpolation is linear: the images of the unit vectors are its matrix.
    weights = np.stack(
        [np.interp(centres, np.arange(n_cells), unit) for unit in np.eye(n_cells)],
        axis=1,
    )
    return (weights @ cells @ weights.T).astype(np.float32)


def _draw(
    glyphs: NDArray[np.float32],
    level: NDArray[np.float64],
    shift: int,
    rng: np.random.Generator,
) -> NDArray[np.uint8]:
    """Place (n, 24, 24) glyphs in noisy (n, 32, 32) frames."""
    n = len(glyphs)
    corner = (_SIDE - _GLYPH) // 2
    offset = corner + rng.integers(-shift, shift, size=(n, 2, 1), endpoint=True)
    rows, columns = np.moveaxis(offset + np.arange(_GLYPH), 1, 0)
    frame = np.zeros((n, _SIDE, _SIDE), dtype=np.float32)
    frame[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]] = glyphs
    grain = rng.standard_normal(frame.shape, dtype=np.float32)
    frame += level[:, None, None].astype(np.float32) * grain
    grey = _PAPER + (_INK - _PAPER) * frame
    return np.rint(255 * np.clip(grey, 0.0, 1.0)).astype(np.uint8)


def _check_integer(name: str, value: object, low: int, high: int | None) -> int:
    accepted = f"at least {low}" if high is None else f"between {low} and {high}"
    if (
        not isinstance(value, int | np.integer)
        or isinstance(value, bool)
        or value < low
        or (high is not None and value > high)
    ):
        raise ValueError(f"{name} must be an integer {accepted}; got {value!r}.")
    return int(value)


def _check_copies(copies: object) -> tuple[int, ...]:
    per_part = (copies, 1, 1) if isinstance(copies, int | np.integer) else copies
    if not isinstance(per_part, Sequence) or len(per_part) != 3:
        raise ValueError(
            "copies must be an integer (copies of the training images) or three "
            f"integers (train, val, test); got {copies!r}."
        )
    return tuple(_check_integer("copies", value, 1, None) for value in per_part)


def _check_noise(noise: object) -> tuple[float, float]:
    levels = (noise, noise) if isinstance(noise, _REAL) else noise
    if (
        not isinstance(levels, Sequence)
        or len(levels) != 2
        or not all(isinstance(level, _REAL) and np.isfinite(level) for level in levels)
        or not 0 <= levels[0] <= levels[1]
    ):
        raise ValueError(
            "noise must be a finite number of at least 0, or a pair (low, high) of "
            f"them with low <= high; got {noise!r}."
        )
    return float(levels[0]), float(levels[1])
