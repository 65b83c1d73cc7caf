"""The noisy digits: what is drawn, and how it is split."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sk_calex.datasets import load_digits_images


def _enlarge_slowly(cells):
    """Bilinear interpolation, three pixels a cell, one pixel after the other."""
    out = np.empty((24, 24))
    for i in range(24):
        for j in range(24):
            y = min(max((i - 1) / 3, 0.0), 7.0)
            x = min(max((j - 1) / 3, 0.0), 7.0)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, 7), min(x0 + 1, 7)
            top = cells[y0, x0] * (1 - (x - x0)) + cells[y0, x1] * (x - x0)
            bottom = cells[y1, x0] * (1 - (x - x0)) + cells[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + bottom * (y - y0)
    return out


def test_layout():
    digits = load_digits_images(copies=(3, 2, 1))
    n = len(digits.target)
    assert digits.data.shape == (n, 3, 32, 32)
    assert digits.data.dtype == np.uint8
    assert digits.data.flags.c_contiguous
    assert digits.target.dtype == np.int64
    np.testing.assert_array_equal(digits.data[:, 0], digits.data[:, 1])
    np.testing.assert_array_equal(digits.data[:, 0], digits.data[:, 2])
    np.testing.assert_array_equal(digits.target, load_digits().target[digits.source])
    assert digits.target_names.tolist() == [str(digit) for digit in range(10)]
    assert "scikit-learn" in digits.DESCR


@pytest.mark.parametrize(
    ("copies", "per_part"), [(1, (1, 1, 1)), (5, (5, 1, 1)), ((2, 3, 4), (2, 3, 4))]
)
def test_every_source_image_is_in_one_part_as_often_as_asked(copies, per_part):
    digits = load_digits_images(copies=copies)
    seen = []
    for part, times in zip(("train", "val", "test"), per_part, strict=True):
        sources, counts = np.unique(digits.source[digits[part]], return_counts=True)
        assert set(counts) == {times}
        seen.append(sources)
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(1797))
    rows = np.concatenate([digits.train, digits.val, digits.test])
    np.testing.assert_array_equal(rows, np.arange(len(digits.data)))


def test_split_is_stratified_and_fixed():
    digits = load_digits_images(copies=1)
    shares = np.bincount(digits.target) / len(digits.target)
    for part in ("train", "val", "test"):
        found = np.bincount(digits.target[digits[part]]) / len(digits[part])
        np.testing.assert_allclose(found, shares, atol=0.003)
    other = load_digits_images(copies=1, random_state=1)
    np.testing.assert_array_equal(digits.source, other.source)
    # Published results are only comparable on the very same rows.
    first = digits.source[digits.val][:8]
    assert first.tolist() == [0, 2, 4, 10, 11, 12, 24, 25]


def test_seed_decides_the_noise():
    first, again, other = (load_digits_images(random_state=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.data, again.data)
    assert (first.data != other.data).any(axis=(1, 2, 3)).all()


def test_evaluation_images_do_not_depend_on_training_copies():
    few, many = load_digits_images(copies=1), load_digits_images(copies=7)
    for part in ("val", "test"):
        np.testing.assert_array_equal(few.data[few[part]], many.data[many[part]])


def test_copies_differ_from_one_another():
    digits = load_digits_images(copies=2)
    first, second = np.split(digits.data[digits.train], 2)
    assert (first != second).any(axis=(1, 2, 3)).all()


def test_clean_image_is_the_interpolated_digit():
    digits = load_digits_images(noise=0, shift=0, copies=1)
    for row in (0, 700, 1796):
        frame = np.zeros((32, 32))
        frame[4:28, 4:28] = _enlarge_slowly(
            load_digits().images[digits.source[row]] / 16
        )
        np.testing.assert_allclose(
            digits.data[row, 0], 255 * (0.3 + 0.4 * frame), atol=0.501
        )


@pytest.mark.parametrize("shift", [1, 4])
def test_shift_moves_the_digit_within_the_frame(shift):
    still = load_digits_images(noise=0, shift=0, copies=1).data[:, 0]
    moved = load_digits_images(noise=0, shift=shift, copies=1).data[:, 0]
    steps = range(-shift, shift + 1)
    # The digit never touches the edge of an unshifted frame, so rolling is shifting.
    agrees = {
        (dy, dx): (np.roll(still, (dy, dx), axis=(1, 2)) == moved).all(axis=(1, 2))
        for dy in steps
        for dx in steps
    }
    assert np.any(list(agrees.values()), axis=0).all()
    assert all(hits.any() for hits in agrees.values())


def test_noise_has_the_level_it_says():
    digits = load_digits_images(noise=(0.1, 0.5), copies=1)
    assert digits.noise.min() >= 0.1
    assert digits.noise.max() <= 0.5
    assert np.ptp(digits.noise) > 0.38
    # The outermost rows hold next to no ink; 0.4 * 255 grey levels are one unit.
    border = digits.data[:, 0, [0, 31]].reshape(len(digits.data), -1)
    levels = border.std(axis=1) / (0.4 * 255)
    quiet = load_digits_images(noise=0, copies=1).data[:, 0, [0, 31]]
    blank = (quiet == quiet[0, 0, 0]).all(axis=(1, 2))
    ratio = levels[blank] / digits.noise[blank]
    assert blank.sum() > 900
    assert ratio.mean() == pytest.approx(1.0, abs=0.03)


def test_one_level_is_every_images_level():
    digits = load_digits_images(noise=np.float32(0.25), copies=np.int64(1))
    assert set(digits.noise) == {0.25}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"noise": -0.1}, "noise must be .* got -0.1"),
        ({"noise": (0.5, 0.1)}, "noise must be"),
        ({"noise": (0.1, 0.2, 0.3)}, "noise must be"),
        ({"noise": (0.1, float("inf"))}, "noise must be"),
        ({"noise": "loud"}, "noise must be .* got 'loud'"),
        ({"noise": None}, "noise must be"),
        ({"shift": 5}, "shift must be an integer between 0 and 4; got 5"),
        ({"shift": -1}, "shift must be"),
        ({"shift": 1.0}, "shift must be"),
        ({"shift": True}, "shift must be"),
        ({"copies": 0}, "copies must be an integer at least 1; got 0"),
        ({"copies": (1, 1)}, "copies must be .* three"),
        ({"copies": 2.5}, "copies must be"),
        ({"random_state": -1}, "random_state must be an integer at least 0"),
        ({"random_state": None}, "random_state must be"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        load_digits_images(**parameters)
